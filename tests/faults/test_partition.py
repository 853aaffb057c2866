"""The network of a worker loses all that goes one way, for longer than its time to live: its work is done elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conveyor.sdk import to_struct
from tests.faults import history
from tests.faults.cluster import Cluster, DriverUnit, Layout
from tests.support.behaviour import Counted
from tests.support.belt import Belt, Site, one, state, step
from tests.support.netns import NetworkNamespace, NoNamespaces
from tests.support.ports import free_port
from tests.support.wait import until


@pytest.fixture
def networks() -> Iterator[tuple[NetworkNamespace, NetworkNamespace]]:
    """Two networks, each for one worker."""
    with contextlib.ExitStack() as made:
        try:
            both = made.enter_context(NetworkNamespace()), made.enter_context(NetworkNamespace())
        except NoNamespaces as error:
            pytest.skip(f"NO PARTITION TESTED: a network of its own needs root, ip and tc: {error}")
        yield both


class Inside:
    """A driver process that reaches the server by the wire alone."""

    def __init__(self, network: NetworkNamespace, server: str, belt: Belt, directory: Path) -> None:
        self._events = directory / "events"
        self._events.mkdir()
        command = [sys.executable, "-m", "tests.faults.driver", "a", "inside", str(self._events / "inside.jsonl"), ""]
        self.unit = DriverUnit("inside", "a", "grpc", network.command(*command), directory / "inside.log")
        self.unit.environment = {
            "CONVEYOR_ADDRESS": server,
            "CONVEYOR_NAMESPACE": belt.namespace,
            "CONVEYOR_NO_PROXY": "1",
        }

    def events(self, kind: str, **fields: Any) -> list[history.Event]:
        """What it has written down."""
        return [e for e in history.read(self._events) if e["kind"] == kind and fields.items() <= e.items()]

    async def until(self, kind: str, **fields: Any) -> history.Event:
        """Wait for it to write something down."""
        found = await until(lambda: self.events(kind, **fields), f"the worker to have {kind}")
        return found[0]


async def _connected(belt: Belt, worker: str) -> str:
    """The session that the worker has now."""
    workers = [each for driver in [d async for d in belt.client.drivers.list()] for each in driver.workers]
    return next((each.session for each in workers if each.name == worker), "")


async def test_a_worker_that_is_not_heard_or_does_not_hear_loses_its_step_and_comes_back(
    networks: tuple[NetworkNamespace, NetworkNamespace], tmp_path: Path
) -> None:
    deaf, mute = networks
    addresses = [f"{network.ours}:{free_port()}" for network in networks]
    layout = Layout("sqlite", server_arguments=("--listen", ",".join(addresses), "--insecure"))
    async with Cluster(tmp_path / "cluster", layout) as cluster:
        await asyncio.gather(
            _lose(cluster, deaf, addresses[0], deaf.lose_ours, _made(tmp_path / "deaf")),
            _lose(cluster, mute, addresses[1], mute.lose_theirs, _made(tmp_path / "mute")),
        )


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def _lose(
    cluster: Cluster, network: NetworkNamespace, server: str, lose: Callable[[], None], directory: Path
) -> None:
    site = Site(cluster.servers[0], cluster.nats)
    async with Belt(site, directory, address=server) as belt:
        inside = Inside(network, server, belt, directory)
        await cluster.drive(inside.unit)
        await belt.connected("a")
        session = await _connected(belt, "inside")
        # Its first attempt goes on until it is told to stop, and even then answers that it has done it.
        acts = {"a": [{"answer": "ok", "seconds": 5, "stubborn": True}, {"answer": "ok", "seconds": 0}]}
        await belt.pipeline(step("a"), context=to_struct({"acts": acts}))
        run = await belt.start()
        await inside.until("began", run=run.id, attempt=1)

        lose()
        elsewhere = Counted()
        driver = belt.drive("a", elsewhere)
        ended = await belt.ended(run)
        assert state(ended) == "SUCCEEDED"
        assert [job.attempt for job in elsewhere.jobs] == [2]
        assert [each.worker for each in one(ended.steps, "a").attempts] == ["inside", driver.worker]
        # It has done its work all the same, and nobody has heard it.
        await inside.until("answered", run=run.id, attempt=1)

        network.heal()
        back: str = await until(lambda: _connected(belt, "inside"), "the worker to be back")
        assert back != session
        after = await belt.client.runs.get(run.id)
        assert after.update_time == ended.update_time
        assert list(after.steps) == list(ended.steps)

        await belt.drained(driver)
        again = await belt.start()
        assert state(await belt.ended(again)) == "SUCCEEDED"
        await inside.until("began", run=again.id, attempt=1)
        assert elsewhere.count == 1

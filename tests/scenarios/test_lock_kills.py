"""Locks when servers and workers are killed: nobody joins a holder, nobody is forgotten, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conveyor.sdk import Job, Unavailable
from conveyor.v1.pipeline_pb2 import Lock
from conveyor.v1.run_pb2 import Run
from tests.support.behaviour import Counted, Hold, ok
from tests.support.belt import Belt, Site, state, step, step_reason
from tests.support.cli import Cli
from tests.support.etcd import Etcd
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until

QUICK = ["--session-ttl", "3s", "--lease-ttl", "2s"]
DEPLOY = Lock(key="deploy")


class Deploys:
    """Notes in which order runs came for the first time, and whether one came while another was at it."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.at_work: set[str] = set()
        self.crowded: list[set[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, job: Job) -> None:
        if job.run not in self.order:
            self.order.append(job.run)
        self.at_work.add(job.run)
        if len(self.at_work) > 1:
            self.crowded.append(set(self.at_work))
        await self.gate.wait()
        await asyncio.sleep(0.01)
        self.at_work.discard(job.run)

    async def check(self, belt: Belt, runs: list[Run]) -> None:
        """All have ended, one after the other in their order, and hold nothing."""
        for run in runs:
            assert state(await belt.ended(run)) == "SUCCEEDED"
        assert not self.crowded
        ids = [run.id for run in runs]
        assert [run for run in self.order if run in ids] == ids
        assert [lock.key async for lock in belt.client.runs.locks()] == []


@pytest.fixture(scope="module")
def own_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of this module's own, on SQLite or as the test says, to be killed."""
    directory = tmp_path_factory.mktemp("locks")
    nats = NatsServer(directory / "nats").start()
    if getattr(request, "param", "sqlite") == "sqlite":
        etcd = None
        server = ConveyorServer(directory / "server", ["--nats", nats.url, *QUICK])
    else:
        etcd = request.getfixturevalue("etcd_server")
        server = ConveyorServer(directory / "server", ["--etcd", etcd.url, "--nats", nats.url, *QUICK], mode="start")
    server.start()
    yield Site(server, nats, etcd)
    server.kill()
    nats.stop()


@pytest.fixture
async def belt(own_site: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(own_site, tmp_path) as belt:
        yield belt


async def back(belt: Belt) -> None:
    """Start the server, and wait until the client has found it: by then it may have been away for long."""
    await asyncio.to_thread(belt.site.server.start)

    async def answers() -> bool:
        with contextlib.suppress(Unavailable):
            return bool(await belt.client.server_info())
        return False

    await until(answers, "the server to answer")


async def killed(belt: Belt) -> None:
    """kill -9, and start again."""
    await asyncio.to_thread(belt.site.server.kill)
    await back(belt)


@pytest.mark.parametrize(("own_site", "whole"), [("sqlite", True), ("etcd", False)], indirect=["own_site"])
async def test_a_server_is_killed_while_the_lock_goes_from_hand_to_hand(belt: Belt, whole: bool) -> None:
    deploys = Deploys()
    belt.drive("deploy", deploys, slots=64)
    await belt.pipeline(step("deploy", lock=None if whole else DEPLOY), lock=DEPLOY if whole else None)
    await belt.connected("deploy")
    runs = [await belt.start() for _ in range(15)]
    await until(lambda: len(deploys.order) >= 5)
    await killed(belt)
    await deploys.check(belt, runs)


async def test_a_killed_worker_keeps_its_place_for_the_next_attempt(belt: Belt) -> None:
    first = belt.spawn("deploy", "sleep", "600")
    await belt.pipeline(step("deploy", lock=DEPLOY))
    await belt.pipeline(step("other", lock=DEPLOY), name="other")
    other = Counted(ok)
    belt.drive("other", other)
    await belt.connected("deploy", "other")
    holder = await belt.start()
    await belt.until_step(holder, "deploy", "RUNNING")
    waiting = await belt.start("other")
    first.kill()
    await belt.until_step(holder, "deploy", "QUEUED", reason="NO_WORKER")
    assert [each.run async for lock in belt.client.runs.locks() for each in lock.holders] == [holder.id]
    await belt.until_step(waiting, "other", "QUEUED", reason="WAITING_FOR_LOCK")
    assert other.count == 0
    belt.drive("deploy", ok)
    ended = await belt.ended(holder)
    assert [step_reason(attempt) for attempt in ended.steps[0].attempts] == ["WORKER_LOST", "UNSPECIFIED"]
    assert state(await belt.ended(waiting)) == "SUCCEEDED"


@pytest.mark.parametrize("own_site", ["etcd"], indirect=True)
async def test_two_servers_hand_it_to_each_other_and_one_dies(
    own_site: Site, etcd_server: Etcd, tmp_path: Path
) -> None:
    arguments = ["--etcd", etcd_server.url, "--nats", own_site.nats.url, "--sweep-period", "5s", *QUICK]
    second = ConveyorServer(tmp_path / "second", arguments, mode="start")
    await asyncio.to_thread(second.start)
    deploys = Deploys()
    both = f"{second.address},{own_site.server.address}"
    try:
        async with Belt(own_site, tmp_path, address=both) as belt:
            await belt.pipeline(step("deploy", lock=DEPLOY))
            belt.drive("deploy", deploys, slots=4, address=second.address + "," + own_site.server.address)
            belt.drive("deploy", deploys, slots=4, address=own_site.server.address)
            await belt.connected("deploy")
            here = Belt(own_site, tmp_path, address=own_site.server.address, namespace=belt.namespace)
            async with here:
                runs = [await (belt if n % 2 else here).start() for n in range(20)]
                await until(lambda: len(deploys.order) > 5)
                await asyncio.to_thread(second.kill)
                await deploys.check(here, runs)
    finally:
        second.kill()


# Between two commits


@pytest.fixture
def environment() -> dict[str, str]:
    """What the server finds when it starts."""
    return {"CONVEYOR_FAILPOINTS": ""}


@pytest.fixture
def mortal(tmp_path: Path, environment: dict[str, str]) -> Iterator[Site]:
    """A server and a broker of the test's own, not started yet."""
    nats = NatsServer(tmp_path / "nats").start()
    server = ConveyorServer(tmp_path / "server", ["--nats", nats.url, *QUICK], environment=environment)
    yield Site(server, nats)
    if server.running:
        server.kill()
    nats.kill()


async def test_who_is_next_gets_it_when_the_server_dies_before_it_looks(
    mortal: Site, environment: dict[str, str], tmp_path: Path
) -> None:
    """The commit that ends its holder is the last thing that the server does."""
    environment["CONVEYOR_FAILPOINTS"] = "engine.after_commit=kill:2"
    await asyncio.to_thread(mortal.server.start)
    deploys = Deploys()
    deploys.gate.clear()
    async with Belt(mortal, tmp_path) as belt:
        belt.drive("deploy", deploys)
        await belt.pipeline(step("deploy", lock=DEPLOY))
        await belt.connected("deploy")
        runs: list[Run] = []
        with contextlib.suppress(Unavailable):
            while len(runs) < 3:
                runs.append(await belt.start())
        deploys.gate.set()
        await until(lambda: not mortal.server.running, "the server to die at its failpoint")
        await asyncio.to_thread(mortal.server.kill)
        environment["CONVEYOR_FAILPOINTS"] = ""
        await back(belt)
        runs += [await belt.start() for _ in range(len(runs), 3)]
        await deploys.check(belt, runs)


async def test_a_store_that_is_put_back_has_its_locks_as_they_were(own_site: Site, tmp_path: Path) -> None:
    file, data = tmp_path / "backup", own_site.server.directory / "data"

    async def command(name: str, *arguments: str) -> None:
        done = await asyncio.to_thread(Cli(), "server", name, "--data-dir", str(data), str(file), *arguments)
        assert done.code == 0, done.err

    async with Belt(own_site, tmp_path) as belt:
        hold = Hold()
        belt.drive("deploy", hold)
        await belt.pipeline(step("deploy", lock=DEPLOY))
        runs = [await belt.start() for _ in range(3)]
        await hold.started.wait()
        await command("backup")
        hold.released.set()
        for run in runs:
            await belt.ended(run)
        # A run that the backup does not know holds the lock when the store is put back.
        hold.released.clear()
        hold.started.clear()
        await belt.start()
        await hold.started.wait()
        await asyncio.to_thread(own_site.server.kill)
        await command("restore", "--force")
        await back(belt)
        (lock,) = [each async for each in belt.client.runs.locks()]
        assert [each.run for each in (*lock.holders, *lock.waiting)] == [run.id for run in runs]
        hold.released.set()
        for run in runs:
            assert state(await belt.ended(run)) == "SUCCEEDED"
        assert [each.key async for each in belt.client.runs.locks()] == []

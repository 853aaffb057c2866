"""That each fault of connections, the broker or etcd's history strikes for real and heals, with none beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from conveyor.sdk import DeadlineExceeded, Unavailable
from conveyor.v1.run_pb2 import Run
from tests.faults.broker import administrator
from tests.faults.cluster import Cluster, Layout
from tests.faults.fault import Fault, faults
from tests.support.behaviour import ok
from tests.support.belt import Belt, Site, state, step
from tests.support.wait import LONG, until

_WAYS = ("store", "broker", "drivers", "clients")


class Briefest(Random):
    """Chooses the least of all: faults that last as short as they may."""

    def choice(self, seq: Any) -> Any:
        """The least."""
        return min(seq)


@asynccontextmanager
async def _belt(directory: Path, servers: int) -> AsyncIterator[tuple[Cluster, Belt]]:
    """Servers on etcd, with a driver over each transport."""
    async with Cluster(directory / "cluster", Layout("etcd", servers)) as cluster:
        site = Site(cluster.servers[0], cluster.nats, cluster.etcd)
        async with Belt(site, directory, address=cluster.addresses) as belt:
            belt.drive("direct", ok, address=cluster.driver_addresses)
            belt.drive("over-broker", ok, transport="jetstream")
            # A ticket that somebody deletes looks like one that was delivered: its step ends by its timeout.
            tickets = step("over-broker", timeout=3, attempts=20)
            await belt.pipeline(step("direct", attempts=20), tickets, step("again", "direct", attempts=20))
            yield cluster, belt


async def _strike(cluster: Cluster, belt: Belt, struck: Sequence[Fault], seed: int = 0) -> list[str]:
    """Strike with all of these at the same time while runs are under way, which then end well; what each told."""
    runs = [await _patiently(belt.start) for _ in range(3)]

    async def strike(fault: Fault) -> str:
        assert not fault.unfit(cluster)
        return await fault.strike(cluster, Random(f"{fault.name}/{seed}") if seed else Briefest())

    async def start() -> Run:
        await asyncio.sleep(0.1)
        return await _patiently(belt.start)

    meanwhile = asyncio.create_task(start())
    told = await asyncio.gather(*map(strike, struck))
    for run in [*runs, await meanwhile, await _patiently(belt.start)]:
        ended = await _patiently(partial(belt.ended, run))
        assert state(ended) == "SUCCEEDED", told
    return told


async def _patiently(call: Callable[[], Awaitable[Run]]) -> Run:
    """What is answered once somebody can answer."""
    give_up = time.monotonic() + LONG
    while True:
        try:
            return await call()
        except (Unavailable, DeadlineExceeded):
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(0.1)


async def test_connections_are_struck_and_heal(tmp_path: Path) -> None:
    async with _belt(tmp_path, servers=1) as (cluster, belt):
        for kind in ("lose-answer", "half-open", "hold-answers", "cut"):
            unstruck = faults([f"{kind}-"])
            assert set(unstruck) == {f"{kind}-{way}" for way in _WAYS}
            before = _passed(cluster)
            for seed in range(20):
                await _strike(cluster, belt, list(unstruck.values()), seed)
                # Connections had to be made anew, or something came late; it may be that nothing passed just then.
                now, which = _passed(cluster), 1 if kind == "hold-answers" else 0
                for way in _WAYS:
                    if now[way][which] > before[way][which]:
                        unstruck.pop(f"{kind}-{way}", None)
                if not unstruck:
                    break
            assert not unstruck


def _passed(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """How many connections each way has had, and how much had to wait on it."""
    return {way: (cluster.proxies[way].connections, cluster.proxies[way].held) for way in _WAYS}


async def test_the_broker_and_etcds_history_are_meddled_with_and_heal(tmp_path: Path) -> None:
    async with _belt(tmp_path, servers=2) as (cluster, belt):
        for name, fault in faults(["delete-", "purge-", "wipe-"]).items():
            created = await _created(cluster)
            (told,) = await _strike(cluster, belt, [fault])
            assert "was not there" not in told
            assert "no consumer" not in told
            expected = set(created) if name == "wipe-nats" else set()
            if name.startswith("delete-stream-"):
                expected = {name.removeprefix("delete-stream-")}
            await _until_anew(cluster, created, expected)
        (told,) = await _strike(cluster, belt, list(faults(["compact-etcd"]).values()))
        assert told.startswith("compacted up to ")


async def _until_anew(cluster: Cluster, before: dict[str, str], expected: set[str]) -> None:
    """Wait until all streams are there, those and only those anew."""

    async def healed() -> bool:
        now = await _created(cluster)
        return now.keys() == before.keys() and {stream for stream in now if now[stream] != before[stream]} == expected

    await until(healed, f"{expected or 'no stream'} to be made anew")


async def _created(cluster: Cluster) -> dict[str, str]:
    """When each stream was made."""
    async with administrator(cluster) as jetstream:
        return {str(info.config.name): str(info.created) for info in await jetstream.streams_info()}

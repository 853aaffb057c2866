"""An etcd that is put back to one of its snapshots under servers that were stopped for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyor.sdk import NotFound
from conveyor.store import open_etcd
from conveyor.v1.run_pb2 import RunState
from conveyor.watch.cursor import parse
from tests.support.behaviour import Hold
from tests.support.belt import Belt, Site, one, state, step
from tests.support.etcd import Etcd, binary
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until
from tests.support.watch import until_cursor, until_snapshot


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    """A server on an etcd of this test's own."""
    etcd = Etcd(binary("3.4"), tmp_path / "etcd")
    etcd.start()
    nats = NatsServer(tmp_path / "nats").start()
    arguments = ["--etcd", etcd.url, "--nats", nats.url, "--session-ttl", "3s", "--lease-ttl", "2s"]
    server = ConveyorServer(tmp_path / "server", arguments, mode="start").start()
    yield Site(server, nats, etcd)
    server.kill()
    nats.stop()
    etcd.stop()


async def cluster(etcd: Etcd) -> str:
    """The cluster's id."""
    store = await open_etcd([etcd.url], compaction_interval=0)
    await store.close()
    return store.epoch


async def test_positions_from_before_mean_nothing_and_all_that_was_saved_ends(own_site: Site, tmp_path: Path) -> None:
    etcd, server = own_site.etcd, own_site.server
    assert etcd is not None
    async with Belt(own_site, tmp_path) as belt:
        grpc, jetstream = Hold(), Hold()
        belt.drive("grpc", grpc)
        belt.drive("jetstream", jetstream, transport="jetstream")
        await belt.pipeline(step("a", "grpc"), step("b", "jetstream"), graph=True)
        for number in range(30):
            await belt.pipeline(step("a", "grpc"), name=f"other-{number}")
        run = await belt.start()
        for name in "ab":
            await belt.until_step(run, name, "RUNNING")
        await asyncio.to_thread(etcd.save, tmp_path / "snapshot")
        grpc.released.set()
        jetstream.released.set()
        assert state(await belt.ended(run)) == "SUCCEEDED"
        later = [await belt.start() for _ in range(5)]
        for each in later:
            await belt.ended(each)
        cursor = await until_cursor(belt.address, belt.namespace)
        before = await cluster(etcd)

        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(etcd.stop)
        await asyncio.to_thread(etcd.restore, tmp_path / "snapshot")
        await asyncio.to_thread(etcd.start)
        await asyncio.to_thread(server.start)
        assert await cluster(etcd) == before

        ended = await belt.ended(run)
        assert state(ended) == "SUCCEEDED"
        assert [each.state for each in one(ended.steps, "b").attempts] == [6, 5]
        for each in later:
            with pytest.raises(NotFound):
                await belt.client.runs.get(each.id)

        # The new history comes to the revision of the old cursor, and past it.
        async def passed() -> bool:
            await belt.ended(await belt.start())
            now = await until_cursor(belt.address, belt.namespace)
            return parse(now)[1] > parse(cursor)[1]

        await until(passed)
        said = await until_snapshot(belt.address, belt.namespace, cursor)
        assert said[0].HasField("reset")

        # A restart of the server alone leaves cursors as they are.
        cursor = said[-1].cursor
        assert await asyncio.to_thread(server.stop) == 0
        await asyncio.to_thread(server.start)
        kept = await until_cursor(belt.address, belt.namespace)
        assert parse(kept)[0] == parse(cursor)[0]
        assert [run async for run in belt.client.runs.list(states=[RunState.RUN_STATE_RUNNING])] == []
    assert server.log.read_text().count("store_restored") == 1

"""A backup taken under load, restored after a kill, on a broker that has gone on meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conveyor.sdk import NotFound, Unavailable
from conveyor.v1.run_pb2 import RunState
from tests.support.behaviour import Counted, Hold, ok
from tests.support.belt import Belt, Site, one, state, step
from tests.support.cli import Cli, Done
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until
from tests.support.watch import until_cursor, until_snapshot

QUICK = ["--session-ttl", "3s", "--lease-ttl", "2s"]


@pytest.fixture(scope="module")
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server on SQLite, and a broker that knows nothing of restores."""
    directory = tmp_path_factory.mktemp("backups")
    nats = NatsServer(directory / "nats").start()
    server = ConveyorServer(directory / "server", ["--nats", nats.url, *QUICK]).start()
    yield Site(server, nats)
    server.kill()
    nats.stop()


async def command(site: Site, name: str, file: Path, *arguments: str) -> Done:
    data = site.server.directory / "data"
    return await asyncio.to_thread(Cli(), "server", name, "--data-dir", str(data), str(file), *arguments)


async def restored(site: Site, file: Path) -> None:
    """Kill the server, put the store back to the backup, and start it again."""
    await asyncio.to_thread(site.server.kill)
    assert (await command(site, "restore", file, "--force")).code == 0
    await asyncio.to_thread(site.server.start)


class Writers:
    """Clients that start runs one after another; those acknowledged are kept."""

    def __init__(self, belt: Belt, count: int) -> None:
        self.acknowledged: list[str] = []
        self._belt = belt
        self._tasks = [asyncio.create_task(self._write()) for _ in range(count)]

    async def _write(self) -> None:
        while True:
            self.acknowledged.append((await self._belt.client.runs.start("app", "shop", "release")).id)

    async def stop(self) -> None:
        """End them."""
        for task in self._tasks:
            task.cancel()
        for answer in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(answer, asyncio.CancelledError | Unavailable), answer


async def test_what_was_acknowledged_before_the_backup_is_there_and_ends(own_site: Site, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    async with Belt(own_site, tmp_path) as belt:
        belt.drive("grpc", ok, slots=32)
        belt.drive("jetstream", ok, transport="jetstream", slots=32)
        await belt.pipeline(step("a", "grpc"), step("b", "jetstream"), step("c", "grpc"))
        await belt.start(resource="shop")
        writers = Writers(belt, 10)
        await until(lambda: len(writers.acknowledged) > 50)
        before = list(writers.acknowledged)
        assert (await command(own_site, "backup", file)).code == 0
        backed_up = len(writers.acknowledged)
        await until(lambda: len(writers.acknowledged) > backed_up + 50)
        cursor = await until_cursor(belt.address, belt.namespace)
        await asyncio.to_thread(own_site.server.kill)
        await writers.stop()
        await restored(own_site, file)

        said = await until_snapshot(belt.address, belt.namespace, cursor)
        assert said[0].HasField("reset")
        there = {run.id async for run in belt.client.runs.list()}
        assert there >= set(before)
        gone = set(writers.acknowledged) - there
        assert gone >= set(writers.acknowledged[-10:])
        with pytest.raises(NotFound):
            await belt.client.runs.get(min(gone))
        for run in there:
            assert state(await belt.ended(run)) == "SUCCEEDED"
        assert [run async for run in belt.client.runs.list(states=[RunState.RUN_STATE_RUNNING])] == []
        # Runs that are made now go the same way.
        assert state(await belt.ended(await belt.client.runs.start("app", "shop", "release"))) == "SUCCEEDED"
    assert await asyncio.to_thread(own_site.server.stop) == 0
    with closing(sqlite3.connect(own_site.server.directory / "data" / "store" / "conveyor.db")) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    log = own_site.server.log.read_text()
    await asyncio.to_thread(own_site.server.start)
    assert "store_restored" in log
    assert "Traceback" not in log
    assert "[error" not in log


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
async def test_a_step_that_ended_after_the_backup_is_done_again(own_site: Site, tmp_path: Path, transport: str) -> None:
    """Its result is in no store, and the broker takes its ticket for answered."""
    file = tmp_path / "backup"
    async with Belt(own_site, tmp_path) as belt:
        hold = Hold()
        belt.drive("hold", hold, transport=transport)
        await belt.pipeline(step("a", "hold"))
        run = await belt.start()
        await belt.until_step(run, "a", "RUNNING")
        assert (await command(own_site, "backup", file)).code == 0
        hold.released.set()
        assert state(await belt.ended(run)) == "SUCCEEDED"
        later = await belt.start()
        await belt.ended(later)
        hold.released.clear()
        await restored(own_site, file)
        await until(lambda: hold.count == 3)
        hold.released.set()
        ended = await belt.ended(run)
        assert state(ended) == "SUCCEEDED"
        if transport == "jetstream":
            assert [each.state for each in one(ended.steps, "a").attempts] == [6, 5]
        with pytest.raises(NotFound):
            await belt.client.runs.get(later.id)


async def test_a_step_that_waited_for_a_delivery_is_sent_again(own_site: Site, tmp_path: Path) -> None:
    """Its ticket was on the broker at the backup, and was delivered and answered afterwards."""
    file = tmp_path / "backup"
    async with Belt(own_site, tmp_path) as belt:
        hold = Hold()
        driver = belt.drive("hold", hold, transport="jetstream", slots=1)
        await belt.pipeline(step("a", "hold"))
        runs = [await belt.start() for _ in range(3)]
        await until(lambda: hold.count == 1)
        tickets = Counted()
        for run in runs:
            await belt.until_step(run, "a", "RUNNING", "QUEUED")
        assert (await command(own_site, "backup", file)).code == 0
        hold.released.set()
        for run in runs:
            assert state(await belt.ended(run)) == "SUCCEEDED"
        await belt.drained(driver)
        await restored(own_site, file)
        belt.drive("hold", tickets, transport="jetstream")
        for run in runs:
            assert state(await belt.ended(run)) == "SUCCEEDED"
        assert {job.run for job in tickets.jobs} == {run.id for run in runs}

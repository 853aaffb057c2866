"""That faults of the environment strike for real, and what users see meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from conveyor.sdk import ResourceExhausted
from conveyor.v1.run_pb2 import Run
from tests.faults import store
from tests.faults.clock import HOUR, set_clock
from tests.faults.cluster import Cluster, Layout
from tests.support.behaviour import Hold, ok
from tests.support.belt import Belt, Site, state, states, step
from tests.support.small_disk import clear, fill, is_full, small_disk
from tests.support.wait import until


def _belt(cluster: Cluster, directory: Path) -> Belt:
    return Belt(Site(cluster.servers[0], cluster.nats, cluster.etcd), directory, address=cluster.addresses)


@contextmanager
def _small_disk(place: Path, mebibytes: int) -> Iterator[Path]:
    with ExitStack() as mounted:
        try:
            mounted.enter_context(small_disk(place, mebibytes))
        except (PermissionError, FileNotFoundError) as error:
            pytest.skip(f"NO FULL DISK TESTED: no file system of its own can be mounted: {error}")
        yield place


async def _without_room(
    cluster: Cluster, directory: Path, fill_up: Callable[[], int], make_room: Callable[[], None]
) -> None:
    """A run is under way when the store becomes full, and its worker answers while it is."""
    async with _belt(cluster, directory) as belt:
        held = Hold()
        belt.drive("a", held)
        belt.drive("b", ok)
        await belt.pipeline(step("a"), step("b"))
        run = await belt.start(resource="before")
        await held.started.wait()
        process, log = cluster.servers[0].pid, cluster.servers[0].log

        assert await asyncio.to_thread(fill_up) > 0
        with pytest.raises(ResourceExhausted):
            await belt.start(resource="during")
        held.released.set()
        await until(lambda: "commit_refused" in log.read_text(), "the result to find no room")
        found = await belt.client.runs.get(run.id)
        assert states(found) == {"a": "RUNNING", "b": "PENDING"}
        assert [each.id async for each in belt.client.runs.list()] == [run.id]

        await asyncio.to_thread(make_room)
        ended = await belt.ended(run)
        assert state(ended) == "SUCCEEDED"
        assert [len(each.attempts) for each in ended.steps] == [1, 1]
        assert [(job.run, job.step, job.attempt) for job in held.jobs] == [(run.id, "a", 1)]

        async def there_is_room() -> list[Run]:
            try:
                return [await belt.start(resource="after")]
            except ResourceExhausted:
                return []

        made: list[Run] = await until(there_is_room, "room to be made use of")
        assert state(await belt.ended(made[0])) == "SUCCEEDED"
        assert {each.id async for each in belt.client.runs.list()} == {run.id, made[0].id}
        assert cluster.servers[0].running
        assert cluster.servers[0].pid == process


async def test_etcd_at_its_quota_refuses_writes_and_goes_on_without_a_restart(tmp_path: Path) -> None:
    layout = Layout("etcd", etcd_arguments=("--quota-backend-bytes", str(16 << 20)))
    async with Cluster(tmp_path / "cluster", layout) as cluster:
        await _without_room(cluster, tmp_path, lambda: store.fill(cluster), lambda: store.clear(cluster))


async def test_a_full_disk_refuses_writes_and_goes_on_without_a_restart(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "cluster" / "server-0" / "data", 24) as place:
        async with Cluster(tmp_path / "cluster", Layout("sqlite")) as cluster:
            await _without_room(cluster, tmp_path, lambda: fill(place), lambda: clear(place))


async def test_a_full_disk_of_the_broker_stops_only_those_who_need_it(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "cluster" / "nats" / "store", 24) as place:
        async with Cluster(tmp_path / "cluster", Layout("sqlite")) as cluster, _belt(cluster, tmp_path) as belt:
            direct, over_broker = Hold(), Hold()
            belt.drive("a", direct)
            belt.drive("b", ok)
            belt.drive("c", over_broker, transport="jetstream")
            belt.drive("d", ok, transport="jetstream")
            await belt.pipeline(step("a"), step("b"), name="direct")
            await belt.pipeline(step("c"), step("d"), name="over-broker")
            goes_on, waits = await belt.start("direct"), await belt.start("over-broker")
            await until(lambda: direct.started.is_set() and over_broker.started.is_set(), "both to be at work")
            process = cluster.servers[0].pid

            await asyncio.to_thread(fill, place)
            assert is_full(place)
            # Its result waits some seconds for these lines to be stored, and then goes on without.
            for _ in range(20):
                direct.jobs[0].log("x" * 1000)
            direct.released.set()
            over_broker.released.set()
            assert state(await belt.ended(goes_on)) == "SUCCEEDED"
            log = cluster.nats.log
            await until(lambda: "no space left on device" in log.read_text(), "the broker to find no room")
            during = await belt.start("over-broker")
            assert state(await belt.client.runs.get(during.id)) == "RUNNING"

            # A nats-server that failed to write goes on only after a restart.
            clear(place)
            await cluster.kill(cluster.nats)
            await cluster.restart(cluster.nats)
            for run in (waits, during):
                ended = await belt.ended(run)
                assert state(ended) == "SUCCEEDED"
                assert [len(each.attempts) for each in ended.steps] == [1, 1]
            # Whether a ticket was delivered may have been among what the broker could not write.
            assert over_broker.count >= 2
            assert cluster.servers[0].pid == process


async def test_the_servers_clock_steps_and_is_where_it_was_told_after_a_restart(tmp_path: Path) -> None:
    async with Cluster(tmp_path / "cluster", Layout("sqlite", stepping_clock=True)) as cluster:
        assert cluster.clock is not None
        async with _belt(cluster, tmp_path) as belt:
            await belt.pipeline(step("nobody"))
            now = (await belt.start()).create_time.ToSeconds()
            for seconds in (HOUR, -HOUR):
                set_clock(cluster.clock, seconds)
                await cluster.restart(cluster.servers[0])
                ahead = (await belt.start()).create_time.ToSeconds() - now
                assert abs(ahead - seconds) < HOUR / 2

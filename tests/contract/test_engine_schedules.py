"""Each time of a schedule starts one run: whoever else tries, whatever answer is lost, and whoever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import pytest_asyncio

from conveyor.engine import schedules
from conveyor.engine.presence import Presence
from conveyor.engine.schedules import Scheduler
from conveyor.state import keys
from conveyor.state.kinds import DEFINITION, PIPELINE, RESOURCE, SCHEDULE
from conveyor.state.objects import Mode
from conveyor.state.repositories import Repositories
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Put
from conveyor.v1 import pipeline_pb2, resource_definition_pb2, resource_pb2, run_pb2, schedule_pb2
from conveyor.v1.schedule_pb2 import Overlap, Schedule
from tests.support.faulty import Clock, once, touches
from tests.support.rig import RUN_CANCELLED, Replica, step, until

StartReplica = Callable[..., Awaitable[Replica]]

HOUR = 3600
MINUTE = 60


class Leads:
    """Believes to lead as long as a test says so."""

    leading_for = 1.0


@dataclass
class Site:
    """A replica with its repositories and its scheduler."""

    replica: Replica
    repositories: Repositories
    scheduler: Scheduler
    presence: Leads
    task: asyncio.Task[None]

    async def write(self, *fields: Any, mode: Mode = Mode.CREATE, **more: Any) -> Schedule:
        """A schedule that is due at each whole hour."""
        wanted = {"name": "nightly", "definition": "app", "resource": "x", "cron": "0 * * * *", **more}
        item = Schedule(namespace="default", **cast(Any, wanted))
        return (await self.repositories.objects.write(SCHEDULE, item, mode)).item.object

    async def runs(self, name: str = "nightly") -> list[str]:
        """The runs that a schedule started, the earliest first."""
        found, _ = await self.replica.runs.page(keys.index_schedule("default", name), "", 1000)
        return found[::-1]

    async def both(self) -> list[str] | None:
        """The two runs that it started, once they are there."""
        found = await self.runs()
        return found if len(found) == 2 else None

    async def record(self, name: str = "nightly") -> storage_pb2.ScheduleRecord:
        """What is stored of what came of it."""
        found = await self.repositories.schedules.read("default", name)
        assert found is not None
        return found.record

    async def decided(self, time: int, name: str = "nightly") -> storage_pb2.ScheduleRecord:
        """The same, once it is done with this time."""

        async def done() -> storage_pb2.ScheduleRecord | None:
            record = await self.record(name)
            return record if record.decided_time >= time * 1_000_000 else None

        return cast(storage_pb2.ScheduleRecord, await until(done))

    async def die(self) -> None:
        """As if the process were gone."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.replica.kill()


@pytest.fixture
def clock() -> Clock:
    """Half a minute after a whole hour."""
    clock = Clock()
    clock.advance((30 - clock() / 1e6) % HOUR)
    return clock


Open = Callable[..., Awaitable[Site]]


@pytest_asyncio.fixture
async def site(start_replica: StartReplica, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Starts replicas that share a store and believe to lead."""
    # The clock jumps here, other than a real one.
    monkeypatch.setattr(schedules, "_LONGEST_SLEEP", 0.02)
    monkeypatch.setattr(schedules, "_RETRY_AFTER", 10_000)
    opened: list[Site] = []

    async def open_(name: str) -> Site:
        replica = await start_replica(name, clock=clock)
        repositories = Repositories(replica.store, replica.runs, replica.launcher, clock)
        presence = Leads()
        scheduler = Scheduler(replica.engine, repositories.schedules, replica.store, cast(Presence, presence))
        opened.append(Site(replica, repositories, scheduler, presence, asyncio.create_task(scheduler.run())))
        if len(opened) == 1:
            await setup(repositories)
        return opened[-1]

    yield open_
    for each in opened:
        each.task.cancel()
    await asyncio.gather(*(each.task for each in opened), return_exceptions=True)


async def setup(repositories: Repositories) -> None:
    definition = resource_definition_pb2.ResourceDefinition(namespace="default", name="app")
    await repositories.objects.write(DEFINITION, definition, Mode.CREATE)
    pipeline = pipeline_pb2.Pipeline(namespace="default", name="p", steps=[step("a")])
    pipeline.steps[0].timeout.seconds = 100 * HOUR
    await repositories.objects.write(PIPELINE, pipeline, Mode.CREATE)
    resource = resource_pb2.Resource(namespace="default", definition="app", name="x", pipeline="p", on_change=False)
    await repositories.objects.write(RESOURCE, resource, Mode.CREATE)


def hour(clock: Clock) -> int:
    """The whole hour that it has struck last."""
    return clock() // 1_000_000 // HOUR * HOUR


async def test_of_two_that_believe_to_lead_one_starts_each_run(site: Open, clock: Clock) -> None:
    both = [await site("one"), await site("two")]
    names = [f"s{i}" for i in range(10)]
    for i, name in enumerate(names):
        await both[i % 2].write(name=name, overlap=Overlap.OVERLAP_ALLOW)
    for count in range(1, 6):
        clock.advance(HOUR)
        for name in names:
            record = await both[0].decided(hour(clock), name)
            assert (record.started, record.skipped, record.missed, record.failed) == (count, 0, 0, 0)
    for name in names:
        assert len(await both[0].runs(name)) == 5
    # Nobody's workers stay taken by runs that never were.
    assert all(not each.replica.held for each in both)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("what", ["run", "record"])
async def test_a_lost_answer_starts_no_second_run(site: Open, clock: Clock, where: str, what: str) -> None:
    only = await site("one")
    await only.write(overlap=Overlap.OVERLAP_SKIP)
    if what == "record":
        # The next time only writes that it is skipped.
        clock.advance(HOUR)
        await only.decided(hour(clock))
    only.replica.store.lose = once(where, touches("schedule-status"))
    clock.advance(HOUR)
    record = await only.decided(hour(clock))
    assert (record.started, record.skipped) == ((1, 0) if what == "run" else (1, 1))
    assert await only.runs() == list(record.runs)
    clock.advance(HOUR)
    await only.decided(hour(clock))
    assert len(await only.runs()) == 1


async def test_while_the_store_is_away_a_time_waits_for_its_deadline(site: Open, clock: Clock) -> None:
    only = await site("one")
    await only.write(overlap=Overlap.OVERLAP_ALLOW)
    only.replica.store.away = True
    clock.advance(HOUR)
    await until(lambda: only.replica.store.refused > 3)
    only.replica.store.away = False
    assert (await only.decided(hour(clock))).started == 1
    only.replica.store.full = True
    clock.advance(HOUR)
    await until(lambda: only.replica.store.refused > 8)
    clock.advance(6 * MINUTE)
    only.replica.store.full = False
    record = await only.decided(hour(clock))
    assert (record.started, record.missed, record.failed) == (1, 1, 0)


async def test_what_one_that_dies_leaves_another_does(site: Open, clock: Clock) -> None:
    one = await site("one")
    await one.write(overlap=Overlap.OVERLAP_REPLACE)
    clock.advance(HOUR)
    await one.decided(hour(clock))
    # It dies when the second run is stored, before it cancels the first.
    one.replica.store.lose = lambda puts: one_dies(one, puts)
    clock.advance(HOUR)
    await until(lambda: one.replica.store.away)
    await one.die()

    two = await site("two")
    first, second = await until(two.both)
    head = await two.replica.ended(first)
    assert (head.state, head.reason) == (RUN_CANCELLED, run_pb2.RUN_REASON_REPLACED)

    async def cleared() -> bool:
        return not (await two.record()).replaced

    await until(cleared)
    assert (await two.replica.stored(second)).head.state != RUN_CANCELLED
    assert list((await two.record()).runs) == [first, second]


def one_dies(site: Site, puts: object) -> str:
    """The commit of the second run takes effect, and nothing that comes after it."""
    stored = [put for put in cast(list[Put], puts) if put.key == keys.schedule_status("default", "nightly")]
    if not stored or not storage_pb2.ScheduleRecord.FromString(stored[0].value).replaced:
        return ""
    site.replica.store.away = True
    return "after"


async def test_changes_of_others_are_followed(site: Open, clock: Clock) -> None:
    leads, other = await site("one"), await site("two")
    other.presence.leading_for = -1.0
    await until(lambda: not other.scheduler._times)
    await other.write(cron="0 0 1 1 *")
    await until(lambda: len(leads.scheduler) == 1)
    await other.write(mode=Mode.UPDATE, overlap=Overlap.OVERLAP_ALLOW)
    clock.advance(HOUR)
    await leads.decided(hour(clock))
    await other.write(mode=Mode.UPDATE, paused=True)
    await until(lambda: len(leads.scheduler) == 0)
    await other.write(mode=Mode.UPDATE)
    await until(lambda: len(leads.scheduler) == 1)
    await other.repositories.objects.delete(SCHEDULE, keys.schedule("default", "nightly"))
    await until(lambda: len(leads.scheduler) == 0)
    assert await leads.replica.store.get(keys.schedule_status("default", "nightly")) is None
    assert len(await leads.runs()) == 1
    # Whoever leads later begins with what is stored.
    await leads.write(name="late")
    leads.presence.leading_for, other.presence.leading_for = -1.0, 1.0
    await until(lambda: len(other.scheduler) == 1)
    clock.advance(HOUR)
    assert (await other.decided(hour(clock), "late")).started == 1


async def test_records_that_cannot_be_read_stop_no_other(site: Open, clock: Clock) -> None:
    only = await site("one")
    only.presence.leading_for = -1.0
    await until(lambda: not only.scheduler._times)
    await only.write()
    await only.write(name="odd")
    broken = [Put(keys.schedule("default", "broken"), b"\xff"), Put(keys.schedule_status("default", "odd"), b"\xff")]
    await only.replica.store.commit((), [*broken, Put(keys.schedule_status("default", "broken"), b"\xff")])
    only.presence.leading_for = 1.0
    await until(lambda: len(only.scheduler) == 2)
    clock.advance(HOUR)
    for name in ("nightly", "odd"):
        assert (await only.decided(hour(clock), name)).started == 1


@pytest.mark.parametrize(("ahead", "runs"), [(HOUR, 1), (1000 * HOUR, 2)])
async def test_after_a_clock_that_was_ahead(site: Open, clock: Clock, ahead: int, runs: int) -> None:
    one = await site("one")
    await one.write(overlap=Overlap.OVERLAP_ALLOW)
    clock.advance(ahead)
    await one.decided(hour(clock))
    await one.die()
    clock.advance(-ahead)
    two = await site("two")
    await until(lambda: len(two.scheduler) == 1)
    # What was started ahead of its time by an hour is not started again; after more the schedule goes on at once.
    clock.advance(HOUR)
    if runs == 2:
        await until(two.both)
    clock.advance(HOUR)
    await two.decided(hour(clock))
    assert len(await two.runs()) == runs + 1
    assert (await two.record()).decided_time == hour(clock) * 1_000_000


async def test_a_restored_store_makes_up_for_nothing(site: Open, clock: Clock) -> None:
    only = await site("one")
    only.presence.leading_for = -1.0
    await only.write(missed=schedule_pb2.MISSED_RUNS_RUN_ALL)
    await only.write(name="ahead")
    clock.advance(5 * HOUR)
    await only.repositories.schedules.make_up_for_nothing(clock())
    only.presence.leading_for = 1.0
    await until(lambda: len(only.scheduler) == 2)
    clock.advance(HOUR)
    record = await only.decided(hour(clock))
    assert (record.started, record.missed) == (1, 0)

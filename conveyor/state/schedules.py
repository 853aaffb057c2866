"""Schedules with what came of them, and the runs that they start.

A run that is due is stored in one commit with the record that says so, guarded by the schedule and by that record as
they were read. So each time starts at most one run, however many servers try, and whatever happens to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from google.protobuf.message import DecodeError

from conveyor.core import errors
from conveyor.schedules.cron import Timing, timing
from conveyor.schedules.due import MOST, Due, decide, is_ahead, next_time
from conveyor.state import keys
from conveyor.state.admission import Admission, merged_labels
from conveyor.state.cache import Versioned
from conveyor.state.commits import Committer, Draft
from conveyor.state.fired import Fired
from conveyor.state.kinds import RESOURCE, SCHEDULE
from conveyor.state.lookup import Lookup, missing
from conveyor.state.requests import Slip
from conveyor.state.schedule_changes import unknown
from conveyor.state.starts import Starts
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Conflict, Guard, KeyValue, Put, Store
from conveyor.v1 import run_pb2, schedule_pb2

log = structlog.get_logger("conveyor.state")

_ERROR_CHARS = 1000
_READS_AT_ONCE = 64


class Overtaken(Exception):
    """Somebody else has changed the schedule, or done what was due."""


@dataclass(frozen=True, slots=True)
class Found:
    """A schedule as it is stored, and what came of it so far. Both are shared: never change them."""

    schedule: schedule_pb2.Schedule
    revision: int
    record: storage_pb2.ScheduleRecord
    record_revision: int

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self.schedule.namespace

    @property
    def name(self) -> str:
        """Its name."""
        return self.schedule.name

    @property
    def guards(self) -> list[Guard]:
        """Hold as long as nothing of it has changed."""
        return [
            Guard(keys.schedule(self.namespace, self.name), self.revision),
            Guard(keys.schedule_status(self.namespace, self.name), self.record_revision),
        ]

    @property
    def timing(self) -> Timing:
        """When it is due. Raises ValueError when this server doesn't know the time zone."""
        return timing(self.schedule.cron, self.schedule.time_zone)

    def due(self, now: int) -> Due | None:
        """What has come due; None when nothing has. Raises ValueError as `timing`."""
        it = self.schedule
        deadline = it.deadline.ToMicroseconds() if it.HasField("deadline") else 0
        return decide(self.timing, it.missed, deadline, self.record.decided_time, now)

    def is_odd(self, now: int) -> bool:
        """Whether it must be looked at whenever it is due: something is left to do, or a wrong clock wrote it."""
        return bool(self.record.replaced) or (not self.schedule.paused and is_ahead(self.record.decided_time, now))

    def next(self, now: int) -> int:
        """When it is due next; 0: not at all. Raises ValueError as `timing`."""
        return 0 if self.schedule.paused else next_time(self.timing, self.record.decided_time, now)


class Schedules:
    """The repository of what comes of schedules. All methods raise the store's errors."""

    def __init__(
        self,
        store: Store,
        lookup: Lookup,
        admission: Admission,
        committer: Committer,
        starts: Starts,
        now: Callable[[], int],
    ) -> None:
        self._store = store
        self._lookup = lookup
        self._admission = admission
        self._committer = committer
        self._starts = starts
        self._now = now

    # Reading

    async def read(self, namespace: str, name: str) -> Found | None:
        """A schedule, from the store."""
        schedule, record = await asyncio.gather(
            self._store.get(keys.schedule(namespace, name)), self._store.get(keys.schedule_status(namespace, name))
        )
        return None if schedule is None else _found(schedule, record)

    async def all(self) -> tuple[list[Found], int]:
        """All schedules of all namespaces that can be read, and a revision since which changes are to be looked at."""
        records = await self._store.list(keys.SCHEDULE_STATUS)
        schedules = await self._store.list(keys.SCHEDULES)
        of = {kv.key.removeprefix(keys.SCHEDULE_STATUS): kv for kv in records.items}
        found: list[Found] = []
        for kv in schedules.items:
            try:
                found.append(_found(kv, of.get(kv.key.removeprefix(keys.SCHEDULES))))
            except DecodeError as error:
                log.error("record_not_readable", key=kv.key, error=str(error))
        return found, records.revision

    async def show(self, item: Versioned[schedule_pb2.Schedule]) -> schedule_pb2.ScheduleStatus:
        """What came of a schedule, its unfinished runs included."""
        schedule = item.object
        kv = await self._store.get(keys.schedule_status(schedule.namespace, schedule.name))
        record = _record(kv, self._now())
        status = (await self._statuses([Found(schedule, item.mod_revision, record, 0)]))[0]
        status.active_runs.extend(await self.unfinished(schedule.namespace, record))
        return status

    async def show_many(
        self, namespace: str, items: Sequence[Versioned[schedule_pb2.Schedule]]
    ) -> list[schedule_pb2.ScheduleStatus]:
        """What came of schedules of a namespace."""
        now = self._now()
        found: list[Found] = []
        for start in range(0, len(items), _READS_AT_ONCE):
            part = items[start : start + _READS_AT_ONCE]
            records = await asyncio.gather(
                *(self._store.get(keys.schedule_status(namespace, item.object.name)) for item in part)
            )
            found += [
                Found(item.object, item.mod_revision, _record(kv, now), 0)
                for item, kv in zip(part, records, strict=True)
            ]
        return await self._statuses(found)

    async def _statuses(self, found: Sequence[Found]) -> list[schedule_pb2.ScheduleStatus]:
        now = self._now()
        # Reads time zones, and takes its time for many.
        return await asyncio.to_thread(lambda: [_status(each, now) for each in found])

    async def unfinished(self, namespace: str, record: storage_pb2.ScheduleRecord) -> list[str]:
        """The runs that the schedule started and that have not ended."""
        if not record.runs:
            return []
        runs = list(record.runs)[-MOST:]
        ranges = await self._store.ranges([keys.active(namespace, run) for run in runs])
        return [run for run, there in zip(runs, ranges, strict=True) if there]

    # Starting runs

    async def fire(self, found: Found, due: Due, active: Sequence[str]) -> run_pb2.Run:
        """Start the run that is due, unless anything of the schedule has changed: then raises Overtaken.

        `active` are its unfinished runs. Raises as `Starts.start` does, and errors.UnknownResource.
        """

        async def draft(fresh: bool, slip: Slip | None) -> Draft[run_pb2.Run]:
            current = await self.read(found.namespace, found.name)
            if current is None or current.guards != found.guards:
                raise Overtaken
            record = self._passed(found, due)
            record.last_time = due.time
            fired = Fired(found.name, due.time)
            return await self._draft(found, fired, record, active, slip, fresh=fresh)

        return await self._committer.run(draft, None, self._starts.again(found.namespace))

    async def trigger(self, namespace: str, name: str, slip: Slip | None) -> run_pb2.Run:
        """Start a run at once.

        Raises errors.NotFound, errors.RunUnderWay, errors.UnknownResource, and as `Starts.start` does.
        """

        async def draft(fresh: bool, slip: Slip | None) -> Draft[run_pb2.Run]:
            found = await self.read(namespace, name)
            if found is None:
                raise missing(SCHEDULE, keys.schedule(namespace, name))
            active = await self.unfinished(namespace, found.record)
            if active and not allows_more(found.schedule):
                raise errors.RunUnderWay(
                    f"run {active[-1]}, which schedule {name} started, has not ended; wait for it, or cancel it"
                )
            record = storage_pb2.ScheduleRecord()
            record.CopyFrom(found.record)
            record.last_time = self._now()
            return await self._draft(found, Fired(name), record, active, slip, fresh=fresh)

        return await self._committer.run(draft, slip, self._starts.again(namespace))

    async def _draft(
        self,
        found: Found,
        fired: Fired,
        record: storage_pb2.ScheduleRecord,
        active: Sequence[str],
        slip: Slip | None,
        *,
        fresh: bool,
    ) -> Draft[run_pb2.Run]:
        """The commit that starts a run and stores the record with it."""
        it = found.schedule
        key = keys.resource(it.namespace, it.definition, it.resource)
        resource = await self._lookup.read(RESOURCE, key, fresh=fresh)
        if resource is None:
            raise unknown(it)
        admitted = await self._admission.run(
            resource.object,
            it.pipeline or resource.object.pipeline,
            merged_labels(resource.object.labels, it.run_labels),
            [Guard(key, resource.mod_revision)],
            params=it.params,
            fresh=fresh,
            fired=fired,
        )
        start = self._starts.draft(admitted, slip)
        run = admitted.prepared.run_id
        record.runs[:] = [*active, run][-MOST:]
        if it.overlap == schedule_pb2.OVERLAP_REPLACE:
            record.replaced[:] = active
        record.started += 1
        record.ClearField("last_error")
        record.ClearField("last_error_time")
        return replace(start, guards=[*start.guards, *found.guards], puts=[*start.puts, _put(found, record)])

    # Times that start no run. All raise Conflict when anything of the schedule has changed.

    async def pass_over(self, found: Found, due: Due, *, skipped: bool = False, error: str = "") -> None:
        """Store that what has come due started no run: it was too late, a run had not ended, or it was refused."""
        record = self._passed(found, due)
        record.skipped += skipped
        if error:
            record.failed += 1
            record.last_error = error[:_ERROR_CHARS]
            record.last_error_time = due.time
        await self._store.commit(found.guards, [_put(found, record)])

    async def replaced(self, found: Found) -> None:
        """Store that the runs that were replaced are cancelled."""
        record = storage_pb2.ScheduleRecord()
        record.CopyFrom(found.record)
        del record.replaced[:]
        await self._store.commit(found.guards, [_put(found, record)])

    async def make_up_for_nothing(self, now: int) -> None:
        """Let all schedules go on from now: the store was put back, and what came since is in no store."""
        for kv in (await self._store.list(keys.SCHEDULE_STATUS)).items:
            record = _record(kv, now)
            record.decided_time = max(record.decided_time, now)
            try:
                await self._store.commit([Guard(kv.key, kv.mod_revision)], [Put(kv.key, record.SerializeToString())])
            except Conflict:
                continue  # another server was faster

    def _passed(self, found: Found, due: Due) -> storage_pb2.ScheduleRecord:
        record = storage_pb2.ScheduleRecord()
        record.CopyFrom(found.record)
        record.decided_time = due.decided
        record.missed += due.missed
        return record


def allows_more(schedule: schedule_pb2.Schedule) -> bool:
    """Whether it starts a run while another one of it has not ended."""
    return schedule.overlap in {schedule_pb2.OVERLAP_ALLOW, schedule_pb2.OVERLAP_REPLACE}


def _found(kv: KeyValue, record: KeyValue | None) -> Found:
    schedule = SCHEDULE.decode(kv.value)
    since = schedule.update_time.ToMicroseconds()
    return Found(schedule, kv.mod_revision, _record(record, since), 0 if record is None else record.mod_revision)


def _record(kv: KeyValue | None, since: int) -> storage_pb2.ScheduleRecord:
    """What is stored; of what cannot be read, nothing but the time to go on from."""
    if kv is not None:
        try:
            return storage_pb2.ScheduleRecord.FromString(kv.value)
        except DecodeError as error:
            log.error("record_not_readable", key=kv.key, error=str(error))
    return storage_pb2.ScheduleRecord(decided_time=since)


def _put(found: Found, record: storage_pb2.ScheduleRecord) -> Put:
    return Put(keys.schedule_status(found.namespace, found.name), record.SerializeToString())


def _status(found: Found, now: int) -> schedule_pb2.ScheduleStatus:
    record = found.record
    status = schedule_pb2.ScheduleStatus(
        last_run=record.runs[-1] if record.runs else "",
        last_error=record.last_error,
        started=record.started,
        skipped=record.skipped,
        missed=record.missed,
        failed=record.failed,
    )
    try:
        upcoming = found.next(now)
    except ValueError as error:
        # Another server, with newer time zones, took it.
        status.last_error, upcoming = str(error), 0
    for field, time in (
        (status.next_time, upcoming),
        (status.last_time, record.last_time),
        (status.last_error_time, record.last_error_time),
    ):
        if time:
            field.FromMicroseconds(time)
    return status

"""What the change of a schedule rests on, and what it does to the record of what came of it."""

from __future__ import annotations

from dataclasses import replace

from conveyor.core import errors
from conveyor.state import keys
from conveyor.state.admission import Admission, merged_labels
from conveyor.state.kinds import RESOURCE
from conveyor.state.lookup import Lookup
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Guard, Put, Store
from conveyor.v1 import resource_pb2, schedule_pb2


class ScheduleChanges:
    """Says what belongs to the commit that changes a schedule. Raises the store's errors."""

    def __init__(self, store: Store, lookup: Lookup, admission: Admission) -> None:
        self._store = store
        self._lookup = lookup
        self._admission = admission

    async def change(
        self, item: schedule_pb2.Schedule, current: schedule_pb2.Schedule | None, now: int, *, fresh: bool
    ) -> tuple[list[Guard], list[Put]]:
        """More guards and puts for the commit that stores `item` in place of `current`.

        A schedule that is paused is stored whatever it names: so it can be paused when its resource is gone.

        Raises errors.UnknownResource, errors.UnknownPipeline, errors.DefinitionMismatch, errors.InvalidRequest when
        its parameters do not fit or its runs have too many labels.
        """
        guards = [] if item.paused else await self._check(item, fresh=fresh)
        if current is not None and _times(item) == _times(current):
            return guards, []
        key = keys.schedule_status(item.namespace, item.name)
        kv = await self._store.get(key)
        record = storage_pb2.ScheduleRecord() if kv is None else storage_pb2.ScheduleRecord.FromString(kv.value)
        # What was due by other times, or while it was paused, is not made up for.
        record.decided_time = now
        guards.append(Guard(key, 0 if kv is None else kv.mod_revision))
        return guards, [Put(key, record.SerializeToString())]

    async def _check(self, item: schedule_pb2.Schedule, *, fresh: bool) -> list[Guard]:
        key = keys.resource(item.namespace, item.definition, item.resource)
        found = await self._lookup.read(RESOURCE, key, fresh=fresh)
        if found is None:
            raise unknown(item)
        guards = [Guard(key, found.mod_revision)]
        resource: resource_pb2.Resource = found.object
        try:
            merged_labels(resource.labels, item.run_labels)
            await self._admission.check(
                resource, item.pipeline or resource.pipeline, guards, fresh=fresh, params=item.params
            )
        except errors.InvalidRequest as error:
            raise errors.InvalidRequest(violations=[_of_schedule(each) for each in error.violations]) from None
        return guards


def unknown(item: schedule_pb2.Schedule) -> errors.UnknownResource:
    """The error for a schedule whose resource is not there."""
    return errors.UnknownResource(f"there is no resource {item.definition}/{item.resource}")


def _times(item: schedule_pb2.Schedule) -> tuple[str, str, bool]:
    return item.cron, item.time_zone, item.paused


def _of_schedule(violation: errors.Violation) -> errors.Violation:
    """The violation of a start, by the path that its field has in a schedule."""
    if violation.field == "labels":
        return replace(violation, field="schedule.run_labels")
    given = violation.field.startswith("params")
    return replace(violation, field=f"schedule.{violation.field}") if given else violation

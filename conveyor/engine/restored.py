"""A store that was put back to an earlier state: what the broker knows of its tickets belongs to another history."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from conveyor.core import errors
from conveyor.core.events import Event, TicketWithdrawn, WorkerLost
from conveyor.engine.loop import Engine
from conveyor.state import keys
from conveyor.state.runs import StoredRun, Unreadable
from conveyor.state.schedules import Schedules
from conveyor.store.port import Conflict, Guard, Store
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.engine")

_AT_ONCE = 32


async def take_up(engine: Engine, store: Store, schedules: Schedules) -> None:
    """Free the steps that were given out over JetStream, if the store says that it was restored.

    A ticket that was on the broker when the backup was made may since have been delivered, answered and acknowledged.
    Its result is in no store, so nobody would ever send it again. Steps of gRPC workers need nothing: their workers say
    what they hold. Schedules go on from now: what they started since the backup is in no store. Must be done before
    anything else moves the runs. Raises the store's errors.
    """
    mark = await store.get(keys.RESTORED)
    if mark is None:
        return
    active = await engine.runs.active()
    log.warning("store_restored", active_runs=len(active))
    for start in range(0, len(active), _AT_ONCE):
        await asyncio.gather(*(_free(engine, *key, mark.mod_revision) for key in active[start : start + _AT_ONCE]))
    await schedules.make_up_for_nothing(engine.now())
    # Another server may have been faster.
    with contextlib.suppress(Conflict):
        await store.commit([Guard(keys.RESTORED, mark.mod_revision)], deletes=[keys.RESTORED])


async def _free(engine: Engine, namespace: str, run_id: str, restored_at: int) -> None:
    try:
        run = await engine.run(namespace, run_id)
    except (errors.NotFound, Unreadable):
        return  # The sweep puts it aside.
    # A broadcast ends by its timeout: whoever got it once is not told again.
    if run.revision > restored_at or not run.head.pipeline:
        return
    for event in _events(run):
        await engine.handle(namespace, run_id, event)


def _events(run: StoredRun) -> list[Event]:
    events: list[Event] = []
    lost: set[str] = set()
    for index, record in enumerate(run.state.steps):
        if record is None or record.transport != run_pb2.TRANSPORT_JETSTREAM or not record.token:
            continue
        if record.state == run_pb2.STEP_STATE_QUEUED:
            events.append(TicketWithdrawn(index, record.token))
        elif record.state == run_pb2.STEP_STATE_RUNNING:
            lost.add(record.session)
    events += [WorkerLost(consumer, "the store was restored from a backup") for consumer in sorted(lost)]
    return events

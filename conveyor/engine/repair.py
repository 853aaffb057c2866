"""What is left undone in a stored run is found and done: after a crash, a lost message, or another replica's change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from conveyor.core.events import Continue, NotReceived, RunCreated, WorkerLost
from conveyor.core.locks import run_waits_for_lock, waits_for_lock
from conveyor.core.model import waits_for_runs
from conveyor.core.transitions import apply
from conveyor.engine.workers import Held
from conveyor.state.runs import StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import StoreError
from conveyor.v1 import run_pb2

if TYPE_CHECKING:
    from conveyor.engine.loop import Engine

log = structlog.get_logger("conveyor.engine")


def waits(record: storage_pb2.StepRecord | None) -> bool:
    """Whether the step is queued, belongs to nobody, and lacks nothing but a worker."""
    return (
        record is not None
        and record.state == run_pb2.STEP_STATE_QUEUED
        and not record.token
        and not waits_for_lock(record)
    )


def resume(engine: Engine, run: StoredRun) -> None:
    """Take up a run that was found unfinished. Harmless at any time: each event looks at the run as it is by then.

    Raises what the core raises for a record that makes no sense.
    """
    head = run.head
    key = (head.namespace, head.id)
    engine.set_timer(key, run)
    engine.locks.resume(run)
    if waits_for_runs(head):
        engine.lanes.look_soon(head)
    elif head.state == run_pb2.RUN_STATE_PENDING and not run_waits_for_lock(head):
        engine.spawn(engine.handle(*key, RunCreated()))
    elif apply(run.state, Continue(), engine.now()).dirty:
        # A commit had no room for all that follows, and the next one never came; or something is due.
        engine.spawn(engine.handle(*key, Continue()))
    tickets: list[int] = []
    broadcast: list[int] = []
    lost: dict[str, str] = {}
    for index, record in enumerate(run.state.steps):
        if record is None:
            continue
        if waits(record):
            if run.state.plan.steps[index].driver:
                engine.wait(run, index)
        elif record.token and record.transport == run_pb2.TRANSPORT_JETSTREAM:
            if not run.state.plan.broadcast:
                tickets.append(index)
            elif not record.HasField("ticket"):
                broadcast.append(index)
        elif run.state.plan.steps[index].calls:
            continue
        elif (
            record.token and record.state == run_pb2.STEP_STATE_RUNNING and not _has_holder(engine, run, index, record)
        ):
            lost[record.session] = run.state.plan.steps[index].driver
    engine.calls.resume(run)
    for session, driver in lost.items():
        engine.spawn(_lose(engine, run, driver, session))
    if engine.tickets is not None:
        for index in tickets:
            engine.tickets.publish(run, index)
        if broadcast:
            engine.tickets.publish_broadcast(run, broadcast)


def _has_holder(engine: Engine, run: StoredRun, index: int, record: storage_pb2.StepRecord) -> bool:
    """Whether the session of a running step is known; a worker that is here and doesn't have it never received it."""
    head = run.head
    worker = engine.pool.session(record.session)
    if worker is not None:
        if record.token in worker.held:
            return True
        if worker.reconciling:
            engine.unattached.setdefault(record.session, {})[record.token] = Held(head.namespace, head.id, index)
        else:
            engine.spawn(engine.handle(head.namespace, head.id, NotReceived(index, record.token)))
        return True
    if engine.sessions.has(head.namespace, run.state.plan.steps[index].driver, record.session):
        engine.unattached.setdefault(record.session, {})[record.token] = Held(head.namespace, head.id, index)
        return True
    return not engine.sessions.complete


async def _lose(engine: Engine, run: StoredRun, driver: str, session: str) -> None:
    """Nobody here knows the session. It may be too new for that: what is stored decides."""
    head = run.head
    try:
        if await engine.runs.session_exists(head.namespace, driver, session):
            return
    except StoreError as error:
        log.debug("session_not_checked", session=session, error=str(error))
        return  # The next sweep looks again.
    await engine.handle(head.namespace, head.id, WorkerLost(session, ""))

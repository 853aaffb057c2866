"""What waiting steps wait for, counted at the moment of asking: stored, it would be written anew at every event."""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.core.deadlines import stop_deadline
from conveyor.core.gates import missing
from conveyor.core.locks import RUN
from conveyor.core.model import TERMINAL_STEP, waits_for_runs
from conveyor.core.selectors import Selector
from conveyor.engine import repair
from conveyor.engine.loop import Engine
from conveyor.engine.workers import takes
from conveyor.state.lanes import lane_key
from conveyor.state.locks import Lock, claim_key, claim_of, holder, open_claims
from conveyor.state.runs import StoredRun
from conveyor.state.sessions import SessionStore
from conveyor.state.views import seen_workers, set_queue_wait, timestamp
from conveyor.v1 import run_pb2

_NEEDS_NAMED = 20
_HOLDERS_NAMED = 20
_AT_WORK = frozenset({run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_STATE_RUNNING, run_pb2.STEP_STATE_RETRYING})


class Waits:
    """Says it of runs that are about to be shown. Any replica may be asked: sessions of all of them are known here."""

    def __init__(self, engine: Engine, sessions: SessionStore) -> None:
        self._engine = engine
        self._sessions = sessions

    async def explain(self, run: StoredRun, shown: run_pb2.Run) -> None:
        """Add to the full view of a run, and to each of its steps, what it waits for. Raises the store's errors."""
        steps = shown.steps
        if waits_for_runs(run.head):
            lane = await self._engine.runs.lanes.read(lane_key(run.head))
            ahead = lane.position(run.head.id)
            if ahead > 0:
                shown.wait.CopyFrom(run_pb2.RunWait(run=lane.entries[0].run, ahead=ahead))
        await self._locks(run, shown)
        queued: dict[tuple[str, Selector], list[int]] = {}
        for index, step in enumerate(steps):
            record = run.state.steps[index]
            if step.state == run_pb2.STEP_STATE_PENDING:
                self._needs(run, index, step.wait)
            elif record is not None and step.state == run_pb2.STEP_STATE_RETRYING:
                _set_until(step.wait, record.next_time)
            elif record is not None and step.state == run_pb2.STEP_STATE_RUNNING and record.cancel_sent:
                _set_until(step.wait, stop_deadline(run.state, index))
            elif record is not None and step.state == run_pb2.STEP_STATE_QUEUED:
                set_queue_wait(step.wait, record)
                gate = run.state.plan.steps[index].gate
                if gate is not None:
                    step.wait.approvals = missing(gate, record)
                elif repair.waits(record):
                    queued.setdefault((step.driver, run.state.selector(index)), []).append(index)
        for (driver, selector), indexes in queued.items():
            await self._row(run, driver, selector, [(index, steps[index].wait) for index in indexes])

    async def _locks(self, run: StoredRun, shown: run_pb2.Run) -> None:
        """Say of the run, and of steps, who has the lock that they wait for."""
        found: dict[str, Lock] = {}
        for index in open_claims(run.state):
            claim = claim_of(run.state, index)
            if claim.held:
                continue
            lock = found.get(claim.key)
            if lock is None:
                lock = found[claim.key] = await self._engine.runs.locks.read(run.head.namespace, claim.key)
            wait = shown.wait.lock if index == RUN else shown.steps[index].wait.lock
            wait.key, wait.limit = claim.key, claim.limit
            wait.holders.extend(map(holder, lock.holders[:_HOLDERS_NAMED]))
            wait.ahead = max(0, lock.ahead(claim_key(run.state, index)))

    def _needs(self, run: StoredRun, index: int, wait: run_pb2.StepWait) -> None:
        plan, states = run.state.plan, run.head.step_states
        step = plan.steps[index]
        if step.is_instance:
            # Those of its matrix that are at work, when it may have only so many at a time.
            open_needs = [i for i in plan.instances[step.matrix_step] if states[i] in _AT_WORK]
        else:
            needs = range(plan.main) if step.is_finally else step.needs
            open_needs = [need for need in needs if states[need] not in TERMINAL_STEP]
        wait.needs.extend(plan.steps[need].id for need in open_needs[:_NEEDS_NAMED])
        wait.need_count = len(open_needs)

    async def _row(
        self, run: StoredRun, driver: str, selector: Selector, waits: Sequence[tuple[int, run_pb2.StepWait]]
    ) -> None:
        """Add who is there for steps of one driver, and how many others go first."""
        head = run.head
        connected = list(self._engine.dispatcher.connected(head.namespace, driver))
        broadcast = run.state.plan.broadcast
        slots = [worker.slots for worker in connected if takes(worker, head.definition, broadcast, selector)]
        ahead = self._engine.pool.ahead(head.namespace, driver, head.id)
        seen = None if connected else await self._sessions.driver(head.namespace, driver)
        for index, wait in waits:
            wait.workers, wait.slots = len(slots), sum(slots)
            wait.other_workers = len(connected) - len(slots)
            if index in ahead:
                wait.ahead = ahead[index]
            if seen is not None:
                wait.last_workers.extend(seen_workers(seen))


def _set_until(wait: run_pb2.StepWait, time: int) -> None:
    until = timestamp(time)
    if until is not None:
        wait.until.CopyFrom(until)

"""How a run begins: at its turn, and with its lock; and how a step goes on that has got its own."""

from __future__ import annotations

from conveyor.core import limits
from conveyor.core.draft import Draft
from conveyor.core.events import LockGranted, RunCreated
from conveyor.core.locks import RUN, run_waits_for_lock, waiting_message, waits_for_lock
from conveyor.core.model import Decision, RunState, waits_for_runs
from conveyor.core.rules import may_start
from conveyor.core.run_copy import MAX_RECORD_BYTES
from conveyor.core.settle import find_candidates, settle
from conveyor.v1 import run_pb2


def on_created(state: RunState, event: RunCreated, now: int, jitter: float) -> Decision:
    """Start a run whose turn it is; one that needs a lock waits for it first."""
    head = state.head
    if head.state != run_pb2.RUN_STATE_PENDING or run_waits_for_lock(head):
        return Decision(state)
    if waits_for_runs(head) and not event.turn:
        return Decision(state)
    draft = Draft(state, now, jitter)
    if head.lock.key:
        _wait_for_lock(draft)
    else:
        _begin(draft)
    return draft.decide()


def on_lock_granted(state: RunState, event: LockGranted, now: int, jitter: float) -> Decision:
    """Go on with a run or a step that waited for its lock."""
    if event.index == RUN:
        if not run_waits_for_lock(state.head):
            return Decision(state)
        draft = Draft(state, now, jitter)
        draft.head.lock.held = True
        _begin(draft)
        return draft.decide()
    # An instance of a matrix may be newer than the state in hand.
    record = state.steps[event.index] if event.index < len(state.steps) else None
    if record is None or record.state != run_pb2.STEP_STATE_QUEUED or not waits_for_lock(record):
        return Decision(state)
    # One that fail-fast or a cancel is about to stop is left to them.
    if not may_start(state.plan, state.head, state.head.step_states, state.failed, event.index):
        return Decision(state)
    draft = Draft(state, now, jitter)
    draft.grant(event.index)
    return draft.decide()


def _wait_for_lock(draft: Draft) -> None:
    head = draft.head
    head.deadline = 0  # Its timeout counts from its start.
    head.reason = run_pb2.RUN_REASON_WAITING_FOR_LOCK
    head.message = waiting_message(head.lock.key)
    draft.joins.append(RUN)


def _begin(draft: Draft) -> None:
    head, now = draft.head, draft.now
    head.deadline = min(head.deadline or now + draft.plan.timeout, now + draft.plan.timeout)
    head.state = run_pb2.RUN_STATE_RUNNING
    head.reason = run_pb2.RUN_REASON_UNSPECIFIED
    head.message = ""
    draft.timers.append(head.deadline)
    if draft.plan.broadcast and not draft.plan.steps:
        head.reason = run_pb2.RUN_REASON_NO_DRIVER
        head.message = f"no driver listens to {head.definition}"
    # The same commit stores the snapshot, which leaves little room for params of the first steps.
    draft.bytes_taken = MAX_RECORD_BYTES - limits.STEP_PARAMS_BYTES
    find_candidates(draft)
    settle(draft)

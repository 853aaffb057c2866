"""What becomes of runs and steps whose time is up."""

from __future__ import annotations

from conveyor.core.draft import Draft
from conveyor.core.gates import decide_in_time
from conveyor.core.locks import waits_for_lock
from conveyor.core.model import RunState
from conveyor.core.plan import SECOND
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

TIMEOUT_GRACE = 30 * SECOND
"""How long workers of a run or step that timed out have to confirm that they stopped."""

INSTANCE_FAILED = "another instance failed"
"""Why an instance of a matrix is stopped, in words."""

CLOCKS_DIFFER = SECOND
"""By how much the clocks of two replicas may differ without the one's deadlines being moved by the other."""


def end_in_time(draft: Draft) -> None:
    """Begin to cancel a run whose timeout has passed; it is going to be FAILED. Finally steps have their own bound."""
    head = draft.head
    if head.state == run_pb2.RUN_STATE_CANCELLING or not draft.open_main or head.deadline > draft.now:
        return
    if not head.deadline:
        return  # It has not started.
    message = f"the run took longer than {draft.plan.timeout / SECOND:g} s"
    draft.begin_cancelling(run_pb2.RUN_STATE_FAILED, run_pb2.RUN_REASON_TIMED_OUT, message, TIMEOUT_GRACE)


def grace_left(head: storage_pb2.RunHead, now: int) -> int:
    """How long workers of a run that is cancelled still have, in microseconds: never longer than they ever had."""
    left = max(0, head.cancel_deadline - now)
    return min(left, head.cancel_grace) if head.HasField("cancel_grace") else left


def stop_deadline(state: RunState, index: int) -> int:
    """Until when a running step that was told to stop has to confirm it."""
    record, head = state.steps[index], state.head
    if head.cancel_deadline and not state.plan.steps[index].is_finally:
        return head.cancel_deadline
    # An instance of a matrix that was stopped by itself.
    return record.next_time if record is not None else 0


def stop_order(state: RunState, index: int, now: int) -> tuple[int, str]:
    """What the worker of such a step is told when it may not have heard: how long it has, and why."""
    head = state.head
    if head.cancel_deadline and not state.plan.steps[index].is_finally:
        return grace_left(head, now), head.cancel_message or head.message
    return min(max(0, stop_deadline(state, index) - now), TIMEOUT_GRACE), INSTANCE_FAILED


def not_confirmed(record: storage_pb2.StepRecord) -> str:
    """What is said of a step that was told to stop and is given up."""
    if record.child_run:
        return f"run {record.child_run} had not ended in time, and may still be at work, at its finally steps too"
    return f"worker {record.worker} did not confirm in time that it stopped, and may still be at work"


def bring_run_nearer(draft: Draft) -> None:
    """Move deadlines of the run that lie further off than they can: they were stored while a clock was ahead."""
    head, plan = draft.head, draft.plan
    if head.state == run_pb2.RUN_STATE_PENDING:
        return
    if not draft.open_main:
        head.finally_deadline = _nearer(draft, head.finally_deadline, plan.finally_timeout)
    elif head.state != run_pb2.RUN_STATE_CANCELLING:
        head.deadline = _nearer(draft, head.deadline, plan.timeout)
    elif head.HasField("cancel_grace"):
        head.cancel_deadline = _nearer(draft, head.cancel_deadline, head.cancel_grace)


def bring_step_nearer(draft: Draft, index: int) -> None:
    """The same for the `next_time` of a step."""
    record = draft.peek(index)
    if record is None or (draft.cancelling and not draft.plan.steps[index].is_finally):
        return
    nearer = _nearer(draft, record.next_time, _bound(draft, index, record))
    if nearer != record.next_time and draft.fits(index):
        draft.edit(index).next_time = nearer


def _bound(draft: Draft, index: int, record: storage_pb2.StepRecord) -> int:
    """How far off the step's `next_time` was when it was set, at most."""
    step = draft.plan.steps[index]
    if record.state == run_pb2.STEP_STATE_RETRYING:
        return step.retry.backoff(record.failures, 1.0)
    if record.state == run_pb2.STEP_STATE_QUEUED and not draft.plan.broadcast:
        return step.queue_timeout
    # One that was told to stop, and whose run is not cancelled, has only that long to confirm it.
    return TIMEOUT_GRACE if record.cancel_sent else step.timeout


def _nearer(draft: Draft, time: int, bound: int) -> int:
    """The time, or `bound` from now when that is clearly earlier."""
    nearest = draft.now + bound
    if time <= nearest + CLOCKS_DIFFER:
        return time
    draft.timers.append(nearest)
    return nearest


def step_due(draft: Draft, index: int) -> None:
    """The `next_time` of a step has come: its back-off is over, or its attempt or its wait took too long."""
    if (draft.cancelling and not draft.plan.steps[index].is_finally) or not draft.fits(index):
        return
    state, step, record = draft.states[index], draft.plan.steps[index], draft.edit(index)
    if state == run_pb2.STEP_STATE_RETRYING:
        if draft.may_start(index):
            draft.queue(index, next_attempt=True)
    elif draft.plan.broadcast and record.transport != run_pb2.TRANSPORT_GRPC:
        message = "the driver did not answer the broadcast"
        draft.finish(index, run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_NOT_REPORTED, message)
    elif step.gate is not None:
        decide_in_time(draft, index)
    elif state == run_pb2.STEP_STATE_QUEUED:
        said = f" ({record.message})" if record.message else ""
        what = "it did not get its lock" if waits_for_lock(record) else "no worker took it"
        message = f"{what} within {step.queue_timeout / SECOND:g} s{said}"
        draft.finish(index, run_pb2.STEP_STATE_FAILED, run_pb2.STEP_REASON_QUEUE_TIMED_OUT, message)
    elif state == run_pb2.STEP_STATE_RUNNING and record.cancel_sent:
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_ABANDONED, not_confirmed(record))
    elif state == run_pb2.STEP_STATE_RUNNING:
        message = f"attempt {record.attempt} took longer than {step.timeout / SECOND:g} s"
        draft.tell_to_stop(index, message, TIMEOUT_GRACE)
        retryable = not draft.plan.broadcast
        draft.retry_or_fail(index, run_pb2.STEP_REASON_TIMED_OUT, message, retryable=retryable)

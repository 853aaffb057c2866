"""What becomes of runs and steps whose time is up."""

from __future__ import annotations

from conveyor.core.draft import Draft
from conveyor.core.plan import SECOND
from conveyor.v1 import run_pb2

TIMEOUT_GRACE = 30 * SECOND
"""How long workers of a run or step that timed out have to confirm that they stopped."""


def end_in_time(draft: Draft) -> None:
    """Begin to cancel a run whose timeout has passed; it is going to be FAILED. Finally steps have their own bound."""
    head = draft.head
    if head.state == run_pb2.RUN_STATE_CANCELLING or not draft.open_main or head.deadline > draft.now:
        return
    if not head.deadline:
        return  # It has not started.
    message = f"the run took longer than {draft.plan.timeout / SECOND:g} s"
    draft.begin_cancelling(run_pb2.RUN_STATE_FAILED, run_pb2.RUN_REASON_TIMED_OUT, message, TIMEOUT_GRACE)


def step_due(draft: Draft, index: int) -> None:
    """The `next_time` of a step has come: its back-off is over, or its attempt or its wait took too long."""
    if (draft.cancelling and index < draft.plan.main) or not draft.fits(index):
        return
    state, step, record = draft.states[index], draft.plan.steps[index], draft.edit(index)
    if state == run_pb2.STEP_STATE_RETRYING:
        if draft.may_start(index):
            draft.queue(index, next_attempt=True)
    elif draft.plan.broadcast and record.transport != run_pb2.TRANSPORT_GRPC:
        message = "the driver did not answer the broadcast"
        draft.finish(index, run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_NOT_REPORTED, message)
    elif state == run_pb2.STEP_STATE_QUEUED:
        said = f" ({record.message})" if record.message else ""
        message = f"no worker took it within {step.queue_timeout / SECOND:g} s{said}"
        draft.finish(index, run_pb2.STEP_STATE_FAILED, run_pb2.STEP_REASON_QUEUE_TIMED_OUT, message)
    elif state == run_pb2.STEP_STATE_RUNNING:
        message = f"attempt {record.attempt} took longer than {step.timeout / SECOND:g} s"
        draft.tell_to_stop(index, message, TIMEOUT_GRACE)
        retryable = not draft.plan.broadcast
        draft.retry_or_fail(index, run_pb2.STEP_REASON_TIMED_OUT, message, retryable=retryable)

"""Steps that run a pipeline: what they have to do with their runs."""

from __future__ import annotations

from conveyor.core import limits
from conveyor.core.attempts import give_out, is_free, start
from conveyor.core.deadlines import INSTANCE_FAILED
from conveyor.core.draft import Draft
from conveyor.core.events import Called, ChildEnded
from conveyor.core.model import Decision, RunState
from conveyor.core.settle import settle
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2

_OUTCOMES: dict[int, result_pb2.Outcome.ValueType] = {
    run_pb2.RUN_STATE_SUCCEEDED: result_pb2.OUTCOME_SUCCEEDED,
    run_pb2.RUN_STATE_FAILED: result_pb2.OUTCOME_FAILED,
    run_pb2.RUN_STATE_CANCELLED: result_pb2.OUTCOME_CANCELLED,
}


def awaits(record: storage_pb2.StepRecord | None, child: str) -> bool:
    """Whether the step waits for this run to end; a run that it has let go it never takes back."""
    return (
        record is not None and record.state == run_pb2.STEP_STATE_RUNNING and record.token == record.child_run == child
    )


def on_called(state: RunState, event: Called, now: int, jitter: float) -> Decision:
    """The runs that steps wait for have their ids. They are made once this is stored, and under no other id."""
    calls = [call for call in event.calls if state.plan.steps[call.index].calls and is_free(state, call.index)]
    if not calls:
        return Decision(state)
    draft = Draft(state, now, jitter)
    for call in calls:
        give_out(draft, call.index, call.run).child_run = call.run
        draft.edit(call.index).child_run = call.run
        start(draft, call.index)
    return draft.decide()


def on_child_ended(state: RunState, event: ChildEnded, now: int, jitter: float) -> Decision:
    """The run of a step has ended, or is never going to be; that of an earlier attempt changes nothing."""
    index = state.plan.index.get(event.step, -1)
    if index < 0 or not awaits(state.steps[index], event.run):
        return Decision(state)
    draft = Draft(state, now, jitter)
    record = draft.edit(index)
    if not event.exists:
        record.child_run = record.attempts[-1].child_run = ""
    invalid, message = event.invalid, event.message
    size = draft.head.result_bytes + len(event.data)
    if not invalid and size > limits.RUN_RESULTS_BYTES:
        invalid = run_pb2.STEP_REASON_RESULT_TOO_LARGE
        message = f"the results of the run would have {size} bytes; the limit is {limits.RUN_RESULTS_BYTES}"
    if not invalid:
        outcome = _OUTCOMES[event.state]
        record.result.CopyFrom(storage_pb2.StoredResult(outcome=outcome, message=message, data=event.data))
        draft.head.result_bytes = size
    if draft.cancelling and not draft.plan.steps[index].is_finally:
        timed_out = draft.head.reason == run_pb2.RUN_REASON_TIMED_OUT
        reason = run_pb2.STEP_REASON_RUN_TIMED_OUT if timed_out else run_pb2.STEP_REASON_RUN_CANCELLED
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message)
    elif invalid:
        draft.finish(index, run_pb2.STEP_STATE_FAILED, invalid, message)
    elif event.state == run_pb2.RUN_STATE_SUCCEEDED:
        draft.finish(index, run_pb2.STEP_STATE_SUCCEEDED)
    elif record.cancel_sent:
        reason = run_pb2.STEP_REASON_INSTANCE_FAIL_FAST
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, INSTANCE_FAILED)
    elif event.state == run_pb2.RUN_STATE_CANCELLED:
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_CHILD_RUN_CANCELLED, message)
    else:
        draft.retry_or_fail(index, run_pb2.STEP_REASON_CHILD_RUN_FAILED, message, retryable=True)
    settle(draft)
    return draft.decide()

"""What becomes of a DriverResult: the table of the design, first fitting row first."""

from __future__ import annotations

from conveyor.core.deadlines import INSTANCE_FAILED
from conveyor.core.draft import MAX_LATE_MESSAGE, MAX_LATE_RESULTS_KEPT, Draft
from conveyor.core.events import ResultReceived
from conveyor.core.limits import RUN_RESULTS_BYTES
from conveyor.core.model import Decision, RunState
from conveyor.core.settle import settle
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2

_OUT = frozenset({run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_STATE_RUNNING})


def on_result(state: RunState, event: ResultReceived, now: int, jitter: float) -> Decision:
    """Match the result with an attempt, and let it count if it is the current one's first."""
    if not event.step:
        return _on_unnamed_result(state, event, now, jitter)
    index = state.plan.index.get(event.step, -1)
    if index < 0:
        return _answer(state, result_pb2.DISPOSITION_NOT_FOUND, f"the run has no step {event.step}")
    if state.plan.steps[index].matrix is not None:
        message = f"step {event.step} has a matrix; results are those of its instances, like {event.step}[0]"
        return _answer(state, result_pb2.DISPOSITION_INVALID, message)
    driver = state.plan.steps[index].driver
    if event.driver != driver or not driver:
        owner = f"belongs to driver {driver}, not to {event.driver}" if driver else "is no driver's work"
        message = f"step {event.step} {owner}"
        return _answer(state, result_pb2.DISPOSITION_INVALID, message)
    record = state.steps[index]
    if record is not None and _is_out(record) and (event.attempt, event.token) == (record.attempt, record.token):
        return _accept(Draft(state, now, jitter), event, index)
    return _not_current(state, event, index, event.attempt, now)


def _on_unnamed_result(state: RunState, event: ResultReceived, now: int, jitter: float) -> Decision:
    """Of an older driver: it answers the step that is out on JetStream for it, else the last that it had."""
    found = last = -1
    for step in state.plan.steps:
        if step.driver != event.driver:
            continue
        record = state.steps[step.index]
        if record is None or not record.attempts:
            last = step.index if last < 0 else last
            continue
        last = step.index
        if event.message_id and any(_digest(event) == a.result_digest for a in record.attempts):
            return _answer(state, result_pb2.DISPOSITION_DUPLICATE, "the same message was there already")
        if found < 0 and _is_out(record) and record.transport == run_pb2.TRANSPORT_JETSTREAM:
            found = step.index
    if found >= 0:
        return _accept(Draft(state, now, jitter), event, found)
    if last < 0:
        return _answer(state, result_pb2.DISPOSITION_INVALID, f"the run has no step of driver {event.driver}")
    record = state.steps[last]
    number = record.attempts[-1].number if record is not None and record.attempts else 0
    return _not_current(state, event, last, number, now)


def _is_out(record: storage_pb2.StepRecord) -> bool:
    return record.state in _OUT and bool(record.token)


def _digest(event: ResultReceived) -> bytes:
    """What is kept: the digest of the content, and which message it came in."""
    return event.digest + event.message_id


def _answer(state: RunState, disposition: result_pb2.Disposition.ValueType, message: str) -> Decision:
    return Decision(state, disposition=disposition, message=message)


def _not_current(state: RunState, event: ResultReceived, index: int, number: int, now: int) -> Decision:
    """Answer a result that changes nothing; one that is new is kept in the history of its attempt."""
    record = state.steps[index]
    attempts = record.attempts if record is not None else ()
    position = next((i for i, attempt in enumerate(attempts) if attempt.number == number), -1)
    if position >= 0:
        attempt = attempts[position]
        if attempt.result_digest and (not event.step or attempt.token == event.token):
            if attempt.result_digest.startswith(event.digest):
                return _answer(state, result_pb2.DISPOSITION_DUPLICATE, "the same result was there already")
            message = "another result of this attempt was first and counts"
            return _answer(state, result_pb2.DISPOSITION_CONFLICT, message)
        for late in attempt.late_results:
            if late.result_digest == _digest(event):
                return _answer(state, late.disposition, "answered before")
    disposition, message = result_pb2.DISPOSITION_STALE_ATTEMPT, "the attempt is not the current one"
    if state.terminal:
        disposition, message = result_pb2.DISPOSITION_RUN_FINISHED, "the run had ended"
    if position < 0 or len(attempts[position].late_results) >= MAX_LATE_RESULTS_KEPT:
        return _answer(state, disposition, message)
    draft = Draft(state, now, 0.5)
    draft.edit(index).attempts[position].late_results.add(
        time=draft.stamp,
        disposition=disposition,
        outcome=event.result.outcome,
        message=event.result.message[:MAX_LATE_MESSAGE],
        result_digest=_digest(event),
    )
    decision = draft.decide(disposition, message)
    if state.terminal:
        # The run's own history is over, whatever its workers still say.
        decision.state.head.update_time = state.head.update_time
    return decision


def _accept(draft: Draft, event: ResultReceived, index: int) -> Decision:
    """The result counts: end the attempt, and the step unless it is tried again."""
    head, result, invalid, message = draft.head, event.result, event.invalid, event.result.message
    record = draft.edit(index)
    if not record.start_time:
        record.start_time = record.attempts[-1].start_time
    if not head.start_time:
        head.start_time = record.start_time
    if record.transport == run_pb2.TRANSPORT_JETSTREAM:
        record.ClearField("ticket")  # it has done its work: nothing to take back
    size = head.result_bytes + len(result.data)
    if not invalid and size > RUN_RESULTS_BYTES:
        invalid = run_pb2.STEP_REASON_RESULT_TOO_LARGE
        message = f"the results of the run would have {size} bytes; the limit is {RUN_RESULTS_BYTES}"
    if not invalid:
        record.result.CopyFrom(result)
        head.result_bytes = size
    digest = _digest(event)
    if draft.cancelling and not draft.plan.steps[index].is_finally:
        timed_out = head.reason == run_pb2.RUN_REASON_TIMED_OUT
        reason = run_pb2.STEP_REASON_RUN_TIMED_OUT if timed_out else run_pb2.STEP_REASON_RUN_CANCELLED
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message, digest)
    elif invalid:
        draft.finish(index, run_pb2.STEP_STATE_FAILED, invalid, message, digest)
    elif result.outcome == result_pb2.OUTCOME_SUCCEEDED:
        draft.finish(index, run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_REASON_UNSPECIFIED, message, digest)
    elif record.cancel_sent:
        reason = run_pb2.STEP_REASON_INSTANCE_FAIL_FAST
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message or INSTANCE_FAILED, digest)
    elif result.outcome == result_pb2.OUTCOME_CANCELLED:
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_DRIVER_CANCELLED, message, digest)
    else:
        retryable = result.retryable if result.HasField("retryable") else True
        draft.retry_or_fail(index, run_pb2.STEP_REASON_DRIVER_FAILED, message, retryable=retryable, digest=digest)
    settle(draft)
    if invalid:
        return draft.decide(result_pb2.DISPOSITION_INVALID, message)
    return draft.decide(result_pb2.DISPOSITION_ACCEPTED)

"""What becomes of a DriverResult: the table of the design, first fitting row first."""

from __future__ import annotations

from conveyor.core.draft import MAX_LATE_RESULTS_KEPT, Draft
from conveyor.core.model import Decision, ResultReceived, RunState
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2

MAX_RESULT_BYTES_PER_RUN = 512 * 1024

_OUT = frozenset({run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_STATE_RUNNING})


def on_result(state: RunState, event: ResultReceived, now: int, jitter: float) -> Decision:
    """Match the result with an attempt, and let it count if it is the current one's first."""
    if event.step:
        index = state.plan.index.get(event.step, -1)
        if index < 0:
            return _answer(state, result_pb2.DISPOSITION_NOT_FOUND, f"the run has no step {event.step}")
        attempt, token = event.attempt, event.token
    else:
        index = _find_unnamed(state, event)
        if index < 0:
            return _answer(state, result_pb2.DISPOSITION_INVALID, f"the run has no step of driver {event.driver}")
        record = state.steps[index]
        attempt, token = (record.attempt, record.token) if record is not None else (0, "")
    step, record = state.plan.steps[index], state.steps[index]
    if event.driver != step.driver:
        return _answer(
            state,
            result_pb2.DISPOSITION_INVALID,
            f"step {step.id} belongs to driver {step.driver}, not to {event.driver}",
        )
    known = _known_answer(record, event, attempt)
    if known is not None:
        return _answer(state, *known)
    if record is None:
        return _answer(state, result_pb2.DISPOSITION_STALE_ATTEMPT, f"step {step.id} was never given out")
    current = (
        not state.terminal
        and record.state in _OUT
        and bool(record.token)
        and attempt == record.attempt
        and token == record.token
    )
    if not current:
        return _keep_late(state, event, index, attempt, now)
    return _accept(Draft(state, now, jitter), event, index)


def _answer(state: RunState, disposition: result_pb2.Disposition.ValueType, message: str) -> Decision:
    return Decision(state, disposition=disposition, message=message)


def _find_unnamed(state: RunState, event: ResultReceived) -> int:
    """The step that an older driver answers: the one that is out on JetStream for it, else the last that it had."""
    last = -1
    for step in state.plan.steps:
        if step.driver != event.driver:
            continue
        record = state.steps[step.index]
        if record is None:
            last = step.index if last < 0 else last
            continue
        if record.transport == run_pb2.TRANSPORT_JETSTREAM and record.state in _OUT and record.token:
            return step.index
        last = step.index
    return last


def _known_answer(
    record: storage_pb2.StepRecord | None, event: ResultReceived, number: int
) -> tuple[result_pb2.Disposition.ValueType, str] | None:
    """The answer to a result of an attempt that is decided, or to one that was answered before."""
    if record is None:
        return None
    for attempt in record.attempts:
        for late in attempt.late_results:
            if late.result_digest == event.digest and attempt.number == number:
                return late.disposition, "answered before"
        if not attempt.result_digest or attempt.number != number:
            continue
        if event.step and attempt.token != event.token:
            continue
        if attempt.result_digest == event.digest:
            return result_pb2.DISPOSITION_DUPLICATE, "the same result was there already"
        return result_pb2.DISPOSITION_CONFLICT, "another result of this attempt was first and counts"
    return None


def _keep_late(state: RunState, event: ResultReceived, index: int, number: int, now: int) -> Decision:
    """Answer a result that came too late, and keep it in the history of its attempt."""
    if state.terminal:
        disposition, message = result_pb2.DISPOSITION_RUN_FINISHED, "the run had ended"
    else:
        disposition, message = result_pb2.DISPOSITION_STALE_ATTEMPT, "the attempt is not the current one"
    record = state.steps[index]
    position = next((i for i, a in enumerate(record.attempts) if a.number == number), -1) if record else -1
    if record is None or position < 0 or len(record.attempts[position].late_results) >= MAX_LATE_RESULTS_KEPT:
        return _answer(state, disposition, message)
    draft = Draft(state, now, 0.5)
    draft.edit(index).attempts[position].late_results.add(
        time=now,
        disposition=disposition,
        outcome=event.result.outcome,
        message=event.result.message,
        result_digest=event.digest,
    )
    return draft.decide(disposition, message)


def _accept(draft: Draft, event: ResultReceived, index: int) -> Decision:
    """The result counts: end the attempt, and the step unless it is tried again."""
    head, result = draft.head, event.result
    record = draft.edit(index)
    if not record.start_time:
        record.start_time = record.attempts[-1].start_time if record.attempts else draft.now
    if not head.start_time:
        head.start_time = draft.now
    invalid, message = event.invalid, result.message
    if not invalid and head.result_bytes + len(result.data) > MAX_RESULT_BYTES_PER_RUN:
        invalid = run_pb2.STEP_REASON_RESULT_TOO_LARGE
        message = (
            f"the results of the run would have {head.result_bytes + len(result.data)} bytes; "
            f"the limit is {MAX_RESULT_BYTES_PER_RUN}"
        )
    if invalid:
        draft.end_attempt(record, run_pb2.STEP_STATE_FAILED, invalid, message, event.digest)
        draft.finish(index, run_pb2.STEP_STATE_FAILED, invalid, message)
        draft.settle()
        return draft.decide(result_pb2.DISPOSITION_INVALID, message)
    previous = len(record.result.data)
    record.result.CopyFrom(result)
    head.result_bytes += len(result.data) - previous
    if draft.cancelling and index < draft.plan.main:
        reason = (
            run_pb2.STEP_REASON_RUN_TIMED_OUT
            if head.reason == run_pb2.RUN_REASON_TIMED_OUT
            else run_pb2.STEP_REASON_RUN_CANCELLED
        )
        draft.end_attempt(record, run_pb2.STEP_STATE_CANCELLED, reason, message, event.digest)
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message)
    elif result.outcome == result_pb2.OUTCOME_SUCCEEDED:
        draft.end_attempt(record, run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_REASON_UNSPECIFIED, message, event.digest)
        draft.finish(index, run_pb2.STEP_STATE_SUCCEEDED, message=message)
    elif result.outcome == result_pb2.OUTCOME_CANCELLED:
        reason = run_pb2.STEP_REASON_DRIVER_CANCELLED
        draft.end_attempt(record, run_pb2.STEP_STATE_CANCELLED, reason, message, event.digest)
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message)
    else:
        reason = run_pb2.STEP_REASON_DRIVER_FAILED
        draft.end_attempt(record, run_pb2.STEP_STATE_FAILED, reason, message, event.digest)
        retryable = result.retryable if result.HasField("retryable") else True
        draft.retry_or_fail(index, reason, message, retryable=retryable)
    draft.settle()
    return draft.decide(result_pb2.DISPOSITION_ACCEPTED)

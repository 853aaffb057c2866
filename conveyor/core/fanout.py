"""A step with a matrix at work: expanded when it may start, a few instances at a time, and ended with the last."""

from __future__ import annotations

from conveyor.core import limits
from conveyor.core.deadlines import INSTANCE_FAILED, TIMEOUT_GRACE
from conveyor.core.draft import Draft
from conveyor.core.inputs import Verdict
from conveyor.core.matrix import grow, values_of
from conveyor.core.model import TERMINAL_STEP
from conveyor.core.rules import is_stopping
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

_NAMED = 10
_SUCCEEDED = run_pb2.STEP_STATE_SUCCEEDED
_LEFT_OUT = frozenset({run_pb2.STEP_REASON_CONDITION_FALSE, run_pb2.STEP_REASON_NOT_DECIDED})


def start(draft: Draft, index: int) -> None:
    """Start a step, or an instance, that may run, unless its expressions say otherwise."""
    step = draft.plan.steps[index]
    if step.matrix is not None:
        _expand(draft, index)
    elif step.judged:
        draft.admit(index, draft.verdict(index))
    else:
        draft.queue(index)


def find_matrices(draft: Draft) -> None:
    """Find all steps whose instances may go on; after a commit that had no room for them."""
    draft.matrices.update(of for of in draft.plan.instances if draft.states[of] == run_pb2.STEP_STATE_RUNNING)


def advance(draft: Draft) -> None:
    """Go on with the matrices that something happened to: stop or start instances, and end those that are done."""
    while draft.matrices:
        index = draft.matrices.pop()
        if draft.states[index] != run_pb2.STEP_STATE_RUNNING:
            continue
        _start_next(draft, index)
        if is_stopping(draft.plan, draft.states, index):
            _stop_others(draft, index)
        # What ended meanwhile has been looked at.
        draft.matrices.discard(index)
        _end_with_last(draft, index)


# The beginning


def _expand(draft: Draft, index: int) -> None:
    """Make the instances of a step; they start when `advance` comes to them."""
    if not draft.has_room(limits.MATRIX_BYTES):
        return  # The commit of the run's snapshot has none.
    inputs, seen = draft.judge(index)
    expansion = inputs.expand(index, seen)
    count = len(expansion.instances)
    total = len(draft.plan.steps) - draft.plan.declared + count
    if expansion.reason:
        draft.admit(index, Verdict(expansion.reason, expansion.message))
        return
    if total > limits.RUN_INSTANCES:
        message = f"the matrices of the run would have {total} instances; at most {limits.RUN_INSTANCES}"
        draft.admit(index, Verdict(run_pb2.STEP_REASON_INPUT_TOO_LARGE, message))
        return
    record = draft.begin(index)
    record.ready_time = record.start_time = draft.stamp
    record.first_instance = len(draft.plan.steps)
    record.instances.extend(expansion.instances)
    draft.bytes_taken += record.ByteSize()
    draft.set_state(index, run_pb2.STEP_STATE_RUNNING)
    if not count:
        draft.finish(index, run_pb2.STEP_STATE_SUCCEEDED, message="its matrix has no combinations")
        return
    draft.grow(grow(draft.plan, index, count))
    _take_over(draft, index, record)
    draft.matrices.add(index)


def _take_over(draft: Draft, index: int, matrix: storage_pb2.StepRecord) -> None:
    """Instances that succeeded in the run that this one retries, and are of the same values, have succeeded here."""
    if not draft.kept:
        return
    for place in draft.plan.instances[index]:
        record = draft.kept.get(draft.plan.steps[place].id)
        if record is not None and record.matrix == values_of(matrix, place):
            draft.take_over(place, record)
    draft.kept = {name: record for name, record in draft.kept.items() if record.matrix_step != matrix.step}


# On the way


def _start_next(draft: Draft, index: int) -> None:
    """Start as many instances as may run at a time."""
    places, matrix = draft.plan.instances[index], draft.plan.steps[index].matrix
    if not _may_start_any(draft, index):
        return
    most = matrix.max_parallel if matrix is not None and matrix.max_parallel else len(places)
    place = places.start - 1
    while True:
        place = draft.states.find(run_pb2.STEP_STATE_PENDING, place + 1, places.stop)
        if place < 0 or _at_work(draft, places) >= most:
            return
        if is_stopping(draft.plan, draft.states, index):
            return
        if not draft.may_start(place):
            draft.finish(place, run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_FAIL_FAST)
        elif draft.fits(place):
            start(draft, place)
        else:
            return


def _may_start_any(draft: Draft, index: int) -> bool:
    """Whether its part of the run is not about to be stopped as a whole."""
    if draft.plan.steps[index].is_finally:
        return draft.head.finally_deadline > draft.now
    return not draft.cancelling


def _at_work(draft: Draft, places: range) -> int:
    states = draft.states[places.start : places.stop]
    return sum(
        states.count(state)
        for state in (run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_STATE_RUNNING, run_pb2.STEP_STATE_RETRYING)
    )


def _stop_others(draft: Draft, index: int) -> None:
    """An instance failed: those that have not started are skipped, the others told to stop."""
    reason, message = run_pb2.STEP_REASON_INSTANCE_FAIL_FAST, INSTANCE_FAILED
    for place in draft.plan.instances[index]:
        state, record = draft.states[place], draft.peek(place)
        if state in TERMINAL_STEP:
            continue
        if record is None:
            draft.finish(place, run_pb2.STEP_STATE_SKIPPED, reason)
        elif state != run_pb2.STEP_STATE_RUNNING:
            if draft.fits(place):
                draft.finish(place, run_pb2.STEP_STATE_SKIPPED, reason, message)
        elif not record.cancel_sent and draft.fits(place):
            draft.tell_to_stop(place, message, TIMEOUT_GRACE)
            told = draft.edit(place)
            told.next_time = min(told.next_time or draft.now + TIMEOUT_GRACE, draft.now + TIMEOUT_GRACE)
            draft.timers.append(told.next_time)


# The end


def _end_with_last(draft: Draft, index: int) -> None:
    """End the step when all of its instances have."""
    places = draft.plan.instances[index]
    ends = [draft.states[place] for place in places]
    if not TERMINAL_STEP.issuperset(ends) or not draft.fits(index):
        return
    for state in (run_pb2.STEP_STATE_FAILED, run_pb2.STEP_STATE_CANCELLED):
        if state in ends:
            found = [place for place, end in zip(places, ends, strict=True) if end == state]
            draft.finish(index, state, _why(draft, index, state), _named(draft, found, state))
            return
    left_out = {draft.reasons[place] for place, end in zip(places, ends, strict=True) if end != _SUCCEEDED}
    unfinished = left_out - _LEFT_OUT
    if unfinished:
        # Some did not come to their turn, because of what happened to the run.
        state = run_pb2.STEP_STATE_CANCELLED if _SUCCEEDED in ends else run_pb2.STEP_STATE_SKIPPED
        draft.finish(index, state, run_pb2.StepReason.ValueType(min(unfinished)), "not all of its instances started")
    elif _SUCCEEDED in ends:
        draft.finish(index, run_pb2.STEP_STATE_SUCCEEDED)
    else:
        draft.finish(index, run_pb2.STEP_STATE_SKIPPED, run_pb2.StepReason.ValueType(max(left_out)))


def _why(draft: Draft, index: int, state: run_pb2.StepState.ValueType) -> run_pb2.StepReason.ValueType:
    """Why a step fails or is cancelled whose instances were: that of the run when they were stopped with it."""
    if state != run_pb2.STEP_STATE_CANCELLED or not draft.cancelling or draft.plan.steps[index].is_finally:
        return run_pb2.STEP_REASON_INSTANCE_FAILED
    if draft.head.reason == run_pb2.RUN_REASON_TIMED_OUT:
        return run_pb2.STEP_REASON_RUN_TIMED_OUT
    return run_pb2.STEP_REASON_RUN_CANCELLED


def _named(draft: Draft, found: list[int], state: run_pb2.StepState.ValueType) -> str:
    """Which instances ended like that, and what the first of them said."""
    names = ", ".join(draft.plan.steps[place].id for place in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    verb = "failed" if state == run_pb2.STEP_STATE_FAILED else "cancelled"
    record = draft.peek(found[0])
    said = f": {record.message}" if record is not None and record.message else ""
    return f"{names}{more} {verb}{said}"[:1024]

"""What follows by itself from a change: steps are judged, stopped or started, and the run ends."""

from __future__ import annotations

from collections.abc import Iterable

from conveyor.core.deadlines import grace_left, not_confirmed
from conveyor.core.draft import Draft
from conveyor.core.fanout import advance, find_matrices, start
from conveyor.core.gates import pass_by
from conveyor.core.locks import RUN
from conveyor.core.matrix import is_expanded
from conveyor.core.model import OVERDUE, TERMINAL_STEP
from conveyor.core.plan import SECOND
from conveyor.core.rules import STOPPED_BY_FAIL_FAST, judge, outcome
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

_NOT_STARTED = frozenset({run_pb2.STEP_STATE_PENDING, run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_STATE_RETRYING})


def settle(draft: Draft) -> None:
    """Bring a run that has not ended to rest. What has no room in this commit is left, and `draft.more` set."""
    if draft.thorough:
        find_matrices(draft)
    _settle_main_steps(draft)
    while draft.matrices or pass_by(draft):
        # One that ends may start, skip or stop others.
        advance(draft)
        _settle_main_steps(draft)
    if draft.open_main:
        return
    if draft.open_finally:
        _settle_finally_steps(draft)
        advance(draft)
    if not draft.open_finally:
        _finish_run(draft)


def _settle_main_steps(draft: Draft) -> None:
    if draft.cancelling:
        _stop_main_steps(draft)
    else:
        if draft.failed and draft.plan.fail_fast:
            _fail_fast(draft)
        if draft.candidates:
            failed = draft.failed
            _judge_candidates(draft)
            if draft.failed > failed and draft.plan.fail_fast:
                # The expressions of a step failed it: what was queued before it in this commit is stopped too.
                _fail_fast(draft)
                _judge_candidates(draft)


def find_candidates(draft: Draft) -> None:
    """Find all steps that wait only for being judged; after a commit that had no room for them."""
    draft.candidates = [
        i for i in range(draft.plan.main) if draft.states[i] == run_pb2.STEP_STATE_PENDING and not draft.open_needs[i]
    ]


def _main_steps(draft: Draft) -> Iterable[int]:
    """The main steps to look at. Untouched ones were brought to rest before, or a Continue does."""
    if draft.thorough:
        return draft.plan.mains
    return sorted(index for index in draft.changed if not draft.plan.steps[index].is_finally)


def _judge_candidates(draft: Draft) -> None:
    for index in draft.candidates:  # grows while steps are skipped
        if draft.states[index] != run_pb2.STEP_STATE_PENDING:
            continue
        reason = judge(draft.plan, draft.states, index)
        if reason:
            draft.finish(index, run_pb2.STEP_STATE_SKIPPED, reason)
        elif draft.failed and not draft.may_start(index):
            draft.finish(index, run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_FAIL_FAST, "another step failed")
        elif draft.fits(index):
            start(draft, index)


def _fail_fast(draft: Draft) -> None:
    for index in _main_steps(draft):
        if draft.states[index] not in _NOT_STARTED or draft.plan.steps[index].rule not in STOPPED_BY_FAIL_FAST:
            continue
        if draft.peek(index) is None or draft.fits(index):
            draft.finish(index, run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_FAIL_FAST, "another step failed")


def _stop_reason(draft: Draft) -> tuple[run_pb2.StepReason.ValueType, str]:
    if draft.head.reason == run_pb2.RUN_REASON_TIMED_OUT:
        return run_pb2.STEP_REASON_RUN_TIMED_OUT, "the run timed out"
    return run_pb2.STEP_REASON_RUN_CANCELLED, "the run was cancelled"


def _stop_main_steps(draft: Draft) -> None:
    """What waits ends at once; what runs is told, once, and abandoned when it does not confirm in time."""
    deadline = draft.head.cancel_deadline
    reason, message = _stop_reason(draft)
    for index in _main_steps(draft):
        state, record = draft.states[index], draft.peek(index)
        if state in TERMINAL_STEP:
            continue
        if record is None:
            draft.finish(index, run_pb2.STEP_STATE_SKIPPED, reason)
            continue
        if is_expanded(record):
            continue  # It ends with its instances.
        running, overdue = state == run_pb2.STEP_STATE_RUNNING, deadline <= draft.now
        if (running and record.cancel_sent and not overdue) or not draft.fits(index):
            continue
        if running and not record.cancel_sent:
            draft.tell_to_stop(index, draft.head.cancel_message or message, grace_left(draft.head, draft.now))
        if running and overdue:
            said = _abandoned(deadline, record)
            draft.finish(index, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_ABANDONED, said)
        elif not running:
            draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message)


def _abandoned(deadline: int, record: storage_pb2.StepRecord) -> str:
    return f"cancelled by force; {_at_work(record)}" if deadline == OVERDUE else not_confirmed(record)


def _at_work(record: storage_pb2.StepRecord) -> str:
    return f"{f'run {record.child_run}' if record.child_run else f'worker {record.worker}'} may still be at work"


def _settle_finally_steps(draft: Draft) -> None:
    """Start finally steps once, and end them when their bound has passed."""
    head = draft.head
    if not head.finally_deadline:
        head.finally_time = draft.stamp
        head.finally_deadline = draft.now + draft.plan.finally_timeout
        draft.timers.append(head.finally_deadline)
        draft.thorough = True
    if not draft.thorough:
        return
    steps = draft.plan.finals
    if head.finally_deadline <= draft.now:
        _end_finally_steps(draft, steps)
        return
    for index in steps:
        waiting = draft.states[index] == run_pb2.STEP_STATE_PENDING and not draft.plan.steps[index].is_instance
        if waiting and draft.fits(index):
            start(draft, index)


def _end_finally_steps(draft: Draft, steps: Iterable[int]) -> None:
    head, plan = draft.head, draft.plan
    if head.finally_deadline == OVERDUE:
        reason, message = _stop_reason(draft)
    else:
        reason = run_pb2.STEP_REASON_RUN_TIMED_OUT
        message = f"the finally steps took longer than {plan.finally_timeout / SECOND:g} s"
    missed, failed = False, outcome(plan, draft.states)[1] == run_pb2.RUN_REASON_STEP_FAILED
    for index in steps:
        state = draft.states[index]
        if state in TERMINAL_STEP:
            continue
        if draft.peek(index) is None:
            draft.finish(index, run_pb2.STEP_STATE_SKIPPED, reason)
        elif is_expanded(draft.peek(index)):
            continue
        elif draft.fits(index):
            if state == run_pb2.STEP_STATE_RUNNING:
                draft.tell_to_stop(index, message, 0)
                said = f"{message}; {_at_work(draft.edit(index))}"
                draft.finish(index, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_ABANDONED, said)
            else:
                draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message)
        else:
            continue
        missed = missed or not plan.steps[index].allow_failure
    # A run that would have succeeded has not; one that failed before keeps its reason.
    if missed and not failed and not head.outcome:
        head.outcome = run_pb2.RUN_STATE_FAILED
        head.reason = run_pb2.RUN_REASON_TIMED_OUT
        head.message = message


def _finish_run(draft: Draft) -> None:
    head, plan = draft.head, draft.plan
    head.end_time = draft.stamp
    if head.lock.key:
        draft.leave(RUN, head.lock)
    if head.outcome:
        head.state = head.outcome
        return
    head.state, reason, index = outcome(plan, draft.states)
    if not reason:
        return
    head.reason = reason
    record = draft.peek(index)
    said = f": {record.message}" if record is not None and record.message else ""
    verb = "failed" if reason == run_pb2.RUN_REASON_STEP_FAILED else "was cancelled"
    if draft.reasons[index] == run_pb2.STEP_REASON_DRIVER_CANCELLED:
        verb += " by its driver"
    head.message = f"step {plan.steps[index].id} {verb}{said}"[:1024]

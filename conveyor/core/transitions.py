"""`apply`: what an event does to a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conveyor.core.draft import MAX_ATTEMPTS_KEPT, MAX_LOSSES, Draft
from conveyor.core.model import (
    TERMINAL_STEP,
    CancelRequested,
    Claimed,
    Continue,
    Decision,
    Event,
    InputRefused,
    NotReceived,
    ResultReceived,
    RunCreated,
    RunState,
    Tick,
    TicketDelivered,
    TicketSent,
    TicketWithdrawn,
    Waiting,
    WorkerLost,
)
from conveyor.core.plan import SECOND
from conveyor.core.results import on_result
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

TIMEOUT_GRACE = 30 * SECOND
"""How long workers of a run that timed out have to confirm that they stopped."""


def apply(state: RunState, event: Event, now: int, jitter: float = 0.5) -> Decision:
    """The decision that an event leads to. Never raises for an event that does not fit: then nothing changes.

    `now` in microseconds since 1970; `jitter` from 0 to 1 is the randomness of back-offs. Neither a terminal run nor
    a terminal step ever changes its state.
    """
    handler: Callable[[RunState, Any, int, float], Decision] = _HANDLERS[type(event)]
    return handler(state, event, now, jitter)


def _on_created(state: RunState, event: RunCreated, now: int, jitter: float) -> Decision:
    if state.head.state != run_pb2.RUN_STATE_PENDING:
        return Decision(state)
    draft = Draft(state, now, jitter)
    draft.head.state = run_pb2.RUN_STATE_RUNNING
    draft.effects.timers.append(draft.head.deadline)
    if draft.plan.broadcast and not draft.plan.steps:
        draft.head.reason = run_pb2.RUN_REASON_NO_DRIVER
        draft.head.message = f"no driver listens to {draft.head.definition}"
    draft.candidates_from_state()
    draft.settle()
    return draft.decide()


def _on_continue(state: RunState, event: Continue, now: int, jitter: float) -> Decision:
    if state.terminal or state.head.state == run_pb2.RUN_STATE_PENDING:
        return Decision(state)
    draft = Draft(state, now, jitter)
    draft.candidates_from_state()
    draft.settle()
    # Nothing was left to do: leave the stored state alone.
    if not draft.changed and draft.states == state.head.step_states and draft.head == state.head:
        return Decision(state)
    return draft.decide()


def _waits_for_worker(state: RunState, index: int) -> bool:
    record = state.steps[index]
    return record is not None and record.state == run_pb2.STEP_STATE_QUEUED and not record.token and not state.terminal


def _on_claimed(state: RunState, event: Claimed, now: int, jitter: float) -> Decision:
    claims = [claim for claim in event.claims if _waits_for_worker(state, claim.index)]
    if not claims:
        return Decision(state)
    draft = Draft(state, now, jitter)
    for claim in claims:
        record = draft.edit(claim.index)
        record.token = claim.token
        record.session = claim.session
        record.worker = claim.worker
        record.transport = claim.transport
        if record.attempts and record.attempts[-1].number == record.attempt:
            del record.attempts[-1]
        attempt = record.attempts.add(
            number=record.attempt,
            worker=claim.worker,
            transport=claim.transport,
            start_time=now,
            token=claim.token,
            state=run_pb2.STEP_STATE_QUEUED,
        )
        if len(record.attempts) > MAX_ATTEMPTS_KEPT:
            del record.attempts[0]
            attempt = record.attempts[-1]
        if claim.transport == run_pb2.TRANSPORT_JETSTREAM:
            record.message = f"sent to JetStream consumer {claim.session}"
            draft.set_state(claim.index, run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_REASON_TICKET_SENT)
        else:
            _start(draft, claim.index, record, attempt)
    return draft.decide()


def _start(draft: Draft, index: int, record: storage_pb2.StepRecord, attempt: storage_pb2.AttemptRecord) -> None:
    """A worker has the attempt: its time runs."""
    record.message = ""
    record.start_time = draft.now
    attempt.start_time = draft.now
    attempt.state = run_pb2.STEP_STATE_RUNNING
    if not draft.plan.broadcast:
        record.next_time = draft.now + draft.plan.steps[index].timeout
    draft.effects.timers.append(record.next_time)
    if not draft.head.start_time:
        draft.head.start_time = draft.now
    draft.set_state(index, run_pb2.STEP_STATE_RUNNING)


def _on_waiting(state: RunState, event: Waiting, now: int, jitter: float) -> Decision:
    record = state.steps[event.index]
    if record is None or not _waits_for_worker(state, event.index):
        return Decision(state)
    if record.reason == event.reason and record.message == event.message:
        return Decision(state)
    draft = Draft(state, now, jitter)
    draft.edit(event.index).message = event.message
    draft.set_state(event.index, run_pb2.STEP_STATE_QUEUED, event.reason)
    return draft.decide()


def _holder(state: RunState, index: int, token: str) -> storage_pb2.StepRecord | None:
    """The record of a step that is out under this token."""
    record = state.steps[index]
    if record is None or not token or record.token != token or record.state in TERMINAL_STEP or state.terminal:
        return None
    return record


def _on_not_received(state: RunState, event: NotReceived, now: int, jitter: float) -> Decision:
    if _holder(state, event.index, event.token) is None:
        return Decision(state)
    draft = Draft(state, now, jitter)
    if draft.cancelling and event.index < draft.plan.main:
        draft.end_attempt(
            draft.edit(event.index), run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_RUN_CANCELLED, "never received"
        )
        draft.finish(event.index, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_RUN_CANCELLED)
    else:
        draft.queue(event.index)
        draft.set_state(event.index, run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_REASON_NOT_RECEIVED)
    draft.settle()
    return draft.decide()


def _on_worker_lost(state: RunState, event: WorkerLost, now: int, jitter: float) -> Decision:
    lost = [
        index
        for index, record in enumerate(state.steps)
        if record is not None and record.session == event.session and record.state == run_pb2.STEP_STATE_RUNNING
    ]
    if not lost or state.terminal:
        return Decision(state)
    draft = Draft(state, now, jitter)
    for index in lost:
        if not draft.room:
            break
        record = draft.edit(index)
        reason = run_pb2.STEP_REASON_WORKER_LOST
        message = event.message or f"worker {record.worker} was lost"
        record.losses += 1
        if draft.cancelling and index < draft.plan.main:
            draft.end_attempt(record, run_pb2.STEP_STATE_CANCELLED, reason, message)
            draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message)
        elif record.losses > MAX_LOSSES:
            draft.end_attempt(record, run_pb2.STEP_STATE_FAILED, reason, message)
            draft.finish(index, run_pb2.STEP_STATE_FAILED, reason, f"{message}; {record.losses} workers in all")
        else:
            draft.end_attempt(record, run_pb2.STEP_STATE_FAILED, reason, message)
            draft.queue(index, next_attempt=True)
    draft.settle()
    return draft.decide()


def _on_ticket_sent(state: RunState, event: TicketSent, now: int, jitter: float) -> Decision:
    record = _holder(state, event.index, event.token)
    if record is None or record.ticket == event.ticket:
        return Decision(state)
    draft = Draft(state, now, jitter)
    draft.edit(event.index).ticket.CopyFrom(event.ticket)
    return draft.decide()


def _on_ticket_delivered(state: RunState, event: TicketDelivered, now: int, jitter: float) -> Decision:
    record = _holder(state, event.index, event.token)
    if record is None or record.state != run_pb2.STEP_STATE_QUEUED or not record.attempts:
        return Decision(state)
    draft = Draft(state, now, jitter)
    record = draft.edit(event.index)
    _start(draft, event.index, record, record.attempts[-1])
    return draft.decide()


def _on_ticket_withdrawn(state: RunState, event: TicketWithdrawn, now: int, jitter: float) -> Decision:
    record = _holder(state, event.index, event.token)
    if record is None or record.state != run_pb2.STEP_STATE_QUEUED:
        return Decision(state)
    draft = Draft(state, now, jitter)
    # The wait goes on: only its holder is gone.
    ready_time, next_time = record.ready_time, record.next_time
    draft.queue(event.index)
    record = draft.edit(event.index)
    record.ready_time, record.next_time = ready_time, next_time
    return draft.decide()


def _on_input_refused(state: RunState, event: InputRefused, now: int, jitter: float) -> Decision:
    record = state.steps[event.index]
    if record is None or record.state != run_pb2.STEP_STATE_QUEUED or state.terminal:
        return Decision(state)
    draft = Draft(state, now, jitter)
    draft.end_attempt(draft.edit(event.index), run_pb2.STEP_STATE_FAILED, event.reason, event.message)
    draft.finish(event.index, run_pb2.STEP_STATE_FAILED, event.reason, event.message)
    draft.settle()
    return draft.decide()


def _on_cancel(state: RunState, event: CancelRequested, now: int, jitter: float) -> Decision:
    head = state.head
    already = head.state == run_pb2.RUN_STATE_CANCELLING
    if state.terminal or (already and not event.force):
        return Decision(state)
    draft = Draft(state, now, jitter)
    if not already:
        _begin_cancelling(draft, run_pb2.RUN_STATE_CANCELLED, event.reason, event.message, event.grace)
        draft.head.cancel_message = event.message
    draft.settle()
    if event.force:
        draft.head.cancel_deadline = now
        _abandon(draft, range(len(draft.plan.steps)), "cancelled by force; its worker may still be at it")
        for index in range(draft.plan.main, len(draft.plan.steps)):
            if draft.states[index] not in TERMINAL_STEP and draft.room:
                draft.finish(index, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_RUN_CANCELLED)
        draft.settle()
    return draft.decide()


def _begin_cancelling(
    draft: Draft, outcome: run_pb2.RunState.ValueType, reason: run_pb2.RunReason.ValueType, message: str, grace: int
) -> None:
    head = draft.head
    head.state = run_pb2.RUN_STATE_CANCELLING
    head.outcome = outcome
    head.reason = reason
    head.message = message
    head.cancel_deadline = draft.now + grace
    draft.effects.timers.append(head.cancel_deadline)


def _abandon(draft: Draft, indexes: range, message: str) -> None:
    """End running steps whose workers were told and have not confirmed."""
    for index in indexes:
        if draft.states[index] != run_pb2.STEP_STATE_RUNNING:
            continue
        if not draft.room:
            return
        record = draft.edit(index)
        if not record.cancel_sent:
            draft.tell_to_stop(index, message, 0)
        draft.end_attempt(record, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_ABANDONED, message)
        draft.finish(index, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_ABANDONED, message)


def _on_tick(state: RunState, event: Tick, now: int, jitter: float) -> Decision:
    if state.terminal or state.head.state == run_pb2.RUN_STATE_PENDING:
        return Decision(state)
    draft = Draft(state, now, jitter)
    head, plan = draft.head, draft.plan
    before = (bytes(draft.states), head.state)
    if head.state == run_pb2.RUN_STATE_RUNNING and draft.open_main and head.deadline <= now:
        _begin_cancelling(
            draft,
            run_pb2.RUN_STATE_FAILED,
            run_pb2.RUN_REASON_TIMED_OUT,
            f"the run took longer than {plan.timeout / SECOND:g} s",
            TIMEOUT_GRACE,
        )
    for index, record in enumerate(state.steps):
        if record is not None and record.next_time and record.next_time <= now and draft.room:
            _on_step_due(draft, index)
    if head.state == run_pb2.RUN_STATE_CANCELLING and head.cancel_deadline <= now:
        _abandon(draft, range(plan.main), "its worker did not confirm that it stopped; it may still be at it")
    if head.finally_deadline and head.finally_deadline <= now and draft.open_finally:
        _end_finally_steps(draft)
    draft.settle()
    if not draft.changed and before == (bytes(draft.states), draft.head.state):
        return Decision(state)
    return draft.decide()


def _on_step_due(draft: Draft, index: int) -> None:
    state = draft.states[index]
    step = draft.plan.steps[index]
    if draft.cancelling and index < draft.plan.main:
        return
    if state == run_pb2.STEP_STATE_RETRYING:
        draft.queue(index, next_attempt=True)
        return
    record = draft.peek(index)
    if record is None:
        return
    if draft.plan.broadcast and record.transport != run_pb2.TRANSPORT_GRPC:
        message = "the driver did not answer the broadcast"
        reason = run_pb2.STEP_REASON_NOT_REPORTED
        draft.end_attempt(draft.edit(index), run_pb2.STEP_STATE_SKIPPED, reason, message)
        draft.finish(index, run_pb2.STEP_STATE_SKIPPED, reason, message)
    elif state == run_pb2.STEP_STATE_QUEUED:
        reason = run_pb2.STEP_REASON_QUEUE_TIMED_OUT
        message = f"no worker took it within {step.queue_timeout / SECOND:g} s" + (
            f" ({record.message})" if record.message else ""
        )
        draft.end_attempt(draft.edit(index), run_pb2.STEP_STATE_FAILED, reason, message)
        draft.finish(index, run_pb2.STEP_STATE_FAILED, reason, message)
    elif state == run_pb2.STEP_STATE_RUNNING:
        reason = run_pb2.STEP_REASON_TIMED_OUT
        message = f"attempt {record.attempt} took longer than {step.timeout / SECOND:g} s"
        draft.tell_to_stop(index, message, 0)
        draft.end_attempt(draft.edit(index), run_pb2.STEP_STATE_FAILED, reason, message)
        draft.retry_or_fail(index, reason, message, retryable=not draft.plan.broadcast)


def _end_finally_steps(draft: Draft) -> None:
    """The bound on all finally steps has passed; a run that would have succeeded has not."""
    head, plan = draft.head, draft.plan
    message = f"the finally steps took longer than {plan.finally_timeout / SECOND:g} s"
    _abandon(draft, range(plan.main, len(plan.steps)), message)
    for index in range(plan.main, len(plan.steps)):
        if draft.states[index] not in TERMINAL_STEP and draft.room:
            draft.finish(index, run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_REASON_RUN_TIMED_OUT, message)
    if not head.outcome:
        head.outcome = run_pb2.RUN_STATE_FAILED
        head.reason = run_pb2.RUN_REASON_TIMED_OUT
        head.message = message


_HANDLERS: dict[type, Callable[[RunState, Any, int, float], Decision]] = {
    RunCreated: _on_created,
    Continue: _on_continue,
    Claimed: _on_claimed,
    Waiting: _on_waiting,
    NotReceived: _on_not_received,
    WorkerLost: _on_worker_lost,
    TicketSent: _on_ticket_sent,
    TicketDelivered: _on_ticket_delivered,
    TicketWithdrawn: _on_ticket_withdrawn,
    ResultReceived: on_result,
    CancelRequested: _on_cancel,
    InputRefused: _on_input_refused,
    Tick: _on_tick,
}


def next_timer(state: RunState) -> int:
    """The earliest time at which a Tick may have something to do; 0 when there is none."""
    head = state.head
    if state.terminal:
        return 0
    times = [record.next_time for record in state.steps if record is not None and record.next_time]
    if state.open_main:
        times.append(head.cancel_deadline if head.state == run_pb2.RUN_STATE_CANCELLING else head.deadline)
    if head.finally_deadline and state.open_finally:
        times.append(head.finally_deadline)
    return min(times, default=0)

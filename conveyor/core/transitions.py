"""`apply`: what an event does to a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conveyor.core.attempts import give_out, is_free, start
from conveyor.core.calls import on_called, on_child_ended
from conveyor.core.deadlines import TIMEOUT_GRACE, bring_run_nearer, bring_step_nearer, end_in_time, step_due
from conveyor.core.draft import MAX_LOSSES, Draft, withdrawal
from conveyor.core.events import (
    Called,
    CancelRequested,
    ChildEnded,
    Claimed,
    Continue,
    Event,
    InputRefused,
    LockGranted,
    NotReceived,
    ResultReceived,
    RunCreated,
    StepDecided,
    Tick,
    TicketDelivered,
    TicketSent,
    TicketWithdrawn,
    Waiting,
    WorkerLost,
)
from conveyor.core.gates import Standing, decide, standing
from conveyor.core.locks import run_waits_for_lock
from conveyor.core.model import OVERDUE, TERMINAL_STEP, Decision, RunState, waits_for_runs
from conveyor.core.results import on_result
from conveyor.core.settle import find_candidates, settle
from conveyor.core.start import on_created, on_lock_granted
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

__all__ = ["TIMEOUT_GRACE", "apply", "next_timer"]


def apply(state: RunState, event: Event, now: int, jitter: float = 0.5) -> Decision:
    """The decision that an event leads to. Never raises for an event that does not fit: then nothing changes.

    `now` in microseconds since 1970; `jitter` from 0 to 1 is the randomness of back-offs. Neither a terminal run nor
    a terminal step ever changes its state.
    """
    handler: Callable[[RunState, Any, int, float], Decision] = _HANDLERS[type(event)]
    return handler(state, event, now, jitter)


# The run


def _on_continue(state: RunState, event: Continue | Tick, now: int, jitter: float) -> Decision:
    if state.terminal:
        return Decision(state)
    draft = Draft(state, now, jitter, thorough=True)
    end_in_time(draft)
    bring_run_nearer(draft)
    if draft.head.state == run_pb2.RUN_STATE_PENDING:
        return Decision(state)
    for index, record in enumerate(state.steps):
        if record is None or not record.next_time:
            continue
        if record.next_time <= now:
            step_due(draft, index)
        else:
            bring_step_nearer(draft, index)
    find_candidates(draft)
    settle(draft)
    if not draft.more and not draft.changed and draft.states == state.head.step_states and draft.head == state.head:
        return Decision(state)
    return draft.decide()


def _on_cancel(state: RunState, event: CancelRequested, now: int, jitter: float) -> Decision:
    if state.terminal or (state.head.state == run_pb2.RUN_STATE_CANCELLING and not event.force):
        return Decision(state)
    draft = Draft(state, now, jitter, thorough=True)
    head = draft.head
    # One that waits for older runs or for its lock has nothing to clean up, and its finally steps must not run beside
    # those of others.
    force = event.force or waits_for_runs(state.head) or run_waits_for_lock(state.head)
    if head.state != run_pb2.RUN_STATE_CANCELLING:
        draft.begin_cancelling(run_pb2.RUN_STATE_CANCELLED, event.reason, event.message, event.grace)
        head.cancel_message = event.message
    if force:
        # In the past: so whoever goes on from here, after however many commits, waits for nobody either.
        head.cancel_deadline = OVERDUE
        head.finally_deadline = OVERDUE
    settle(draft)
    return draft.decide()


# Dispatch


def _waits_for_worker(state: RunState, index: int) -> bool:
    return bool(state.plan.steps[index].driver) and is_free(state, index)


def _on_claimed(state: RunState, event: Claimed, now: int, jitter: float) -> Decision:
    claims = {claim.index: claim for claim in event.claims if _waits_for_worker(state, claim.index)}
    if not claims:
        return Decision(state)
    draft = Draft(state, now, jitter)
    for index, claim in claims.items():
        attempt = give_out(draft, index, claim.token)
        attempt.worker = claim.worker
        attempt.transport = claim.transport
        record = draft.edit(index)
        record.session = claim.session
        record.worker = claim.worker
        record.transport = claim.transport
        if claim.transport == run_pb2.TRANSPORT_JETSTREAM:
            record.message = f"sent to JetStream consumer {claim.session}"
            draft.set_state(index, run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_REASON_TICKET_SENT)
        else:
            start(draft, index)
    return draft.decide()


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


def _on_input_refused(state: RunState, event: InputRefused, now: int, jitter: float) -> Decision:
    record = state.steps[event.index]
    if record is None or record.state != run_pb2.STEP_STATE_QUEUED:
        return Decision(state)
    draft = Draft(state, now, jitter)
    # A step that fail-fast or a cancel is about to stop is left to them.
    if draft.may_start(event.index):
        draft.finish(event.index, run_pb2.STEP_STATE_FAILED, event.reason, event.message)
    else:
        draft.thorough = True
    settle(draft)
    return draft.decide()


def _on_decided(state: RunState, event: StepDecided, now: int, jitter: float) -> Decision:
    if standing(state, event.index, event.decision, event.by) is not Standing.OPEN:
        return Decision(state)
    draft = Draft(state, now, jitter)
    decide(draft, event.index, event.decision, event.by, event.comment)
    settle(draft)
    return draft.decide()


# What workers and the broker do besides answering


def _holder(state: RunState, index: int, token: str) -> storage_pb2.StepRecord | None:
    """The record of a step that is out under this token."""
    record = state.steps[index]
    if record is None or not token or record.token != token or record.state in TERMINAL_STEP:
        return None
    return record


def _on_not_received(state: RunState, event: NotReceived, now: int, jitter: float) -> Decision:
    if _holder(state, event.index, event.token) is None:
        return Decision(state)
    draft = Draft(state, now, jitter)
    draft.take_back(event.index)
    draft.set_state(event.index, run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_REASON_NOT_RECEIVED)
    settle(draft)
    return draft.decide()


def _on_worker_lost(state: RunState, event: WorkerLost, now: int, jitter: float) -> Decision:
    lost = [
        index
        for index, record in enumerate(state.steps)
        if record is not None
        and record.token
        and record.session == event.session
        and record.state == run_pb2.STEP_STATE_RUNNING
    ]
    if not lost:
        return Decision(state)
    draft = Draft(state, now, jitter)
    reason = run_pb2.STEP_REASON_WORKER_LOST
    rest: Event | None = None
    for index in lost:
        if not draft.fits(index):
            # Nothing in the state says that the others are lost: only the event does.
            rest = event
            break
        record = draft.edit(index)
        record.losses += 1
        message = event.message or f"worker {record.worker} was lost"
        if record.cancel_sent or (draft.cancelling and not draft.plan.steps[index].is_finally):
            draft.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message)
        elif record.losses > MAX_LOSSES:
            message = f"{message}; {record.losses} workers in all"
            draft.finish(index, run_pb2.STEP_STATE_FAILED, reason, message)
        elif not draft.may_start(index):
            draft.finish(index, run_pb2.STEP_STATE_FAILED, reason, f"{message}; not tried again in a run that fails")
        else:
            draft.end_attempt(index, run_pb2.STEP_STATE_FAILED, reason, message)
            draft.queue(index, next_attempt=True)
    settle(draft)
    return draft.decide(rest=rest)


def _on_ticket_sent(state: RunState, event: TicketSent, now: int, jitter: float) -> Decision:
    record = _holder(state, event.index, event.token)
    if record is None:
        # The step went on while its ticket was under way: nobody else would take it back.
        return Decision(state, withdrawals=(withdrawal(event.index, event.token, event.ticket),))
    if record.ticket == event.ticket:
        return Decision(state)
    draft = Draft(state, now, jitter)
    draft.edit(event.index).ticket.CopyFrom(event.ticket)
    return draft.decide()


def _on_ticket_delivered(state: RunState, event: TicketDelivered, now: int, jitter: float) -> Decision:
    record = _holder(state, event.index, event.token)
    if record is None or record.state != run_pb2.STEP_STATE_QUEUED:
        return Decision(state)
    draft = Draft(state, now, jitter)
    start(draft, event.index)
    settle(draft)
    return draft.decide()


def _on_ticket_withdrawn(state: RunState, event: TicketWithdrawn, now: int, jitter: float) -> Decision:
    record = _holder(state, event.index, event.token)
    if record is None or record.state != run_pb2.STEP_STATE_QUEUED:
        return Decision(state)
    draft = Draft(state, now, jitter)
    # The wait goes on: only its holder is gone.
    ready_time, next_time = record.ready_time, record.next_time
    record = draft.edit(event.index)
    record.ClearField("ticket")
    draft.take_back(event.index)
    record.ready_time, record.next_time = ready_time, next_time
    settle(draft)
    return draft.decide()


_HANDLERS: dict[type, Callable[[RunState, Any, int, float], Decision]] = {
    RunCreated: on_created,
    Continue: _on_continue,
    Claimed: _on_claimed,
    Called: on_called,
    ChildEnded: on_child_ended,
    Waiting: _on_waiting,
    NotReceived: _on_not_received,
    WorkerLost: _on_worker_lost,
    TicketSent: _on_ticket_sent,
    TicketDelivered: _on_ticket_delivered,
    TicketWithdrawn: _on_ticket_withdrawn,
    ResultReceived: on_result,
    CancelRequested: _on_cancel,
    InputRefused: _on_input_refused,
    StepDecided: _on_decided,
    LockGranted: on_lock_granted,
    Tick: _on_continue,
}


def next_timer(state: RunState) -> int:
    """The earliest time at which a Tick may have something to do; 0 when there is none."""
    head, plan = state.head, state.plan
    if state.terminal:
        return 0
    cancelling = head.state == run_pb2.RUN_STATE_CANCELLING
    # While a run is cancelled, one deadline is for all its main steps.
    counting = [state.steps[i] for i in plan.finals] if cancelling else state.steps
    times = [record.next_time for record in counting if record is not None and record.next_time]
    if state.open_main:
        deadline = head.cancel_deadline if cancelling else head.deadline
        if deadline:
            times.append(deadline)
    elif head.finally_deadline:
        times.append(head.finally_deadline)
    return min(times, default=0)

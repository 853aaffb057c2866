"""How an attempt begins, whoever is at work on it: a worker, a JetStream consumer, or a run of another pipeline."""

from __future__ import annotations

from conveyor.core.draft import MAX_ATTEMPTS_KEPT, Draft
from conveyor.core.locks import waits_for_lock
from conveyor.core.model import RunState
from conveyor.core.rules import may_start
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2


def is_free(state: RunState, index: int) -> bool:
    """Whether the step is queued, lacks nothing, belongs to nobody, and may start."""
    record = state.steps[index]
    return (
        record is not None
        and record.state == run_pb2.STEP_STATE_QUEUED
        and not record.token
        and not waits_for_lock(record)
        and may_start(state.plan, state.head, state.head.step_states, state.failed, index)
    )


def give_out(draft: Draft, index: int, token: str) -> storage_pb2.AttemptRecord:
    """The step belongs to somebody from now on; returns the attempt, to be filled."""
    record = draft.edit(index)
    record.token = token
    if len(record.attempts) == MAX_ATTEMPTS_KEPT:
        del record.attempts[0]
    return record.attempts.add(
        number=record.attempt, start_time=draft.stamp, token=token, state=run_pb2.STEP_STATE_QUEUED
    )


def start(draft: Draft, index: int) -> None:
    """Somebody is at work on the current attempt: its time runs."""
    record, timeout = draft.edit(index), draft.plan.steps[index].timeout
    attempt = record.attempts[-1]
    record.message = ""
    record.start_time = draft.stamp
    attempt.start_time = draft.stamp
    attempt.state = run_pb2.STEP_STATE_RUNNING
    if not draft.plan.broadcast:
        record.next_time = draft.now + timeout if timeout else 0
        if timeout:
            draft.timers.append(record.next_time)
    if not draft.head.start_time:
        draft.head.start_time = draft.stamp
    draft.set_state(index, run_pb2.STEP_STATE_RUNNING)

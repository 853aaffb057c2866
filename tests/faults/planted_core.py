"""Deliberate bugs in what becomes of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conveyor.core import results, rules, settle, transitions
from conveyor.core.draft import Draft
from conveyor.core.events import CancelRequested, ResultReceived, WorkerLost
from conveyor.core.inherit import inheritable
from conveyor.core.model import Decision, RunState
from conveyor.core.results import on_result
from conveyor.state import starts
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2
from tests.faults.plant import on_event, plant, put

# Results


@plant(
    "a result counts whatever its attempt and token", 3, 4, faults=("kill-jetstream", "freeze-grpc", "freeze-jetstream")
)
def no_token_check() -> None:
    def lax(state: RunState, event: ResultReceived, now: int, jitter: float) -> Decision:
        record = state.steps[state.plan.index[event.step]] if event.step in state.plan.index else None
        if record is not None and record.token:
            event = replace(event, attempt=record.attempt, token=record.token)
        return on_result(state, event, now, jitter)

    on_event(ResultReceived, lax)


@plant("a result that was there already counts again", 3, 4, 5)
def duplicate_counts() -> None:
    def again(state: RunState, event: ResultReceived, now: int, jitter: float) -> Decision:
        decision = on_result(state, event, now, jitter)
        if decision.disposition != result_pb2.DISPOSITION_DUPLICATE or not event.step or state.terminal:
            return decision
        return results._accept(Draft(state, now, jitter), event, state.plan.index[event.step])

    on_event(ResultReceived, again)


@plant("a late result changes a run that has ended", 5, faults=("freeze-",), rate=30)
def ends_change() -> None:
    def late(state: RunState, event: ResultReceived, now: int, jitter: float) -> Decision:
        index = state.plan.index.get(event.step, -1)
        record = state.steps[index] if index >= 0 else None
        if not state.terminal or record is None or record.state != run_pb2.STEP_STATE_CANCELLED:
            return on_result(state, event, now, jitter)
        draft = Draft(state, now, jitter)
        draft.set_state(index, run_pb2.STEP_STATE_SUCCEEDED)
        return draft.decide(result_pb2.DISPOSITION_ACCEPTED)

    on_event(ResultReceived, late)


# The order of steps


@plant("a step is dispatched when one of its needs has not ended", 3, faults=("kill-grpc",))
def dispatch_before_all_needs() -> None:
    def hasty(draft: Draft) -> None:
        draft.candidates = [
            i
            for i in range(draft.plan.main)
            if draft.states[i] == run_pb2.STEP_STATE_PENDING and draft.open_needs[i] <= 1
        ]

    put(transitions, "find_candidates", hasty)


@plant("a failed need counts as a success", 3)
def failed_needs_count() -> None:
    judge = rules.judge

    def blind(plan: Any, states: bytes | bytearray, index: int) -> run_pb2.StepReason.ValueType:
        good, bad = run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_STATE_FAILED
        return judge(plan, bytes(good if state == bad else state for state in states), index)

    put(settle, "judge", blind)


@plant("finally steps do not run in a run that was cancelled", 3)
def no_finally_after_cancel() -> None:
    settle_finally = settle._settle_finally_steps

    def skip(draft: Draft) -> None:
        if not draft.head.outcome:
            settle_finally(draft)
            return
        for index in range(draft.plan.main, len(draft.plan.steps)):
            if draft.states[index] == run_pb2.STEP_STATE_PENDING:
                draft.finish(index, run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_RUN_CANCELLED)

    put(settle, "_settle_finally_steps", skip)


@plant("a retry takes over steps that failed", 3)
def retry_inherits_failures() -> None:
    def generous(state: RunState) -> list[storage_pb2.StepRecord]:
        kept = list(inheritable(state))
        for record in state.steps[: state.plan.main]:
            if record is not None and record.state == run_pb2.STEP_STATE_FAILED:
                copy = storage_pb2.StepRecord()
                copy.CopyFrom(record)
                copy.inherited = True
                kept.append(copy)
        return kept

    put(starts, "inheritable", generous)


# Other events


@plant("a cancel is answered with OK and does nothing", 8)
def cancel_does_nothing() -> None:
    def deaf(state: RunState, event: CancelRequested, now: int, jitter: float) -> Decision:
        return Decision(state)

    on_event(CancelRequested, deaf)


@plant("the steps of a lost worker are not given to another", 3, 6, faults=("kill-grpc-driver",), rate=30)
def lost_worker_keeps_its_steps() -> None:
    def deaf(state: RunState, event: WorkerLost, now: int, jitter: float) -> Decision:
        return Decision(state)

    on_event(WorkerLost, deaf)

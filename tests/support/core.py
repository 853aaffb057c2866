"""Drives the pure core in tests: a run in hand, checked after every decision for what must always hold."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from conveyor.core.draft import MAX_ATTEMPTS_KEPT
from conveyor.core.events import (
    Claim,
    Claimed,
    Continue,
    Event,
    ResultReceived,
    RunCreated,
    Tick,
    TicketDelivered,
    TicketSent,
)
from conveyor.core.inputs import StepInputs
from conveyor.core.locks import RUN, waits_for_lock
from conveyor.core.model import Decision, RunState, new_run, result_bytes
from conveyor.core.plan import SECOND, Plan, compile_plan
from conveyor.core.run_copy import MAX_RECORDS
from conveyor.core.transitions import apply, next_timer
from conveyor.state.locks import open_claims
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, result_pb2, run_pb2

START = 1_000_000 * SECOND

PENDING, QUEUED, RUNNING, RETRYING, SUCCEEDED, FAILED, CANCELLED, SKIPPED = range(1, 9)
TERMINAL = {SUCCEEDED, FAILED, CANCELLED, SKIPPED}
TERMINAL_RUN = {run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED}

ARROWS: dict[int, set[int]] = {
    PENDING: {QUEUED, SKIPPED},
    QUEUED: {RUNNING, RETRYING, SUCCEEDED, FAILED, CANCELLED, SKIPPED},
    RUNNING: {QUEUED, RETRYING, SUCCEEDED, FAILED, CANCELLED, SKIPPED},
    RETRYING: {QUEUED, CANCELLED, SKIPPED},
}
RUN_ARROWS: dict[int, set[int]] = {
    run_pb2.RUN_STATE_PENDING: {run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_CANCELLING},
    run_pb2.RUN_STATE_RUNNING: {
        run_pb2.RUN_STATE_CANCELLING,
        run_pb2.RUN_STATE_SUCCEEDED,
        run_pb2.RUN_STATE_FAILED,
    },
    run_pb2.RUN_STATE_CANCELLING: {run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED},
}


def pipeline(
    *steps: pipeline_pb2.Step, finally_steps: Iterable[pipeline_pb2.Step] = (), graph: bool = False, **fields: Any
) -> pipeline_pb2.Pipeline:
    """A pipeline named p."""
    order = pipeline_pb2.ORDER_GRAPH if graph else pipeline_pb2.ORDER_LIST
    return pipeline_pb2.Pipeline(name="p", order=order, steps=steps, finally_steps=finally_steps, **fields)


def step(name: str, *needs: str, rule: str = "ALL_SUCCESS", driver: str = "", **fields: Any) -> pipeline_pb2.Step:
    """A step whose driver is named after it, if it does nothing else."""
    if not {"gate", "runs"}.intersection(fields):
        fields["driver"] = driver or f"d-{name}"
    return pipeline_pb2.Step(
        id=name,
        needs=needs,
        trigger_rule=pipeline_pb2.TriggerRule.Value(f"TRIGGER_RULE_{rule}"),
        **fields,
    )


def gate(name: str, *needs: str, timeout: float = 0, rule: str = "ALL_SUCCESS", **fields: Any) -> pipeline_pb2.Step:
    """A gate. `approvals`, `default_decision`, `message` and `optional` are its own, other fields the step's."""
    own = {key: fields.pop(key) for key in ("approvals", "default_decision", "message", "optional") if key in fields}
    made = step(name, *needs, rule=rule, gate=own, **fields)
    if timeout:
        made.gate.timeout.FromMicroseconds(int(timeout * SECOND))
    return made


def reachable(arrows: Mapping[int, set[int]], start: int) -> set[int]:
    """All that several arrows of one commit may lead to."""
    found: set[int] = set()
    fresh = {start}
    while fresh:
        fresh = set().union(*(arrows.get(state, set()) for state in fresh)) - found
        found |= fresh
    return found


class Run:
    """One run and its clock. `stored` is what a store would hold: the head, and the records that decisions named."""

    def __init__(
        self,
        source: pipeline_pb2.Pipeline,
        inherited: Iterable[storage_pb2.StepRecord] = (),
        inputs: StepInputs | None = None,
    ) -> None:
        self.source = compile_plan(source)
        self.inherited = list(inherited)
        head = storage_pb2.RunHead(namespace="default", id="r", pipeline=source.name, create_time=START)
        self.now = START
        self.state = new_run(self.source, head, self.inherited, inputs)
        self.stored: dict[int, storage_pb2.StepRecord] = {}
        self.tokens = itertools.count(1)
        self.commits = 0

    @property
    def plan(self) -> Plan:
        """The plan as it is now, with all instances."""
        return self.state.plan

    # Moving on

    def send(self, event: Event, jitter: float = 0.5) -> Decision:
        """Apply one event, once, and check what must always hold."""
        before = self.state
        frozen = before
        if len(self.plan.steps) < 20:
            head, steps, needs = copy.deepcopy((before.head, before.steps, before.open_needs))
            frozen = replace(before, head=head, steps=steps, open_needs=needs)
        decision = apply(before, event, self.now, jitter)
        assert before == frozen, "the old state was changed"
        self.state = decision.state
        if decision.dirty:
            self.commits += 1
        check(before, decision)
        self.stored.update({i: record for i in decision.changed if (record := decision.state.steps[i]) is not None})
        self.check_reload()
        if not decision.more:
            again = apply(decision.state, event, self.now, jitter)
            assert not again.dirty, f"a second {event} changed something"
            if decision.disposition in (result_pb2.DISPOSITION_ACCEPTED, result_pb2.DISPOSITION_INVALID):
                assert again.disposition in (
                    result_pb2.DISPOSITION_DUPLICATE,
                    result_pb2.DISPOSITION_INVALID,
                    result_pb2.DISPOSITION_STALE_ATTEMPT if isinstance(event, ResultReceived) and not event.step else 0,
                )
        return decision

    def apply(self, event: Event, jitter: float = 0.5) -> list[Decision]:
        """Apply an event and whatever must follow."""
        decisions = [self.send(event, jitter)]
        while decisions[-1].more:
            decisions.append(self.send(decisions[-1].rest or Continue(), jitter))
        return decisions

    def check_reload(self) -> None:
        """What is stored gives the state that is in hand."""
        loaded = RunState.of(self.source, self.state.head, [*self.inherited, *self.stored.values()])
        assert loaded == self.state

    def start(self) -> list[Decision]:
        """Begin."""
        return self.apply(RunCreated())

    def tick(self, seconds: float = 0) -> list[Decision]:
        """Let time pass."""
        self.now += int(seconds * SECOND)
        return self.apply(Tick())

    def claim(self, name: str, *, jetstream: bool = False, session: str = "session") -> str:
        """Give a queued step to a worker; returns the token."""
        token = f"t{next(self.tokens)}"
        transport = run_pb2.TRANSPORT_JETSTREAM if jetstream else run_pb2.TRANSPORT_GRPC
        self.apply(Claimed((Claim(self.plan.index[name], session, "worker", token, transport),)))
        return token

    def ticket(self, name: str, *, delivered: bool = False) -> str:
        """Give a queued step out as a ticket that reached the broker; returns the token."""
        token = self.claim(name, jetstream=True, session=f"consumer-{name}")
        index = self.plan.index[name]
        self.apply(TicketSent(index, token, storage_pb2.Ticket(stream_created="s", sequence=index + 1)))
        if delivered:
            self.apply(TicketDelivered(index, token))
        return token

    def result(self, name: str, outcome: str = "SUCCEEDED", **fields: Any) -> ResultReceived:
        """The result that the worker which has the step now would send."""
        record = self.record(name)
        driver = self.plan.steps[self.plan.index[name]].driver
        return answer(name, record.attempt, record.token, driver, outcome, **fields)

    def report(self, name: str, outcome: str = "SUCCEEDED", **fields: Any) -> Decision:
        """Have the current attempt of a step answered; claimed first if nobody has it."""
        if not self.record(name).token:
            self.claim(name)
        return self.apply(self.result(name, outcome, **fields))[0]

    # Looking

    def index(self, name: str) -> int:
        """The step's index."""
        return self.plan.index[name]

    def record(self, name: str) -> storage_pb2.StepRecord:
        """The step's record, which must be there."""
        record = self.state.steps[self.plan.index[name]]
        assert record is not None, f"step {name} was never queued"
        return record

    def step(self, name: str) -> str:
        """The step's state, and its reason if there is one: "SKIPPED NEED_FAILED"."""
        index, head = self.plan.index[name], self.state.head
        state = run_pb2.StepState.Name(run_pb2.StepState.ValueType(head.step_states[index]))
        reason = run_pb2.StepReason.Name(run_pb2.StepReason.ValueType(head.step_reasons[index]))
        return _said(state.removeprefix("STEP_STATE_"), reason.removeprefix("STEP_REASON_"))

    def steps(self) -> dict[str, str]:
        """All of them."""
        return {step.id: self.step(step.id) for step in self.plan.steps}

    @property
    def run(self) -> str:
        """The run's state, and its reason if there is one: "FAILED STEP_FAILED"."""
        head = self.state.head
        state = run_pb2.RunState.Name(head.state).removeprefix("RUN_STATE_")
        return _said(state, run_pb2.RunReason.Name(head.reason).removeprefix("RUN_REASON_"))

    @property
    def timer(self) -> float:
        """Seconds from now until the next Tick is due; -1 when there is none."""
        time = next_timer(self.state)
        return (time - self.now) / SECOND if time else -1


def _said(state: str, reason: str) -> str:
    return state if reason == "UNSPECIFIED" else f"{state} {reason}"


def answer(
    name: str,
    attempt: int,
    token: str,
    driver: str,
    outcome: str = "SUCCEEDED",
    *,
    message: str = "",
    data: bytes = b"",
    retryable: bool | None = None,
    invalid: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED,
    message_id: bytes = b"",
) -> ResultReceived:
    """A result."""
    result = storage_pb2.StoredResult(
        outcome=result_pb2.Outcome.Value(f"OUTCOME_{outcome}"), message=message, data=data, retryable=retryable
    )
    digest = hashlib.sha256(result.SerializeToString(deterministic=True)).digest()
    return ResultReceived(name, attempt, token, driver, result, digest, invalid, message_id)


def check(before: RunState, decision: Decision) -> None:
    """What must hold of any decision, whatever the event."""
    after, head = decision.state, decision.state.head
    if not decision.dirty:
        assert after is before
        assert not any((decision.changed, decision.ready, decision.stops, decision.freed, decision.more))
        assert not decision.joins + decision.leaves
        return
    assert len(decision.changed) + len(decision.joins) + len(decision.leaves) <= MAX_RECORDS + 2
    check_claims(before, decision)
    assert len(set(decision.ready)) == len(decision.ready)
    if before.terminal:
        assert head == before.head, "a run that ended changed"
    elif head.state != before.head.state:
        assert head.state in reachable(RUN_ARROWS, before.head.state)
    assert head.update_time >= before.head.update_time
    assert after.terminal == all(state in TERMINAL for state in head.step_states) or decision.more
    assert not after.terminal or head.end_time >= head.start_time >= 0
    assert head.result_bytes == sum(result_bytes(r) for r in after.steps if r is not None)
    assert len(after.steps) == len(after.plan.steps) == len(head.step_states) == len(head.step_reasons)
    assert len(after.steps) >= len(before.steps)
    for index, record in enumerate(after.steps):
        if index >= len(before.steps):
            # An instance of a matrix that was expanded: before, it was not there.
            assert after.plan.steps[index].is_instance
            old, was, was_because = None, PENDING, 0
        else:
            old, was, was_because = before.steps[index], before.head.step_states[index], before.head.step_reasons[index]
        state = head.step_states[index]
        taken_over = record is not None and record.inherited
        if old != record and not taken_over:
            assert index in decision.changed, f"step {index} changed and is not named"
        if state != was:
            assert taken_over or state in reachable(ARROWS, was), f"step {index}: {was} -> {state}"
        if was in TERMINAL:
            assert head.step_reasons[index] == was_because
        if record is not None:
            check_record(record, state, head.step_reasons[index])
        if old is not None and old.token and record is not None and record.token != old.token:
            assert old.token in decision.freed
    for index in decision.ready:
        ready = after.steps[index]
        assert ready is not None
        assert not waits_for_lock(ready)
        assert ready.state == QUEUED
        assert not ready.token


def check_claims(before: RunState, decision: Decision) -> None:
    """Whoever begins to want a lock joins it, and leaves it in the commit that ends its way."""
    had, has = set(open_claims(before)), set(open_claims(decision.state))
    assert set(decision.joins) == has - had
    # A run that waited for its turn had joined nothing yet.
    assert set(decision.leaves) - {RUN} == had - has - {RUN}
    assert RUN not in had - has or RUN in decision.leaves


def check_record(record: storage_pb2.StepRecord, state: int, reason: int) -> None:
    """What must hold of a step's record."""
    assert (record.state, record.reason) == (state, reason)
    attempts = record.attempts
    assert len(attempts) <= MAX_ATTEMPTS_KEPT
    numbers = [attempt.number for attempt in attempts]
    assert numbers == sorted(set(numbers))
    assert not numbers or numbers[-1] <= record.attempt
    open_attempts = [attempt for attempt in attempts if attempt.state not in TERMINAL]
    if record.token:
        assert record.state in (QUEUED, RUNNING)
        assert open_attempts == [attempts[-1]]
        assert (attempts[-1].token, attempts[-1].number) == (record.token, record.attempt)
    else:
        assert record.state != RUNNING or record.instances
        assert not open_attempts
    assert all(attempt.end_time >= attempt.start_time for attempt in attempts if attempt.state in TERMINAL)
    if record.state in TERMINAL:
        assert record.end_time >= max(record.queue_time, record.ready_time, record.start_time)
        assert not record.next_time

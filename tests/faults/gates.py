"""Gates in rounds: random ones, and what must be true of those that have been decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from random import Random

from conveyor.v1.pipeline_pb2 import Decision, Step
from conveyor.v1.run_pb2 import Run, StepReason, StepRun
from tests.faults.history import History, Violation, step_state

PEOPLE = ("ann", "bob", "cy")


def random_gate(rng: Random, name: str, *, may_be_optional: bool) -> Step:
    """A gate that ends by itself within seconds, whoever decides or not."""
    step = Step(id=name, allow_failure=rng.random() < 0.3)
    step.gate.approvals = rng.choice([0, 1, 2, 2])
    step.gate.timeout.FromTimedelta(timedelta(seconds=rng.uniform(1, 5)))
    step.gate.default_decision = rng.choice([Decision.DECISION_UNSPECIFIED, Decision.DECISION_APPROVED])
    step.gate.optional = may_be_optional and rng.random() < 0.4
    return step


def random_decision(rng: Random) -> dict[str, object]:
    """What a client decides at all gates of a run that it finds open."""
    decision = rng.choice([Decision.DECISION_APPROVED] * 2 + [Decision.DECISION_REJECTED])
    return {"decision": decision, "by": rng.choice(PEOPLE)}


def gates_are_decided(history: History) -> Iterator[Violation]:
    """3: A gate ends as people decided, or by default when its time is up; 1: what was acknowledged is kept."""
    for run in history.runs.values():
        gates = {step.id: step for step in (*run.pipeline_snapshot.steps, *run.pipeline_snapshot.finally_steps)}
        for stored in run.steps:
            if not stored.matrix_step and gates[stored.step].HasField("gate") and not stored.inherited:
                yield from (Violation(3, run.id, text) for text in _explained(stored, gates[stored.step]))
                yield from (Violation(3, run.id, text) for text in _passed_by(stored, run, gates))
    for event in history.of("ok"):
        run = history.runs.get(event.get("run", ""))
        if event["what"] == "decide" and run is not None:
            stored = next(step for step in run.steps if step.step == event["step"])
            if (event["decision"], event["by"]) not in _made(stored):
                yield Violation(1, run.id, f"what {event['by']} decided at {stored.step} was acknowledged, and is lost")


def _passed_by(stored: StepRun, run: Run, steps: Mapping[str, Step]) -> Iterator[str]:
    """A run goes on without an optional gate only when it waits for nothing but such gates."""
    if stored.reason != StepReason.STEP_REASON_NOT_DECIDED:
        return
    if not steps[stored.step].gate.optional:
        yield f"the gate {stored.step} was passed by, and is not optional"
    then = stored.end_time.ToNanoseconds()
    for other in run.steps:
        under_way = other.HasField("queue_time") and other.queue_time.ToNanoseconds() < then
        # A matrix waits for nothing but its instances.
        optional = other.instances or steps[other.matrix_step or other.step].gate.optional
        if under_way and then < other.end_time.ToNanoseconds() and not optional:
            yield f"the gate {stored.step} was passed by while {other.step} was under way"


def _made(stored: StepRun) -> list[tuple[int, str]]:
    return [(each.decision, each.by) for each in stored.decisions]


def _explained(stored: StepRun, step: Step) -> Iterator[str]:
    made, state = _made(stored), step_state(stored.state)
    if len({by for _, by in made}) != len(made):
        yield f"somebody has decided twice at {stored.step}: {made}"
    if stored.attempts:
        yield f"the gate {stored.step} was given to a worker"
    approved = [by for decision, by in made if decision == Decision.DECISION_APPROVED]
    default = step.gate.default_decision or Decision.DECISION_REJECTED
    by_default = (default, "") in made
    rejected = any(decision == Decision.DECISION_REJECTED for decision, _ in made)
    enough = len(approved) >= max(step.gate.approvals, 1) or (by_default and default == Decision.DECISION_APPROVED)
    if state == "SUCCEEDED" and (rejected or not enough):
        yield f"the gate {stored.step} let its run through with {made}"
    if stored.reason == StepReason.STEP_REASON_GATE_REJECTED and not rejected:
        yield f"the gate {stored.step} failed with {made}"
    if (enough or rejected) and state not in ("SUCCEEDED", "FAILED"):
        yield f"the gate {stored.step} is {state} with {made}"
    if by_default and made[-1][1]:
        yield f"somebody decided at {stored.step} after its time: {made}"

"""The invariants of the design, one function each: what a history violates of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from conveyor.v1.run_pb2 import Run, StepRun
from tests.faults.history import Event, History, run_state, step_state

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
ENDED_STEP = ENDED | {"SKIPPED"}


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    invariant: int
    """Its number in section 11 of the design."""
    run: str
    """The run concerned; empty when it is none."""
    text: str


Check = Callable[[History], Iterator[Violation]]


def what_was_acknowledged_is_there(history: History) -> Iterator[Violation]:
    """1: A run that was acknowledged survives, unless somebody deleted it; so does an acked result."""
    deleted = {event["run"] for event in history.of("invoke") if event["what"] == "delete"}
    for event in history.of("ok"):
        if event["what"] in ("start", "retry") and event["run"] not in history.runs and event["run"] not in deleted:
            yield Violation(1, event["run"], f"its {event['what']} was acknowledged, and it is not there")
    for event in history.of("acked"):
        run = history.runs.get(event["run"])
        if run is None or event["disposition"] not in ("ACCEPTED", "DUPLICATE"):
            continue
        step = step_of(run, event["step"])
        answered = answer_of(history, event)
        if answered == "ok" and not _kept(step, event):
            yield Violation(1, run.id, f"the success of {event['step']}, attempt {event['attempt']}, was acked: lost")


def _kept(step: StepRun, event: Event) -> bool:
    """Whether an acked success is what is stored. A step that is being cancelled keeps only its data."""
    if step_state(step.state) not in ("SUCCEEDED", "CANCELLED"):
        return False
    return bool(step.result.data.fields["token"].string_value == event["token"])


def one_current_attempt(history: History) -> Iterator[Violation]:
    """4: At most one attempt of a step is current, and each result counts once."""
    for run in history.runs.values():
        for step in run.steps:
            numbers = [attempt.number for attempt in step.attempts]
            if numbers != sorted(set(numbers)):
                yield Violation(4, run.id, f"the attempts of {step.step} are {numbers}")
            states = [step_state(attempt.state) for attempt in step.attempts]
            if "SUCCEEDED" in states[:-1]:
                yield Violation(4, run.id, f"an attempt of {step.step} followed a success: {states}")
            if any(state not in ENDED for state in states[:-1]):
                yield Violation(4, run.id, f"two attempts of {step.step} are current: {states}")
    accepted: set[tuple[str, str, int]] = set()
    for event in history.of("acked"):
        key = event["run"], event["step"], event["attempt"]
        if event["disposition"] == "ACCEPTED":
            if key in accepted:
                yield Violation(4, event["run"], f"two results of {event['step']}, attempt {key[2]}, were ACCEPTED")
            accepted.add(key)


def ends_stay(history: History) -> Iterator[Violation]:
    """5: A terminal run or step never changes."""
    for event in history.of("saw", "ok"):
        run = history.runs.get(event.get("run", ""))
        if run is None or "steps" not in event:
            continue
        final = run_state(run.state)
        if event["state"] in ENDED and event["state"] != final:
            yield Violation(5, run.id, f"it was {event['state']} and became {final}")
        for step, state in zip(run.steps, event["steps"], strict=False):
            if state in ENDED_STEP and state != step_state(step.state):
                yield Violation(5, run.id, f"{step.step} was {state} and became {step_state(step.state)}")


def step_of(run: Run, name: str) -> StepRun:
    """The step of that name."""
    return next(step for step in run.steps if step.step == name)


def answer_of(history: History, event: Event) -> str:
    """What a driver answered in an attempt that was acked; empty when that is not known."""
    for each in history.of("answered"):
        if all(each[name] == event[name] for name in ("run", "step", "attempt", "token")):
            return str(each["answer"])
    return ""


CHECKS: tuple[Check, ...] = (what_was_acknowledged_is_there, one_current_attempt, ends_stay)


def check(history: History) -> list[Violation]:
    """All violations of all invariants."""
    return [violation for each in CHECKS for violation in each(history)]

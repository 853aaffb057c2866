"""The invariants of the design, one function each: what a history violates of it.

3 is in order.py, 7 in sight.py, and what of 4 and 8 concerns workers in hands.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from conveyor.v1.run_pb2 import Run, RunReason, StepRun
from tests.faults.calls import runs_within_are_kept
from tests.faults.gates import gates_are_decided
from tests.faults.hands import cancels_arrive, tickets_come_once
from tests.faults.history import ENDED, ENDED_STEP, Event, History, Violation, run_state, seen, step_state
from tests.faults.lanes import one_after_the_other
from tests.faults.locks import locks_are_kept
from tests.faults.matrices import matrices_fan_out
from tests.faults.order import steps_run_in_order
from tests.faults.schedules import schedules_start_one_run
from tests.faults.selectors import steps_went_to_who_fits
from tests.faults.sight import nothing_is_missed_silently

STARTS = frozenset({"start", "create", "retry", "trigger"})
"""Calls that make a run."""

Check = Callable[[History], Iterator[Violation]]


def what_was_acknowledged_is_there(history: History) -> Iterator[Violation]:
    """1: A run that was acknowledged survives, unless somebody deleted it; so does an acked result."""
    deleted = {event["run"] for event in history.of("invoke") if event["what"] == "delete"}
    for event in history.of("ok"):
        if event["what"] in STARTS and event["run"] not in history.runs and event["run"] not in deleted:
            yield Violation(1, event["run"], f"its {event['what']} was acknowledged, and it is not there")
    successes = {_attempt(e): e["token"] for e in history.of("answered") if e["answer"] == "ok"}
    for event in history.of("acked"):
        run = history.runs.get(event["run"])
        if run is None or event["disposition"] != "ACCEPTED" or successes.get(_attempt(event)) != event["token"]:
            continue
        if not _kept(step_of(run, event["step"]), event):
            yield Violation(1, run.id, f"the success of {event['step']}, attempt {event['attempt']}, was acked: lost")


def _attempt(event: Event) -> tuple[str, str, int]:
    return event["run"], event["step"], event["attempt"]


def _kept(step: StepRun, event: Event) -> bool:
    """Whether an acked success is what is stored. A step that is being cancelled keeps only its data."""
    if step_state(step.state) not in ("SUCCEEDED", "CANCELLED"):
        return False
    return bool(step.result.data.fields["token"].string_value == event["token"])


def one_request_one_run(history: History) -> Iterator[Violation]:
    """2: One request id, one run, also after a lost answer."""
    made: dict[str, set[str]] = defaultdict(set)
    stored = (seen(run) for run in history.runs.values())
    for event in (*history.of("ok", "saw"), *stored):
        if event.get("request") and "state" in event:
            made[event["request"]].add(event["run"])
    for request, runs in made.items():
        if len(runs) > 1:
            yield Violation(2, min(runs), f"the request {request} started {len(runs)} runs: {sorted(runs)}")


def one_attempt_counts(history: History) -> Iterator[Violation]:
    """4: Every accepted result changes state once; at most one attempt of a step is current.

    On gRPC no attempt begins again after its success was acked. On JetStream it may: the broker delivers a ticket
    again when it, or the server between publish and commit, died.
    """
    for run in history.runs.values():
        for step in run.steps:
            yield from _attempts(run, step)
    accepted: dict[tuple[str, str, int], Event] = {}
    for event in history.of("acked"):
        if event["disposition"] != "ACCEPTED":
            continue
        if _attempt(event) in accepted:
            yield Violation(4, event["run"], f"two results of {event['step']}, {event['attempt']}, were ACCEPTED")
        accepted[_attempt(event)] = event
    grpc = {event["by"] for event in history.of("acked")}
    for event in history.of("began"):
        ack = accepted.get(_attempt(event))
        if ack is not None and event["by"] in grpc and ack["at"] < event["at"]:
            yield Violation(4, event["run"], f"{event['step']}, {event['attempt']}, began after its result was acked")


def _fanned_out(run: Run) -> set[str]:
    """The steps with a matrix: their instances report, not they."""
    return {step.id for step in run.pipeline_snapshot.steps if step.HasField("matrix")}


def _attempts(run: Run, step: StepRun) -> Iterator[Violation]:
    numbers = [attempt.number for attempt in step.attempts]
    states = [step_state(attempt.state) for attempt in step.attempts]
    if numbers != sorted(set(numbers)):
        yield Violation(4, run.id, f"the attempts of {step.step} are {numbers}")
    if "SUCCEEDED" in states[:-1]:
        yield Violation(4, run.id, f"an attempt of {step.step} followed a success: {states}")
    if any(state not in ENDED for state in states[:-1]):
        yield Violation(4, run.id, f"two attempts of {step.step} are current: {states}")
    if step_state(step.state) in ENDED_STEP and any(state not in ENDED for state in states):
        yield Violation(4, run.id, f"{step.step} has ended, and an attempt has not: {states}")
    # Drivers of a broadcast over JetStream are not told a number.
    reported = run.pipeline and step.driver and step.step not in _fanned_out(run)
    if step_state(step.state) == "SUCCEEDED" and not step.inherited and reported:
        data = step.result.data.fields
        if states[-1:] != ["SUCCEEDED"] or data["attempt"].number_value != numbers[-1]:
            yield Violation(4, run.id, f"{step.step} succeeded by the result of another attempt than its last")


def ends_stay(history: History) -> Iterator[Violation]:
    """5: A terminal run or step never changes."""
    views: dict[str, list[Event]] = defaultdict(list)
    for event in history.of("saw", "ok"):
        if "etag" in event and not event.get("deleted"):
            views[event["run"]].append(event)
    for run in history.runs.values():
        views[run.id].append(seen(run))
    for run_id, events in views.items():
        events.sort(key=lambda event: int(event["etag"]))
        for before, after in pairwise(events):
            if before["state"] in ENDED and after["state"] != before["state"]:
                yield Violation(5, run_id, f"it was {before['state']} and became {after['state']}")
            for number, (old, new) in enumerate(zip(before["steps"], after["steps"], strict=False)):
                if old in ENDED_STEP and new != old:
                    yield Violation(5, run_id, f"its step number {number} was {old} and became {new}")


def all_move_on(history: History) -> Iterator[Violation]:
    """6: Every run that is not terminal moves on, or times out, within a bound once faults end."""
    for run in history.unfinished:
        states = seen(history.runs[run]) if run in history.runs else {}
        yield Violation(6, run, f"it has not ended: {states.get('state')}, {states.get('steps')}")


_MISTAKES = frozenset({"INTERNAL", "UNKNOWN", "INVALID_ARGUMENT", "ALREADY_EXISTS", "UNIMPLEMENTED"})


def answers_are_true(history: History) -> Iterator[Violation]:
    """8: A store that is away gives UNAVAILABLE: never a false OK, never a false NOT_FOUND, nor a mistake of ours."""
    there: set[str] = set()
    going: set[str] = set()
    must_list: dict[int, set[str]] = {}
    for event in history.of("invoke", "ok", "error", "watch-error"):
        kind, what, run = event["kind"], event.get("what"), event.get("run", "")
        if kind == "invoke" and what == "list":
            must_list[event["call"]] = there - going
        elif kind == "invoke" and what == "delete":
            going.add(run)
        elif kind == "ok" and what == "list":
            missing = must_list[event["call"]] - going - set(event["runs"])
            yield from (Violation(8, each, "it was acknowledged, and a later list left it out") for each in missing)
        elif kind == "ok" and what in STARTS:
            there.add(run)
        elif kind in ("error", "watch-error"):
            if event["code"] == "NOT_FOUND" and run in there and run not in going:
                yield Violation(8, run, f"{what or 'a watch'} said NOT_FOUND; the run is there")
            if event["code"] in _MISTAKES and event["reason"]:
                yield Violation(
                    8, run, f"{what or 'a watch'} said {event['code']} {event['reason']}: {event['message']}"
                )
    yield from _effects(history)


def _effects(history: History) -> Iterator[Violation]:
    """What was answered with OK has happened."""
    for event in history.of("ok"):
        run = history.runs.get(event.get("run", ""))
        if run is None:
            continue
        if event["what"] == "delete":
            yield Violation(8, run.id, "its delete was acknowledged, and it is there")
        stopped = run_state(run.state) == "CANCELLED" or run.reason == RunReason.RUN_REASON_TIMED_OUT
        if event["what"] == "cancel" and not stopped and run.id not in history.unfinished:
            yield Violation(8, run.id, f"its cancel was acknowledged, and it is {run_state(run.state)}")


def nothing_is_left(history: History) -> Iterator[Violation]:
    """9: After all connects, cancels and disconnects, memory, tasks and descriptors are back where they were."""
    for what, left in history.left.items():
        yield Violation(9, "", f"after everybody had gone, {what}: {left}")


def nothing_unforeseen(history: History) -> Iterator[Violation]:
    """0: Whatever happens, the servers were made for it: they log no errors, and end well. Beside the design's list."""
    yield from (Violation(0, "", told) for told in history.mistakes)
    for event in history.of("healed"):
        if "after exit code" in event["told"]:
            yield Violation(0, "", event["told"])


CHECKS: tuple[Check, ...] = (
    nothing_unforeseen,
    what_was_acknowledged_is_there,
    one_request_one_run,
    schedules_start_one_run,
    steps_run_in_order,
    one_after_the_other,
    gates_are_decided,
    matrices_fan_out,
    locks_are_kept,
    steps_went_to_who_fits,
    runs_within_are_kept,
    one_attempt_counts,
    tickets_come_once,
    ends_stay,
    all_move_on,
    nothing_is_missed_silently,
    answers_are_true,
    cancels_arrive,
    nothing_is_left,
)
"""In the order of their numbers."""


def check(history: History) -> list[Violation]:
    """All violations of all invariants."""
    return [violation for each in CHECKS for violation in each(history)]


def step_of(run: Run, name: str) -> StepRun:
    """The step of that name."""
    return next(step for step in run.steps if step.step == name)

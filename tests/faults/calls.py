"""Runs within runs in rounds: random steps that start them, and what must be true of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from random import Random

from conveyor.sdk import to_struct
from conveyor.v1.pipeline_pb2 import RetryPolicy, Step, SubPipeline
from conveyor.v1.run_pb2 import Attempt, Run, RunReason, StepReason, StepRun
from tests.faults.history import ENDED, History, Violation, run_state, step_state

_STOPPED = frozenset({"RUN_CANCELLED", "RUN_TIMED_OUT", "ABANDONED", "TIMED_OUT"})
_ENDS = {
    "UNSPECIFIED": "SUCCEEDED",
    "RESULT_TOO_LARGE": "SUCCEEDED",
    "CHILD_RUN_FAILED": "FAILED",
    "CHILD_RUN_CANCELLED": "CANCELLED",
}
"""How the run of an attempt has ended that ended for this reason."""


def random_call(rng: Random, name: str, pipelines: Sequence[str]) -> Step:
    """A step that runs one of these pipelines, with the parameter of its own run."""
    step = Step(id=name, allow_failure=rng.random() < 0.3)
    step.runs.CopyFrom(SubPipeline(pipeline=rng.choice(pipelines), params=to_struct({"n": "${{ params.n }}"})))
    if rng.random() < 0.4:
        step.timeout.FromTimedelta(timedelta(seconds=rng.uniform(0.3, 5)))
    if rng.random() < 0.4:
        step.retry.CopyFrom(RetryPolicy(max_attempts=2))
        step.retry.initial_backoff.FromTimedelta(timedelta(seconds=rng.choice([0, 0.5])))
    return step


def runs_within_are_kept(history: History) -> Iterator[Violation]:
    """3: A step that runs a pipeline ends as its run does; each attempt has one run, which ends with it."""
    within: dict[tuple[str, str], list[Run]] = {}
    for run in history.runs.values():
        if run.caller_run:
            within.setdefault((run.caller_run, run.caller_step), []).append(run)
    for run in history.runs.values():
        calls = {step.id for step in run.pipeline_snapshot.steps if step.HasField("runs")}
        for stored in run.steps:
            if stored.step in calls and not stored.inherited:
                started = {child.id: child for child in within.get((run.id, stored.step), ())}
                for text in _explained(run, stored, started):
                    yield Violation(3, run.id, text)


def _explained(run: Run, stored: StepRun, started: dict[str, Run]) -> Iterator[str]:
    named = {attempt.child_run: attempt for attempt in stored.attempts if attempt.child_run}
    for child in started.values():
        attempt = named.get(child.id)
        if attempt is None:
            yield f"{stored.step} started run {child.id}, which is that of none of its attempts"
            continue
        if child.params.fields["n"].number_value != run.params.fields["n"].number_value:
            yield f"{stored.step} gave run {child.id} another parameter than its own"
        reason = StepReason.Name(attempt.reason).removeprefix("STEP_REASON_")
        asked = child.reason == RunReason.RUN_REASON_CANCEL_REQUESTED
        if asked and step_state(attempt.state) in ENDED and reason not in _STOPPED:
            yield f"run {child.id} was cancelled, and {stored.step} ended by {reason}"
    for child_id, attempt in named.items():
        yield from _ended(stored, attempt, started.get(child_id))
    if step_state(stored.state) == "SUCCEEDED" and not named:
        yield f"{stored.step} succeeded without a run"


def _ended(stored: StepRun, attempt: Attempt, child: Run | None) -> Iterator[str]:
    reason = StepReason.Name(attempt.reason).removeprefix("STEP_REASON_")
    end = _ENDS.get(reason) if step_state(attempt.state) in ENDED else None
    if end is None:
        return
    if child is None:
        yield f"{stored.step} ended by run {attempt.child_run}, which is not there"
    elif run_state(child.state) != end:
        yield f"{stored.step} ended by {reason}, and its run {child.id} {run_state(child.state)}"
    elif end == "SUCCEEDED" and stored.result.data.fields["run"].string_value != child.id:
        yield f"{stored.step} has the result of another run than its own, {child.id}"

"""The check of locks finds what violates it, and nothing where all is as it should be."""

from __future__ import annotations

from conveyor.v1.pipeline_pb2 import Lock, Pipeline, Step
from conveyor.v1.run_pb2 import Attempt, Run, RunState, StepRun, StepState
from tests.faults.history import History
from tests.faults.locks import locks_are_kept


def held(run: str, wanted: int, began: int, ended: int, limit: int = 1) -> Run:
    """A run whose only step held a lock; times in seconds."""
    step = StepRun(run=run, step="a", state=StepState.STEP_STATE_SUCCEEDED, lock="red", attempts=[Attempt(number=1)])
    step.queue_time.FromSeconds(wanted)
    step.attempts[0].start_time.FromSeconds(began)
    step.end_time.FromSeconds(ended)
    pipeline = Pipeline(name="p", steps=[Step(id="a", driver="d", lock=Lock(key="red", limit=limit))])
    return Run(id=run, pipeline_snapshot=pipeline, state=RunState.RUN_STATE_SUCCEEDED, steps=[step])


def found(*runs: Run) -> list[str]:
    """What is wrong."""
    return [violation.text for violation in locks_are_kept(History([], {run.id: run for run in runs}))]


def test_one_after_the_other_is_fine() -> None:
    assert found(held("r", 10, 10, 20), held("s", 11, 20, 30), held("t", 12, 30, 31)) == []
    assert found(held("r", 10, 10, 20, 2), held("s", 11, 12, 30, 2), held("t", 12, 20, 31, 2)) == []


def test_two_at_once() -> None:
    assert found(held("r", 10, 10, 20), held("s", 11, 15, 30)) == ["a held lock red beside r/a; the limit is 1"]
    assert found(held("r", 10, 10, 20, 2), held("s", 11, 15, 30)) == ["a held lock red beside r/a; the limit is 1"]
    three = [held(name, 10, 10 + at, 20, 2) for at, name in enumerate("rst")]
    assert found(*three) == ["a held lock red beside r/a, s/a; the limit is 2"]


def test_one_that_overtakes() -> None:
    assert found(held("r", 10, 40, 50), held("s", 30, 31, 35)) == ["a got lock red before r/a, which was there first"]


def test_one_that_does_not_ask() -> None:
    run = held("r", 10, 10, 20)
    run.steps[0].lock = ""
    assert found(run) == ["a ran without the lock that it wants"]

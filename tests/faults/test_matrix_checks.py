"""The check of matrices finds what violates it, and nothing where all is as it should be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from conveyor.sdk import to_struct
from conveyor.v1.pipeline_pb2 import Matrix, Pipeline, Step
from conveyor.v1.run_pb2 import Attempt, Run, RunState, StepReason, StepRun, StepState
from tests.faults.history import History
from tests.faults.matrices import matrices_fan_out


def fanned(own: str, *instances: str, wanted: Sequence[int] | None = None, most: int = 0) -> Run:
    """A run whose only step has a matrix; states with their reasons."""
    values = list(range(len(instances))) if wanted is None else list(wanted)
    pipeline = Pipeline(name="p", steps=[Step(id="a", driver="d", matrix=Matrix(max_parallel=most))])
    pipeline.context.CopyFrom(to_struct({"lists": {"a": values}}))
    run = Run(id="r", pipeline="p", pipeline_snapshot=pipeline, state=RunState.RUN_STATE_SUCCEEDED)
    run.steps.append(_step("a", own, instances=len(instances)))
    for i, said in enumerate(instances):
        run.steps.append(_step(f"a[{i}]", said, matrix_step="a"))
        run.steps[-1].matrix.update({"i": i})
    return run


def _step(name: str, said: str, **fields: object) -> StepRun:
    state, _, reason = said.partition(" ")
    return StepRun(
        step=name,
        state=StepState.Value(f"STEP_STATE_{state}"),
        reason=StepReason.Value(f"STEP_REASON_{reason or 'UNSPECIFIED'}"),
        **fields,  # type: ignore[arg-type]
    )


def found(run: Run) -> list[str]:
    """What is wrong."""
    return [violation.text for violation in matrices_fan_out(History([], {run.id: run}))]


@pytest.mark.parametrize(
    "states",
    [
        ("SUCCEEDED",),
        ("SUCCEEDED", "SUCCEEDED", "SKIPPED CONDITION_FALSE"),
        ("SKIPPED CONDITION_FALSE", "SKIPPED CONDITION_FALSE"),
        ("FAILED INSTANCE_FAILED", "FAILED", "CANCELLED INSTANCE_FAIL_FAST", "SKIPPED INSTANCE_FAIL_FAST"),
        ("CANCELLED INSTANCE_FAILED", "CANCELLED", "SUCCEEDED"),
        ("CANCELLED FAIL_FAST", "SUCCEEDED", "SKIPPED FAIL_FAST"),
        ("SKIPPED RUN_CANCELLED", "SKIPPED RUN_CANCELLED"),
    ],
)
def test_what_is_fine(states: tuple[str, ...]) -> None:
    assert found(fanned(*states)) == []


def test_a_step_that_never_came_so_far() -> None:
    assert found(fanned("SKIPPED NEED_FAILED", wanted=[0, 1])) == []


def test_an_end_that_does_not_follow() -> None:
    run = fanned("SUCCEEDED", "FAILED", "SUCCEEDED")
    assert found(run) == ["a is SUCCEEDED; its instances ['FAILED', 'SUCCEEDED'] make it FAILED"]


def test_instances_that_are_not_those_of_the_list() -> None:
    assert found(fanned("SUCCEEDED", wanted=[0])) == ["a is SUCCEEDED without the instances of [0.0]"]
    assert found(fanned("SUCCEEDED", "SUCCEEDED", wanted=[0, 1])) == [
        "a has the instances ['a[0]'] for [0.0, 1.0]",
        "the instances of a are not those of [0.0, 1.0]",
    ]
    run = fanned("SUCCEEDED", "SUCCEEDED", "SUCCEEDED")
    del run.steps[2]
    assert "a says that it has 2 instances; it has 1" in found(run)


def test_instances_that_were_stopped_for_nothing() -> None:
    run = fanned("SKIPPED INSTANCE_FAIL_FAST", "SKIPPED INSTANCE_FAIL_FAST")
    assert found(run) == ["instances of a were stopped, and none had failed"]


def test_one_that_begins_after_another_failed() -> None:
    run = fanned("FAILED INSTANCE_FAILED", "FAILED", "SUCCEEDED")
    run.steps[1].end_time.FromSeconds(10)
    run.steps[2].attempts.append(Attempt(number=1))
    run.steps[2].attempts[0].start_time.FromSeconds(11)
    assert found(run) == ["a[1] began after another instance had failed"]
    run.pipeline_snapshot.steps[0].matrix.fail_fast = False
    assert found(run) == []


def test_too_many_at_a_time() -> None:
    run = fanned("SUCCEEDED", "SUCCEEDED", "SUCCEEDED", "SUCCEEDED", most=1)
    for start, step in zip((10, 20, 25), run.steps[1:], strict=True):
        step.attempts.append(Attempt(number=1))
        step.attempts[0].start_time.FromSeconds(start)
        step.attempts[0].end_time.FromSeconds(start + 10)
    assert found(run) == ["2 instances of a ran at a time, of at most 1"]
    run.steps[2].inherited = True
    run.steps[3].attempts[0].start_time.FromSeconds(20)
    assert found(run) == []

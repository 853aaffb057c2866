"""What a retry of a run takes over of its matrices."""

from __future__ import annotations

from conveyor.core.events import CancelRequested
from conveyor.core.inherit import inheritable
from conveyor.core.inputs import Verdict
from conveyor.core.plan import SECOND
from conveyor.v1 import pipeline_pb2
from tests.support.core import Run, pipeline, step
from tests.unit.test_core_matrix import SKIP, Matrices, begun, fanned, of


def test_a_retry_takes_over_a_matrix_that_succeeded() -> None:
    source = pipeline(step("z"), step("test", matrix=pipeline_pb2.Matrix(), when="x"), step("b"))
    run = begun(source, values="abc", verdicts={"b": SKIP})
    run.report("z")
    run.report("test[0]", data=b"\n\x00")
    run.report("test[2]")
    run.report("b", "FAILED")
    again = Run(source, inheritable(run.state), Matrices(test="abc"))
    assert again.steps() == {
        "z": "SUCCEEDED",
        "test": "SUCCEEDED",
        "b": "PENDING",
        "test[0]": "SUCCEEDED",
        "test[1]": "SKIPPED CONDITION_FALSE",
        "test[2]": "SUCCEEDED",
    }
    again.start()
    again.report("b")
    assert again.run == "SUCCEEDED"


def test_a_retry_takes_over_instances_of_the_same_values() -> None:
    source = fanned(fail_fast=False)
    run = begun(source, values="abc")
    run.report("test[0]", data=b"\n\x00")
    run.report("test[1]", "FAILED")
    run.report("test[2]")
    again = Run(source, inheritable(run.state), Matrices(test="abx"))
    assert set(again.state.kept) == {"test[0]", "test[2]"}
    again.start()
    assert not again.state.kept
    assert of(again, "test[0]", "test[1]", "test[2]", "test") == ["SUCCEEDED", "QUEUED", "QUEUED", "RUNNING"]
    assert again.record("test[0]").inherited
    again.report("test[1]")
    again.report("test[2]")
    assert again.run == "SUCCEEDED"
    assert not again.record("test[2]").inherited


def test_a_retry_of_a_retry_that_never_came_that_far() -> None:
    source = fanned(fail_fast=False)
    run = begun(source, values="ab")
    run.report("test[0]")
    run.report("test[1]", "FAILED")
    second = Run(source, inheritable(run.state), Matrices(test="ab"))
    second.apply(CancelRequested("no", SECOND))
    third = Run(source, inheritable(second.state), Matrices(test="ab"))
    third.start()
    assert of(third, "test[0]", "test[1]") == ["SUCCEEDED", "QUEUED"]


def test_matrices_move_up_in_a_retry() -> None:
    """The one that is taken over was expanded second; in the new run it stands first."""
    source = pipeline(
        step("test", matrix=pipeline_pb2.Matrix(fail_fast=False)),
        step("more", matrix=pipeline_pb2.Matrix()),
        graph=True,
    )
    source.failure_policy = pipeline_pb2.FAILURE_POLICY_CONTINUE
    run = begun(source, values="abc", more="de")
    for place in (0, 2):
        run.report(f"test[{place}]")
    run.report("test[1]", "FAILED")
    run.report("more[0]")
    run.report("more[1]")
    again = Run(source, inheritable(run.state), Matrices(test="abc", more="de"))
    again.start()
    assert [each.id for each in again.plan.steps] == [
        "test",
        "more",
        "more[0]",
        "more[1]",
        "test[0]",
        "test[1]",
        "test[2]",
    ]
    again.report("test[1]")
    assert again.run == "SUCCEEDED"


def test_what_is_much_is_taken_over_without_what_nobody_needs() -> None:
    source = pipeline(step("test", matrix=pipeline_pb2.Matrix(), when="x"), step("b"))
    for size, params in ((100, 100), (60_000, 0)):
        run = begun(source, values="abc", verdicts={each: Verdict(params=b"x" * size) for each in "abc"})
        for place in range(3):
            run.report(f"test[{place}]", data=b"\n\x00")
        run.report("b", "FAILED")
        kept = inheritable(run.state)
        again = Run(source, kept, Matrices(test="abc"))
        assert [len(record.params) for record in kept] == [0, params, params, params]
        assert bool(kept[1].matrix) == bool(params)
        assert again.record("test[2]").result.data == b"\n\x00"
        assert of(again, "test", "test[0]", "test[2]") == ["SUCCEEDED"] * 3
        again.start()
        assert again.step("b") == "QUEUED"

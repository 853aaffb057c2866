"""Steps with a matrix in the core: expanded, gone through, and ended as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from conveyor.core import limits
from conveyor.core.events import CancelRequested, Continue, RunCreated, StepDecided, WorkerLost
from conveyor.core.inherit import inheritable
from conveyor.core.inputs import Expansion, Seen, Verdict
from conveyor.core.matrix import values_of
from conveyor.core.model import RunState
from conveyor.core.plan import SECOND
from conveyor.v1 import pipeline_pb2, result_pb2, run_pb2
from tests.support.core import Run, answer, pipeline, step

SKIP = Verdict(run_pb2.STEP_REASON_CONDITION_FALSE)
BROKEN = Verdict(run_pb2.STEP_REASON_INPUT_MISSING, "matrix.os is not there")


def value(text: str) -> bytes:
    """The values of an instance."""
    struct = Struct()
    struct.update({"v": text})
    return struct.SerializeToString(deterministic=True)


class Matrices:
    """Answers for each step with the values that its instances have; `verdicts` are those of single values."""

    def __init__(self, verdicts: Mapping[str, Verdict] | None = None, **values: str | Expansion) -> None:
        self._verdicts = {value(text): verdict for text, verdict in (verdicts or {}).items()}
        self._values = values

    def judge(self, index: int, seen: Seen) -> Verdict:
        """What was set, or that it runs."""
        matrix = seen.steps[seen.plan.steps[index].matrix_step]
        return self._verdicts.get(values_of(matrix, index), Verdict()) if matrix is not None else Verdict()

    def expand(self, index: int, seen: Seen) -> Expansion:
        """One instance for each letter."""
        given = self._values[seen.plan.steps[index].id]
        return given if isinstance(given, Expansion) else Expansion(instances=[value(each) for each in given])

    def repeats(self, index: int) -> bool:
        """Always."""
        return True


def fanned(
    *,
    after: Sequence[pipeline_pb2.Step] = (),
    max_parallel: int = 0,
    fail_fast: bool | None = None,
    **fields: Any,
) -> pipeline_pb2.Pipeline:
    """A step `test` with a matrix, and others."""
    test = step("test", matrix=pipeline_pb2.Matrix(max_parallel=max_parallel, fail_fast=fail_fast), when="x", **fields)
    return pipeline(test, *after, graph=True)


def begun(
    source: pipeline_pb2.Pipeline, values: str = "abc", verdicts: Mapping[str, Verdict] | None = None, **more: str
) -> Run:
    """A run that has started."""
    run = Run(source, inputs=Matrices(verdicts, test=values, **more))
    run.start()
    return run


def of(run: Run, *names: str) -> list[str]:
    """States of some steps."""
    return [run.step(name) for name in names]


def test_all_instances_start_and_end_as_one_need() -> None:
    run = begun(fanned(after=[step("b", "test")]))
    assert run.steps() == {
        "test": "RUNNING",
        "b": "PENDING",
        "test[0]": "QUEUED",
        "test[1]": "QUEUED",
        "test[2]": "QUEUED",
    }
    assert [run.record(f"test[{i}]").matrix for i in range(3)] == [value(each) for each in "abc"]
    for place in (2, 0):
        run.report(f"test[{place}]")
        assert of(run, "test", "b") == ["RUNNING", "PENDING"]
    run.report("test[1]")
    assert of(run, "test", "b") == ["SUCCEEDED", "QUEUED"]
    run.report("b")
    assert run.run == "SUCCEEDED"


def test_the_commit_of_the_snapshot_leaves_the_expansion_to_the_next() -> None:
    run = Run(fanned(), inputs=Matrices(test="abc"))
    first, *rest = run.start()
    assert first.more
    assert list(first.state.head.step_states) == [run_pb2.STEP_STATE_PENDING]
    assert rest


def test_no_instances_is_success() -> None:
    run = begun(fanned(after=[step("b", "test")]), values="")
    assert of(run, "test", "b") == ["SUCCEEDED", "QUEUED"]
    assert run.record("test").message == "its matrix has no combinations"


def test_a_run_of_nothing_but_an_empty_matrix_ends() -> None:
    assert begun(fanned(), values="").run == "SUCCEEDED"


def test_many_instances_take_many_commits() -> None:
    run = begun(fanned(), values="a" * 256)
    assert run.commits >= 5
    assert run.state.head.step_states.count(run_pb2.STEP_STATE_QUEUED) == 256


def test_a_crash_after_any_commit_is_made_up_for() -> None:
    """Only what is stored goes on: a Continue finds the rest, whichever commit was the last."""
    source = fanned()
    for survived in range(1, 7):
        run = Run(source, inputs=Matrices(test="a" * 256))
        decision = run.send(RunCreated())
        for _ in range(survived - 1):
            if decision.more:
                decision = run.send(Continue())
        run.state = RunState.of(run.source, run.state.head, run.stored.values(), run.state.inputs)
        run.apply(Continue())
        assert run.state.head.step_states.count(run_pb2.STEP_STATE_QUEUED) == 256


def test_so_many_at_a_time() -> None:
    run = begun(fanned(max_parallel=2), values="abcde")
    assert of(run, *(f"test[{i}]" for i in range(5))) == ["QUEUED", "QUEUED", "PENDING", "PENDING", "PENDING"]
    run.report("test[1]")
    assert of(run, "test[0]", "test[2]", "test[3]") == ["QUEUED", "QUEUED", "PENDING"]
    run.tick(5)
    assert of(run, "test[2]", "test[3]") == ["QUEUED", "PENDING"]
    for place in (0, 2, 3, 4):
        run.report(f"test[{place}]")
    assert run.run == "SUCCEEDED"


def test_a_retried_instance_keeps_its_place() -> None:
    retry = pipeline_pb2.RetryPolicy(max_attempts=2, jitter=0)
    run = begun(fanned(max_parallel=1, retry=retry), values="ab")
    run.report("test[0]", "FAILED")
    assert of(run, "test[0]", "test[1]") == ["RETRYING DRIVER_FAILED", "PENDING"]
    run.tick(2)
    run.report("test[0]")
    assert of(run, "test[0]", "test[1]") == ["SUCCEEDED", "QUEUED"]


def test_the_first_failure_stops_the_others() -> None:
    run = begun(fanned(after=[step("b", "test")], max_parallel=3), values="abcde")
    run.claim("test[0]")
    run.claim("test[1]")
    decision = run.report("test[0]", "FAILED")
    assert [run.plan.steps[stop.index].id for stop in decision.stops] == ["test[1]"]
    assert run.steps() == {
        "test": "RUNNING",
        "b": "PENDING",
        "test[0]": "FAILED DRIVER_FAILED",
        "test[1]": "RUNNING",
        "test[2]": "SKIPPED INSTANCE_FAIL_FAST",
        "test[3]": "SKIPPED INSTANCE_FAIL_FAST",
        "test[4]": "SKIPPED INSTANCE_FAIL_FAST",
    }
    assert run.run == "RUNNING"
    run.report("test[1]", "CANCELLED")
    assert of(run, "test[1]", "test", "b") == [
        "CANCELLED INSTANCE_FAIL_FAST",
        "FAILED INSTANCE_FAILED",
        "SKIPPED FAIL_FAST",
    ]
    assert run.record("test").message == "test[0] failed"
    assert run.run == "FAILED STEP_FAILED"
    assert run.state.head.message == "step test failed: test[0] failed"


@pytest.mark.parametrize(("outcome", "end"), [("SUCCEEDED", "SUCCEEDED"), ("FAILED", "CANCELLED INSTANCE_FAIL_FAST")])
def test_what_a_stopped_instance_says_in_the_end(outcome: str, end: str) -> None:
    run = begun(fanned(), values="ab")
    run.claim("test[1]")
    run.report("test[0]", "FAILED")
    run.report("test[1]", outcome)
    assert of(run, "test[1]", "test") == [end, "FAILED INSTANCE_FAILED"]


def test_a_stopped_instance_that_stays_silent_is_abandoned() -> None:
    run = begun(fanned(), values="ab")
    run.claim("test[1]")
    run.report("test[0]", "FAILED")
    assert run.timer == 30
    run.tick(29)
    assert run.step("test[1]") == "RUNNING"
    run.tick(1)
    assert of(run, "test[1]", "test") == ["CANCELLED ABANDONED", "FAILED INSTANCE_FAILED"]


def test_a_stopped_instance_whose_worker_is_lost_is_not_tried_again() -> None:
    run = begun(fanned(), values="ab")
    run.claim("test[1]", session="s1")
    run.report("test[0]", "FAILED")
    run.apply(WorkerLost("s1", ""))
    assert of(run, "test[1]", "test") == ["CANCELLED WORKER_LOST", "FAILED INSTANCE_FAILED"]


def test_without_fail_fast_the_others_go_on() -> None:
    run = begun(fanned(after=[step("b")], fail_fast=False, max_parallel=1), values="abc")
    run.report("test[0]", "FAILED")
    # It counts towards the run only with its step.
    assert of(run, "test[1]", "b") == ["QUEUED", "QUEUED"]
    run.report("test[1]", "FAILED")
    run.report("test[2]")
    assert run.step("test") == "FAILED INSTANCE_FAILED"
    assert run.record("test").message == "test[0], test[1] failed"
    assert run.step("b") == "SKIPPED FAIL_FAST"


def test_instances_that_may_fail_stop_nobody() -> None:
    run = begun(fanned(after=[step("b", "test")], allow_failure=True), values="ab")
    run.report("test[0]", "FAILED")
    assert run.step("test[1]") == "QUEUED"
    run.report("test[1]")
    assert of(run, "test", "b") == ["FAILED INSTANCE_FAILED", "QUEUED"]
    run.report("b")
    assert run.run == "SUCCEEDED"


def test_conditions_of_instances() -> None:
    run = begun(fanned(after=[step("b", "test")], max_parallel=1), values="abc", verdicts={"a": SKIP, "c": SKIP})
    assert of(run, "test[0]", "test[1]", "test[2]") == ["SKIPPED CONDITION_FALSE", "QUEUED", "PENDING"]
    run.report("test[1]")
    assert of(run, "test[2]", "test", "b") == ["SKIPPED CONDITION_FALSE", "SUCCEEDED", "QUEUED"]


def test_all_instances_skipped_by_their_conditions_skip_the_step() -> None:
    run = begun(fanned(after=[step("b", "test")]), values="ab", verdicts={"a": SKIP, "b": SKIP})
    assert of(run, "test", "b") == ["SKIPPED CONDITION_FALSE", "SKIPPED NEED_SKIPPED"]
    assert run.run == "SUCCEEDED"


def test_an_instance_whose_params_come_to_nothing_fails() -> None:
    run = begun(fanned(), values="abc", verdicts={"b": BROKEN})
    assert of(run, "test[0]", "test[1]", "test[2]", "test") == [
        "SKIPPED INSTANCE_FAIL_FAST",
        "FAILED INPUT_MISSING",
        "SKIPPED INSTANCE_FAIL_FAST",
        "FAILED INSTANCE_FAILED",
    ]
    assert run.record("test").message == "test[1] failed: matrix.os is not there"


@pytest.mark.parametrize(
    ("expansion", "end"),
    [
        (Expansion(run_pb2.STEP_REASON_CONDITION_FALSE), "SKIPPED CONDITION_FALSE"),
        (Expansion(run_pb2.STEP_REASON_INPUT_INVALID, "it is no list"), "FAILED INPUT_INVALID"),
    ],
)
def test_a_matrix_that_is_not_expanded(expansion: Expansion, end: str) -> None:
    run = Run(fanned(), inputs=Matrices(test=expansion))
    run.start()
    assert run.step("test") == end
    assert len(run.plan.steps) == 1


def test_the_instances_of_a_run_are_bounded() -> None:
    names = [f"m{i}" for i in range(8)]
    source = pipeline(*(step(name, matrix=pipeline_pb2.Matrix()) for name in names), graph=True)
    source.failure_policy = pipeline_pb2.FAILURE_POLICY_CONTINUE
    run = Run(source, inputs=Matrices(**dict.fromkeys(names, "a" * 256)))
    run.start()
    assert [run.step(name) for name in names] == ["RUNNING"] * 7 + ["FAILED INPUT_TOO_LARGE"]
    total = 8 * 256
    assert run.record("m7").message == (
        f"the matrices of the run would have {total} instances; at most {limits.RUN_INSTANCES}"
    )


def test_a_failure_elsewhere_stops_what_has_not_started() -> None:
    run = begun(fanned(after=[step("b")], max_parallel=2), values="abcd")
    run.claim("test[0]")
    run.report("b", "FAILED")
    assert of(run, "test[0]", "test[1]", "test[2]") == ["RUNNING", "SKIPPED FAIL_FAST", "SKIPPED FAIL_FAST"]
    run.report("test[0]")
    assert run.step("test") == "CANCELLED FAIL_FAST"
    assert run.run == "FAILED STEP_FAILED"
    assert run.state.head.message == "step b failed"


def test_a_cancel_ends_all_of_it() -> None:
    run = begun(fanned(max_parallel=2), values="abc")
    run.claim("test[0]")
    (decision, *_) = run.apply(CancelRequested("enough", 10 * SECOND))
    assert [stop.index for stop in decision.stops] == [run.index("test[0]")]
    assert of(run, "test", "test[0]", "test[1]", "test[2]") == [
        "RUNNING",
        "RUNNING",
        "CANCELLED RUN_CANCELLED",
        "SKIPPED RUN_CANCELLED",
    ]
    run.report("test[0]", "CANCELLED")
    assert of(run, "test[0]", "test") == ["CANCELLED RUN_CANCELLED", "CANCELLED RUN_CANCELLED"]
    assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_a_cancel_before_the_expansion_is_stored() -> None:
    run = Run(fanned(), inputs=Matrices(test="abc"))
    run.send(RunCreated())
    run.apply(CancelRequested("enough", SECOND))
    assert run.steps() == {"test": "SKIPPED RUN_CANCELLED"}


def test_a_cancel_of_hundreds() -> None:
    run = begun(fanned(), values="a" * 256)
    run.apply(CancelRequested("enough", SECOND))
    assert set(run.steps().values()) == {"CANCELLED RUN_CANCELLED"}
    assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_the_run_timeout_counts_for_instances() -> None:
    source = fanned()
    source.timeout.seconds = 5
    run = begun(source, values="ab")
    run.claim("test[0]")
    run.tick(5)
    run.report("test[0]", "CANCELLED")
    assert of(run, "test[0]", "test[1]", "test") == [
        "CANCELLED RUN_TIMED_OUT",
        "CANCELLED RUN_TIMED_OUT",
        "CANCELLED RUN_TIMED_OUT",
    ]
    assert run.run == "FAILED TIMED_OUT"


def test_a_finally_step_with_a_matrix() -> None:
    source = pipeline(step("a"), finally_steps=[step("test", matrix=pipeline_pb2.Matrix(max_parallel=1))])
    run = begun(source, values="ab")
    assert run.step("test") == "PENDING"
    run.report("a", "FAILED")
    assert of(run, "test", "test[0]", "test[1]") == ["RUNNING", "QUEUED", "PENDING"]
    assert run.plan.steps[run.index("test[1]")].is_finally
    run.report("test[0]")
    run.report("test[1]")
    assert of(run, "test[1]", "test") == ["SUCCEEDED", "SUCCEEDED"]
    assert run.run == "FAILED STEP_FAILED"


def test_the_bound_of_finally_steps_counts_for_instances() -> None:
    source = pipeline(step("a"), finally_steps=[step("test", matrix=pipeline_pb2.Matrix(max_parallel=2))])
    source.finally_timeout.seconds = 5
    run = begun(source, values="abc")
    run.report("a")
    run.claim("test[0]")
    run.tick(5)
    assert of(run, "test[0]", "test[1]", "test[2]", "test") == [
        "CANCELLED ABANDONED",
        "CANCELLED RUN_TIMED_OUT",
        "SKIPPED RUN_TIMED_OUT",
        "CANCELLED INSTANCE_FAILED",
    ]
    assert run.run == "FAILED TIMED_OUT"


def test_matrices_after_each_other() -> None:
    """A list whose second matrix is expanded when the first has ended; indexes never move."""
    source = pipeline(step("test", matrix=pipeline_pb2.Matrix()), step("more", matrix=pipeline_pb2.Matrix()), step("z"))
    run = begun(source, values="ab", more="cd")
    for name in ("test[0]", "test[1]", "more[1]", "more[0]"):
        run.report(name)
    assert [each.id for each in run.plan.steps] == ["test", "more", "z", "test[0]", "test[1]", "more[0]", "more[1]"]
    assert run.plan.in_order() == ["test", "test[0]", "test[1]", "more", "more[0]", "more[1]", "z"]
    assert [run.plan.steps[i].id for i in run.plan.inputs(run.index("z"))] == [
        "test",
        "more",
        "test[0]",
        "test[1]",
        "more[0]",
        "more[1]",
    ]
    assert [run.plan.steps[i].id for i in run.plan.inputs(run.index("more[1]"))] == ["test", "test[0]", "test[1]"]


def test_the_step_itself_takes_no_result() -> None:
    run = begun(fanned())
    (decision,) = run.apply(answer("test", 0, "", "d-test"))
    assert decision.disposition == result_pb2.DISPOSITION_INVALID
    assert "results are those of its instances, like test[0]" in decision.message


def test_a_lost_worker_costs_its_instance_an_attempt() -> None:
    run = begun(fanned(), values="ab")
    run.claim("test[0]", session="s1")
    run.claim("test[1]", session="s2")
    run.apply(WorkerLost("s1", ""))
    assert of(run, "test[0]", "test[1]", "test") == ["QUEUED", "RUNNING", "RUNNING"]
    assert run.record("test[0]").attempt == 2


def test_nothing_is_lost_with_the_session_that_nobody_has() -> None:
    """The record of the matrix itself is RUNNING and has no worker."""
    run = begun(fanned(), values="ab")
    assert not run.send(WorkerLost("", "")).dirty


def test_optional_gates_that_a_run_passes_by() -> None:
    """One skips its step no more than a condition does, unless all are passed by. A retry takes that over."""
    test = pipeline_pb2.Step(id="test", gate={"optional": True}, matrix=pipeline_pb2.Matrix())
    source = pipeline(test, step("a"), step("z", "test", rule="ALL_DONE"), graph=True)
    for decided, ends in ((0, "SKIPPED NOT_DECIDED"), (1, "SUCCEEDED")):
        run = begun(source, values="ab")
        for place in range(decided):
            run.apply(StepDecided(run.index(f"test[{place}]"), pipeline_pb2.DECISION_APPROVED, "ann"))
        run.report("a")
        assert of(run, "test", "test[1]") == [ends, "SKIPPED NOT_DECIDED"]
        run.report("z", "FAILED")
    again = Run(source, inheritable(run.state), Matrices(test="ab"))
    assert of(again, "test", "test[0]", "test[1]") == ["SUCCEEDED", "SUCCEEDED", "SKIPPED NOT_DECIDED"]

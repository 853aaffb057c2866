"""Gates with a matrix: one for each combination."""

from __future__ import annotations

from typing import Any

import pytest

from conveyor.core.events import StepDecided
from conveyor.v1 import pipeline_pb2
from tests.support.core import Run, gate, pipeline, step
from tests.unit.test_core_matrix import begun


def asked(approvals: str = "", **fields: Any) -> Run:
    """A run with a matrix of optional gates beside a step, when those of these letters have been approved."""
    gates = gate("test", matrix=pipeline_pb2.Matrix(), optional=True, **fields)
    run = begun(pipeline(gates, step("beside"), step("after", "test"), graph=True))
    for letter in approvals:
        run.apply(StepDecided(run.index(f"test[{'abc'.index(letter)}]"), pipeline_pb2.DECISION_APPROVED, "ann"))
    return run


@pytest.mark.parametrize(
    ("approvals", "test", "after"),
    [
        ("", "SKIPPED NOT_DECIDED", "SKIPPED NEED_SKIPPED"),
        ("b", "SUCCEEDED", "QUEUED"),
        ("abc", "SUCCEEDED", "QUEUED"),
    ],
)
def test_optional_gates_in_a_matrix_are_passed_by(approvals: str, test: str, after: str) -> None:
    run = asked(approvals)
    run.report("beside")
    assert (run.step("test"), run.step("after")) == (test, after)
    for place, letter in enumerate("abc"):
        assert run.step(f"test[{place}]") == ("SUCCEEDED" if letter in approvals else "SKIPPED NOT_DECIDED")


def test_a_matrix_of_gates_that_must_be_decided_holds_its_run() -> None:
    run = begun(pipeline(gate("test", matrix=pipeline_pb2.Matrix(max_parallel=2)), graph=True))
    for place in range(3):
        assert run.step(f"test[{place}]") == "QUEUED AWAITING_DECISION"
        run.apply(StepDecided(run.index(f"test[{place}]"), pipeline_pb2.DECISION_APPROVED, "ann"))
    assert run.run == "SUCCEEDED"

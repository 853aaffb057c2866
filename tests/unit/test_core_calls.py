"""Steps that run a pipeline: how they get their run, wait for it, and let it go."""

from __future__ import annotations

from typing import Any

import pytest

from conveyor.core.events import Call, Called, CancelRequested, ChildEnded
from conveyor.core.inherit import inheritable
from conveyor.core.limits import RUN_RESULTS_BYTES
from conveyor.core.model import Decision, Stop
from conveyor.core.plan import SECOND
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.support.core import Run, answer, pipeline, step


def call(name: str, *needs: str, **fields: Any) -> pipeline_pb2.Step:
    made = step(name, *needs, **fields)
    made.runs.pipeline = "other"
    return made


def called(run: Run, name: str, child: str) -> Decision:
    """The step gets its run."""
    return run.apply(Called((Call(run.index(name), child),)))[0]


def ended(run: Run, name: str, child: str, state: str = "SUCCEEDED", **fields: Any) -> Decision:
    """The run of the step has ended."""
    return run.apply(ChildEnded(name, child, run_pb2.RunState.Value(f"RUN_STATE_{state}"), **fields))[0]


def at_work(**fields: Any) -> Run:
    """A run whose step b waits for run c1."""
    run = Run(pipeline(step("a"), call("b", **fields), step("c")))
    run.start()
    run.report("a")
    called(run, "b", "c1")
    return run


def test_a_ready_step_gets_a_run_and_no_worker() -> None:
    run = Run(pipeline(step("a"), call("b"), step("c")))
    run.start()
    assert run.report("a").ready == (1,)
    run.claim("b")
    assert run.step("b") == "QUEUED"
    called(run, "b", "c1")
    assert (run.step("b"), run.record("b").child_run, run.timer) == ("RUNNING", "c1", 24 * 3600)
    called(run, "b", "c2")
    assert run.record("b").child_run == "c1"
    assert called(run, "a", "c3").dirty is False


def test_what_its_run_comes_to_is_its_result() -> None:
    run = at_work()
    assert ended(run, "b", "c1", data=b"\n\0").ready == (2,)
    assert (run.step("b"), run.record("b").result.data) == ("SUCCEEDED", b"\n\0")
    assert [(each.number, each.child_run) for each in run.record("b").attempts] == [(1, "c1")]
    assert inheritable(run.state)[1].child_run == "c1"


@pytest.mark.parametrize(
    ("state", "fields", "end"),
    [
        ("FAILED", {"message": "boom"}, "FAILED CHILD_RUN_FAILED"),
        ("CANCELLED", {"message": "boom"}, "CANCELLED CHILD_RUN_CANCELLED"),
        ("FAILED", {"message": "boom", "invalid": 35, "exists": False}, "FAILED CHILD_RUN_REFUSED"),
        ("SUCCEEDED", {"message": "boom", "invalid": 24}, "FAILED RESULT_TOO_LARGE"),
        ("SUCCEEDED", {"data": bytes(RUN_RESULTS_BYTES + 1)}, "FAILED RESULT_TOO_LARGE"),
    ],
)
def test_how_else_its_run_may_end(state: str, fields: dict[str, Any], end: str) -> None:
    run = at_work()
    ended(run, "b", "c1", state, **fields)
    assert (run.step("b"), run.step("c")) == (end, "SKIPPED " + ("FAIL_FAST" if "FAILED" in end else "NEED_FAILED"))
    assert run.record("b").child_run == ("" if "exists" in fields else "c1")
    assert run.run.startswith("FAILED")


def test_each_attempt_is_another_run() -> None:
    run = at_work(retry={"max_attempts": 2})
    ended(run, "b", "c1", "FAILED", message="boom")
    assert (run.step("b"), run.timer) == ("RETRYING CHILD_RUN_FAILED", 1)
    assert run.tick(1)[0].ready == (1,)
    called(run, "b", "c2")
    assert not ended(run, "b", "c1").dirty
    ended(run, "b", "c2")
    attempts = [(each.number, each.child_run) for each in run.record("b").attempts]
    assert (run.step("b"), attempts) == ("SUCCEEDED", [(1, "c1"), (2, "c2")])


def test_one_that_is_refused_is_not_tried_again() -> None:
    run = at_work(retry={"max_attempts": 5})
    ended(run, "b", "c1", "FAILED", invalid=run_pb2.STEP_REASON_CHILD_RUN_REFUSED, exists=False)
    assert run.step("b") == "FAILED CHILD_RUN_REFUSED"


def test_a_timeout_lets_the_run_go() -> None:
    run = at_work(timeout={"seconds": 5}, retry={"max_attempts": 2})
    assert run.timer == 5
    (decision,) = run.tick(5)
    assert [(stop.index, stop.token) for stop in decision.stops] == [(1, "c1")]
    assert run.step("b") == "RETRYING TIMED_OUT"
    assert not ended(run, "b", "c1", "CANCELLED").dirty
    run.tick(1)
    called(run, "b", "c2")
    ended(run, "b", "c2")
    assert run.step("b") == "SUCCEEDED"


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED"])
def test_a_cancel_stops_its_run_and_waits_for_it(state: str) -> None:
    run = at_work(retry={"max_attempts": 2})
    (stop,) = run.apply(CancelRequested("enough", 10 * SECOND))[0].stops
    assert stop == Stop(1, 1, "", run_pb2.TRANSPORT_UNSPECIFIED, "c1", "enough", 10 * SECOND)
    assert (run.step("b"), run.run) == ("RUNNING", "CANCELLING CANCEL_REQUESTED")
    ended(run, "b", "c1", state)
    assert (run.step("b"), run.run) == ("CANCELLED RUN_CANCELLED", "CANCELLED CANCEL_REQUESTED")


def test_a_run_timeout_says_so() -> None:
    run = at_work()
    run.tick(24 * 3600)
    ended(run, "b", "c1", "CANCELLED")
    assert (run.step("b"), run.run) == ("CANCELLED RUN_TIMED_OUT", "FAILED TIMED_OUT")


def test_a_run_that_does_not_end_in_time_is_named() -> None:
    run = at_work()
    run.apply(CancelRequested("enough", 10 * SECOND))
    run.tick(10)
    assert run.step("b") == "CANCELLED ABANDONED"
    assert "run c1 had not ended in time" in run.record("b").message
    assert not ended(run, "b", "c1", "CANCELLED").dirty


def test_force_names_the_run_too() -> None:
    run = at_work()
    assert [stop.grace for stop in run.apply(CancelRequested("enough", 0, force=True))[0].stops] == [0]
    assert run.record("b").message == "cancelled by force; run c1 may still be at work"


def test_the_bound_of_finally_steps_names_the_run() -> None:
    run = Run(pipeline(step("a"), finally_steps=[call("f")], finally_timeout={"seconds": 9}))
    run.start()
    run.report("a")
    called(run, "f", "c1")
    assert [stop.token for stop in run.tick(9)[0].stops] == ["c1"]
    assert run.record("f").message == "the finally steps took longer than 9 s; run c1 may still be at work"


def test_no_driver_answers_for_it() -> None:
    run = at_work()
    assert run.apply(answer("b", 1, "c1", ""))[0].message == "step b is no driver's work"
    assert run.step("b") == "RUNNING"

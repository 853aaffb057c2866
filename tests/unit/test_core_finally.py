"""Finally steps, and what a retry of a run takes over."""

from __future__ import annotations

import pytest

from conveyor.core.events import CancelRequested
from conveyor.core.inherit import inheritable
from conveyor.core.plan import SECOND
from tests.support.core import Run, pipeline, step


@pytest.mark.parametrize(("outcome", "end"), [("SUCCEEDED", "SUCCEEDED"), ("FAILED", "FAILED STEP_FAILED")])
def test_finally_steps_start_together_when_all_others_ended(outcome: str, end: str) -> None:
    run = Run(pipeline(step("a"), step("b"), finally_steps=[step("f"), step("g")]))
    run.start()
    assert run.step("f") == "PENDING"
    run.report("a")
    ready = run.report("b", outcome).ready
    assert ready == (2, 3)
    run.report("g")
    run.report("f")
    assert run.run == end


def test_failed_finally_step_fails_the_run_and_stops_no_other() -> None:
    run = Run(pipeline(step("a"), finally_steps=[step("f"), step("g")]))
    run.start()
    run.report("a")
    run.report("f", "FAILED")
    assert run.step("g") == "QUEUED"
    run.report("g")
    assert run.run == "FAILED STEP_FAILED"


def test_finally_steps_have_a_bound_of_their_own() -> None:
    bounded = pipeline(step("a"), finally_steps=[step("f"), step("g"), step("h", retry={"max_attempts": 2})])
    bounded.finally_timeout.seconds = 60
    run = Run(bounded)
    run.start()
    run.report("a")
    run.claim("f")
    run.report("h", "FAILED")
    assert run.timer == 1
    run.tick(59)
    assert run.step("h") == "QUEUED"
    assert run.timer == 1
    decision = run.tick(1)[0]
    assert [stop.index for stop in decision.stops] == [1]
    assert run.steps() == {
        "a": "SUCCEEDED",
        "f": "CANCELLED ABANDONED",
        "g": "CANCELLED RUN_TIMED_OUT",
        "h": "CANCELLED RUN_TIMED_OUT",
    }
    assert run.run == "FAILED TIMED_OUT"
    assert run.state.head.message == "the finally steps took longer than 60 s"


@pytest.mark.parametrize("failing", ["a", "f"])
def test_bound_of_finally_steps_leaves_the_reason_of_a_failed_run(failing: str) -> None:
    run = Run(pipeline(step("a"), finally_steps=[step("f"), step("g")]))
    run.start()
    for name in ("a", "f"):
        run.report(name, "FAILED" if name == failing else "SUCCEEDED", message="boom")
    run.tick(3600)
    assert run.step("g") == "CANCELLED RUN_TIMED_OUT"
    assert run.run == "FAILED STEP_FAILED"
    assert run.state.head.message == f"step {failing} failed: boom"


def test_bound_of_finally_steps_that_may_fail() -> None:
    run = Run(pipeline(step("a"), finally_steps=[step("f", allow_failure=True)]))
    run.start()
    run.report("a")
    run.tick(3600)
    assert run.run == "SUCCEEDED"


def test_run_timeout_does_not_touch_finally_steps() -> None:
    run = Run(pipeline(step("a"), finally_steps=[step("f")], timeout={"seconds": 10}))
    run.start()
    run.report("a")
    run.claim("f")
    run.tick(20)
    assert run.step("f") == "RUNNING"
    run.report("f")
    assert run.run == "SUCCEEDED"


def test_cancel_while_finally_steps_run_leaves_them_alone() -> None:
    run = Run(pipeline(step("a"), finally_steps=[step("f")]))
    run.start()
    run.report("a")
    run.claim("f")
    assert not run.apply(CancelRequested("enough", 10 * SECOND))[0].stops
    assert run.run == "CANCELLING CANCEL_REQUESTED"
    run.report("f")
    assert run.run == "CANCELLED CANCEL_REQUESTED"


# Retry of a run


def test_retry_starts_from_the_failed_step() -> None:
    """F32: what succeeded is taken over as it was."""
    chain = pipeline(step("a", retry={"max_attempts": 2}), step("b"), step("c"), step("d"))
    first = Run(chain)
    first.start()
    first.report("a", "FAILED")
    first.tick(1)
    first.report("a", data=b"image")
    first.report("b")
    first.report("c", "FAILED")
    kept = inheritable(first.state)
    assert [record.step for record in kept] == ["a", "b"]
    assert kept[0].result.data == b"image"
    assert [attempt.number for attempt in kept[0].attempts] == [2]
    assert (kept[0].start_time, kept[0].end_time) == (first.record("a").start_time, first.record("a").end_time)
    second = Run(chain, kept)
    assert second.start()[0].ready == (2,)
    assert second.state.head.result_bytes == len(b"image")
    second.report("c")
    second.report("d")
    assert second.run == "SUCCEEDED"
    assert second.record("a").inherited


def test_retry_runs_again_what_stands_on_a_failure() -> None:
    run = Run(pipeline(step("a", allow_failure=True), step("b", "a"), step("c"), step("d", "c"), graph=True))
    run.start()
    run.report("a", "FAILED")
    run.report("b")
    run.report("c")
    run.report("d", "FAILED")
    assert [record.step for record in inheritable(run.state)] == ["c"]


def test_retry_keeps_what_succeeded_beyond_a_step_that_is_skipped_again() -> None:
    run = Run(
        pipeline(
            step("a"),
            step("alarm", "a", rule="ONE_FAILED"),
            step("b", "a", "alarm", rule="NONE_FAILED"),
            step("c", "b"),
            graph=True,
        )
    )
    run.start()
    run.report("a")
    run.report("b")
    run.report("c", "FAILED")
    kept = inheritable(run.state)
    assert [record.step for record in kept] == ["a", "b"]
    again = Run(
        pipeline(
            step("a"),
            step("alarm", "a", rule="ONE_FAILED"),
            step("b", "a", "alarm", rule="NONE_FAILED"),
            step("c", "b"),
            graph=True,
        ),
        kept,
    )
    assert again.start()[0].ready == (3,)
    again.report("c")
    assert again.run == "SUCCEEDED"


def test_retry_when_only_a_finally_step_failed() -> None:
    source = pipeline(step("a"), finally_steps=[step("f")])
    run = Run(source)
    run.start()
    run.report("a")
    run.report("f", "FAILED")
    again = Run(source, inheritable(run.state))
    assert again.start()[0].ready == (1,)

"""The order of steps: lists, graphs, trigger rules, failure policies, finally steps, and how the run ends."""

from __future__ import annotations

import pytest

from conveyor.core.model import CancelRequested, InputRefused, inheritable
from conveyor.core.plan import SECOND, compile_plan
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.support.core import Run, pipeline, step

CONTINUE = pipeline_pb2.FAILURE_POLICY_CONTINUE


def test_list_runs_one_after_the_other() -> None:
    run = Run(pipeline(step("a"), step("b"), step("c")))
    run.start()
    assert run.steps() == {"a": "QUEUED", "b": "PENDING", "c": "PENDING"}
    assert run.report("a").ready == (1,)
    assert run.report("b").ready == (2,)
    run.report("c")
    assert run.run == "SUCCEEDED"
    assert set(run.steps().values()) == {"SUCCEEDED"}


def test_graph_starts_what_needs_nothing_and_joins_once() -> None:
    run = Run(pipeline(step("join", "a", "b", "a"), step("a"), step("b"), graph=True))
    assert run.start()[-1].ready == (1, 2)
    assert run.report("a").ready == ()
    assert run.report("b").ready == (0,)
    run.report("join")
    assert run.run == "SUCCEEDED"


def test_one_driver_in_two_steps() -> None:
    """F01: results are matched by step, attempt and token."""
    run = Run(pipeline(step("s1", driver="x"), step("s2", driver="y"), step("s3", driver="x")))
    run.start()
    assert [run.report(name).ready for name in ("s1", "s2", "s3")] == [(1,), (2,), ()]
    assert [run.record(name).attempt for name in ("s1", "s2", "s3")] == [1, 1, 1]
    assert run.run == "SUCCEEDED"


# What becomes of a step, for each rule and each end of its need: the table of the design.
RULES = [
    # rule, allow_failure of the need, how the need ends, what becomes of the step
    ("ALL_SUCCESS", False, "SUCCEEDED", "QUEUED"),
    ("ALL_SUCCESS", False, "FAILED", "SKIPPED NEED_FAILED"),
    ("ALL_SUCCESS", True, "FAILED", "QUEUED"),
    ("ALL_SUCCESS", False, "CANCELLED", "SKIPPED NEED_FAILED"),
    ("ALL_SUCCESS", False, "SKIPPED", "SKIPPED NEED_SKIPPED"),
    ("NONE_FAILED", False, "SUCCEEDED", "QUEUED"),
    ("NONE_FAILED", False, "FAILED", "SKIPPED NEED_FAILED"),
    ("NONE_FAILED", True, "FAILED", "QUEUED"),
    ("NONE_FAILED", False, "CANCELLED", "SKIPPED NEED_FAILED"),
    ("NONE_FAILED", False, "SKIPPED", "QUEUED"),
    ("ONE_FAILED", False, "SUCCEEDED", "SKIPPED NO_NEED_FAILED"),
    ("ONE_FAILED", False, "FAILED", "QUEUED"),
    ("ONE_FAILED", True, "FAILED", "QUEUED"),
    ("ONE_FAILED", False, "CANCELLED", "SKIPPED NO_NEED_FAILED"),
    ("ONE_FAILED", False, "SKIPPED", "SKIPPED NO_NEED_FAILED"),
    ("ALL_DONE", False, "SUCCEEDED", "QUEUED"),
    ("ALL_DONE", False, "FAILED", "QUEUED"),
    ("ALL_DONE", True, "FAILED", "QUEUED"),
    ("ALL_DONE", False, "CANCELLED", "QUEUED"),
    ("ALL_DONE", False, "SKIPPED", "QUEUED"),
]


@pytest.mark.parametrize(("rule", "allowed", "end", "then"), RULES)
def test_trigger_rule(rule: str, allowed: bool, end: str, then: str) -> None:
    """With CONTINUE, so that nothing but the rule decides; `ok` succeeds and never decides alone."""
    need = step("need", "root", allow_failure=allowed, rule="ONE_FAILED" if end == "SKIPPED" else "ALL_SUCCESS")
    judged = step("s", "need", "ok", rule=rule)
    run = Run(pipeline(step("root"), step("ok"), need, judged, graph=True, failure_policy=CONTINUE))
    run.start()
    run.report("ok")
    run.report("root")
    if end != "SKIPPED":
        run.report("need", end)
    assert run.step("need").split()[0] == end
    assert run.step("s") == then


def test_rule_waits_for_all_needs() -> None:
    """Also the one that could be decided at once."""
    for rule in ("ONE_FAILED", "ALL_SUCCESS", "NONE_FAILED", "ALL_DONE"):
        run = Run(pipeline(step("a"), step("b"), step("s", "a", "b", rule=rule), graph=True, failure_policy=CONTINUE))
        run.start()
        run.report("a", "FAILED")
        assert run.step("s") == "PENDING"


def test_skip_does_not_travel_through_a_step_that_ran() -> None:
    """F06: only direct needs count."""
    run = Run(
        pipeline(
            step("root"),
            step("s1", "root", rule="ONE_FAILED"),
            step("s2", "s1", rule="ALL_DONE"),
            step("s3", "s2"),
            graph=True,
        )
    )
    run.start()
    run.report("root")
    assert run.step("s1") == "SKIPPED NO_NEED_FAILED"
    run.report("s2")
    run.report("s3")
    assert run.run == "SUCCEEDED"


def test_skipped_need_skips_the_same_way_at_any_distance() -> None:
    """F04, F07, F11: and the run ends at once."""
    run = Run(pipeline(step("a", rule="ONE_FAILED"), step("b", "a"), step("c", "b"), step("d", "a", "c"), graph=True))
    assert len(run.start()) == 1
    assert run.steps() == {
        "a": "SKIPPED NO_NEED_FAILED",
        "b": "SKIPPED NEED_SKIPPED",
        "c": "SKIPPED NEED_SKIPPED",
        "d": "SKIPPED NEED_SKIPPED",
    }
    assert run.run == "SUCCEEDED"


@pytest.mark.parametrize("allowed", [True, False])
def test_allowed_failure(allowed: bool) -> None:
    """F08: seen, but neither fails the run nor stops the steps that need it."""
    run = Run(pipeline(step("a", allow_failure=allowed), step("b", "a"), step("c"), graph=True))
    run.start()
    run.report("a", "FAILED", message="boom")
    if allowed:
        run.report("b")
        run.report("c")
        assert run.step("a") == "FAILED DRIVER_FAILED"
        assert run.run == "SUCCEEDED"
    else:
        assert run.steps() == {"a": "FAILED DRIVER_FAILED", "b": "SKIPPED FAIL_FAST", "c": "SKIPPED FAIL_FAST"}
        assert run.run == "FAILED STEP_FAILED"
        assert run.state.head.message == "step a failed: boom"


def test_failure_handler_does_not_turn_the_run_green() -> None:
    """F10."""
    run = Run(pipeline(step("a"), step("x", "a"), step("y", "a", rule="ONE_FAILED"), graph=True))
    run.start()
    run.report("a", "FAILED")
    assert run.step("x") == "SKIPPED FAIL_FAST"
    run.report("y")
    assert run.run == "FAILED STEP_FAILED"


def test_failed_list_ends() -> None:
    """F15: a run that cannot go on has an end."""
    run = Run(pipeline(step("a"), step("b"), step("c")))
    run.start()
    run.report("a", "FAILED")
    assert run.steps() == {"a": "FAILED DRIVER_FAILED", "b": "SKIPPED FAIL_FAST", "c": "SKIPPED FAIL_FAST"}
    assert run.run == "FAILED STEP_FAILED"
    assert run.timer == -1


def test_missing_input_fails_the_step_and_the_run() -> None:
    """F13: its driver never sees it."""
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    run.report("a")
    missing = run_pb2.STEP_REASON_INPUT_MISSING
    run.apply(InputRefused(1, missing, "steps.a.data.image is not there"))
    assert run.steps() == {"a": "SUCCEEDED", "b": "FAILED INPUT_MISSING"}
    assert run.run == "FAILED STEP_FAILED"
    assert run.state.head.message == "step b failed: steps.a.data.image is not there"


def test_fail_fast_stops_what_waits_and_lets_end_what_runs() -> None:
    retry = pipeline_pb2.RetryPolicy(max_attempts=3)
    run = Run(
        pipeline(
            step("bad"),
            step("queued"),
            step("sent"),
            step("running"),
            step("retrying", retry=retry),
            step("pending", "running"),
            step("none-failed", rule="NONE_FAILED"),
            step("done", "running", rule="ALL_DONE"),
            step("one-failed", "bad", rule="ONE_FAILED"),
            graph=True,
        )
    )
    run.start()
    run.claim("running")
    ticket = run.ticket("sent")
    run.report("retrying", "FAILED")
    decision = run.report("bad", "FAILED")
    assert run.steps() == {
        "bad": "FAILED DRIVER_FAILED",
        "queued": "SKIPPED FAIL_FAST",
        "sent": "SKIPPED FAIL_FAST",
        "running": "RUNNING",
        "retrying": "SKIPPED FAIL_FAST",
        "pending": "SKIPPED FAIL_FAST",
        "none-failed": "SKIPPED FAIL_FAST",
        "done": "PENDING",
        "one-failed": "QUEUED",
    }
    assert [(w.index, w.token, w.ticket.sequence) for w in decision.withdrawals] == [(2, ticket, 3)]
    assert run.record("sent").attempts[0].state == run_pb2.STEP_STATE_CANCELLED
    run.report("running")
    run.report("one-failed")
    run.report("done")
    assert run.run == "FAILED STEP_FAILED"


def test_no_second_attempt_in_a_run_that_fails_fast() -> None:
    """What runs may end; it ends as it ends, and is not tried again."""
    run = Run(pipeline(step("bad"), step("s", retry=pipeline_pb2.RetryPolicy(max_attempts=3)), graph=True))
    run.start()
    run.claim("s")
    run.report("bad", "FAILED")
    run.report("s", "FAILED")
    assert run.step("s") == "FAILED DRIVER_FAILED"
    assert run.run == "FAILED STEP_FAILED"


def test_fail_fast_does_not_ask_for_allowed_failures_nor_for_steps_given_up() -> None:
    run = Run(pipeline(step("a", allow_failure=True), step("b"), step("c"), graph=True))
    run.start()
    run.report("a", "FAILED")
    run.report("b", "CANCELLED")
    assert run.step("c") == "QUEUED"


def test_continue_lets_independent_branches_go_on() -> None:
    run = Run(pipeline(step("a"), step("a2", "a"), step("b"), step("b2", "b"), graph=True, failure_policy=CONTINUE))
    run.start()
    run.report("a", "FAILED")
    assert run.step("a2") == "SKIPPED NEED_FAILED"
    run.report("b")
    run.report("b2")
    assert run.run == "FAILED STEP_FAILED"


def test_step_given_up_by_its_driver_fails_the_run() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    run.report("a", "CANCELLED", message="lock is held")
    assert run.step("a") == "CANCELLED DRIVER_CANCELLED"
    assert run.run == "FAILED STEP_CANCELLED"
    assert run.state.head.message == "step a was cancelled by its driver: lock is held"


# finally


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


# What drivers receive


def test_inputs() -> None:
    assert compile_plan(pipeline(step("b", "a", "a"), step("a"), graph=True)).steps[0].needs == (1,)
    plan = compile_plan(pipeline(step("a"), step("b"), step("c"), finally_steps=[step("f")]))
    assert [list(plan.inputs(i)) for i in range(4)] == [[], [0], [0, 1], [0, 1, 2]]
    graph = pipeline(step("d", "b", "c"), step("a"), step("b", "a"), step("c"), finally_steps=[step("f")], graph=True)
    assert [list(compile_plan(graph).inputs(i)) for i in range(5)] == [[1, 2, 3], [], [1], [], [0, 1, 2, 3]]


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

"""The order of steps: lists, graphs, trigger rules, failure policies, and how the run ends."""

from __future__ import annotations

import pytest

from conveyor.core.events import InputRefused
from conveyor.core.plan import compile_plan
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


# What drivers receive


def test_inputs() -> None:
    assert compile_plan(pipeline(step("b", "a", "a"), step("a"), graph=True)).steps[0].needs == (1,)
    plan = compile_plan(pipeline(step("a"), step("b"), step("c"), finally_steps=[step("f")]))
    assert [list(plan.inputs(i)) for i in range(4)] == [[], [0], [0, 1], [0, 1, 2]]
    graph = pipeline(step("d", "b", "c"), step("a"), step("b", "a"), step("c"), finally_steps=[step("f")], graph=True)
    assert [list(compile_plan(graph).inputs(i)) for i in range(5)] == [[1, 2, 3], [], [1], [], [0, 1, 2, 3]]

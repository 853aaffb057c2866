"""Gates: who decides, when it is enough, and what follows."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from google.protobuf.struct_pb2 import Struct

from conveyor.core import run_copy
from conveyor.core.events import CancelRequested, Claim, Claimed, StepDecided, Waiting
from conveyor.core.gates import Standing, missing, standing
from conveyor.core.inherit import inheritable
from conveyor.core.inputs import Verdict
from conveyor.core.limits import RUN_RESULTS_BYTES
from conveyor.core.model import Decision
from conveyor.core.plan import SECOND
from conveyor.sdk import from_struct
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.support.core import Run, answer, gate, pipeline, step
from tests.unit.test_core_inputs import Verdicts, begin, states

APPROVED, REJECTED = pipeline_pb2.DECISION_APPROVED, pipeline_pb2.DECISION_REJECTED


def decide(run: Run, name: str, decision: pipeline_pb2.Decision.ValueType, by: str, comment: str = "") -> Decision:
    """What somebody decides, and all that follows."""
    return run.apply(StepDecided(run.index(name), decision, by, comment))[0]


def data(run: Run, name: str) -> dict[str, object]:
    """What later steps find of a gate."""
    return from_struct(Struct.FromString(run.record(name).result.data))


def opened(*steps: pipeline_pb2.Step, **fields: object) -> Run:
    """A run of a list that has begun."""
    run = Run(pipeline(*steps, **fields))
    run.start()
    return run


def test_a_gate_waits_for_people_and_no_worker_gets_it() -> None:
    run = Run(pipeline(gate("ask", message="Deploy?"), step("deploy")))
    (decision,) = run.start()
    assert (run.step("ask"), run.record("ask").message) == ("QUEUED AWAITING_DECISION", "Deploy?")
    assert decision.ready == ()
    assert run.timer == 24 * 3600
    run.apply(Claimed((Claim(0, "session", "worker", "t", run_pb2.TRANSPORT_GRPC),)))
    run.apply(Waiting(0, run_pb2.STEP_REASON_NO_WORKER, "nobody"))
    assert run.step("ask") == "QUEUED AWAITING_DECISION"


def test_approval_lets_the_next_step_run() -> None:
    run = opened(gate("ask", message="Deploy?"), step("deploy"))
    decision = decide(run, "ask", APPROVED, "ann", "looks good")
    assert (decision.ready, run.steps()) == ((1,), {"ask": "SUCCEEDED", "deploy": "QUEUED"})
    assert run.record("ask").message == "approved by ann: looks good"
    assert data(run, "ask") == {
        "decision": "APPROVED",
        "message": "Deploy?",
        "decisions": [{"decision": "APPROVED", "by": "ann", "time": "1970-01-12T13:46:40Z", "comment": "looks good"}],
    }


def test_rejection_fails_the_gate_and_the_run() -> None:
    run = opened(gate("ask"), step("deploy"))
    decide(run, "ask", REJECTED, "bob", "not on Friday")
    assert run.steps() == {"ask": "FAILED GATE_REJECTED", "deploy": "SKIPPED FAIL_FAST"}
    assert run.run == "FAILED STEP_FAILED"
    assert run.state.head.message == "step ask failed: rejected by bob: not on Friday"
    assert data(run, "ask")["decision"] == "REJECTED"


def test_rejection_that_is_allowed_to_fail_stops_nothing() -> None:
    run = opened(gate("ask", allow_failure=True), step("deploy"))
    decide(run, "ask", REJECTED, "bob")
    assert run.steps() == {"ask": "FAILED GATE_REJECTED", "deploy": "QUEUED"}


def test_as_many_people_as_asked_for_must_approve() -> None:
    run = opened(gate("ask", approvals=3), step("deploy"))
    step_plan = run.plan.steps[0].gate
    assert step_plan is not None
    for left, name in ((2, "ann"), (1, "bob")):
        decide(run, "ask", APPROVED, name)
        assert (run.step("ask"), missing(step_plan, run.record("ask"))) == ("QUEUED AWAITING_DECISION", left)
    decide(run, "ask", APPROVED, "cleo", "the last of three")
    assert (run.step("ask"), run.record("ask").message) == ("SUCCEEDED", "approved by ann, bob and cleo")
    assert [made.by for made in run.record("ask").decisions] == ["ann", "bob", "cleo"]


def test_many_names_are_not_all_written_out() -> None:
    run = opened(gate("ask", approvals=7))
    for name in "abcdefg":
        decide(run, "ask", APPROVED, name)
    assert run.record("ask").message == "approved by a, b, c, d, e and 2 more"


def test_one_who_rejects_is_enough() -> None:
    run = opened(gate("ask", approvals=3))
    decide(run, "ask", APPROVED, "ann")
    decide(run, "ask", REJECTED, "bob")
    assert run.step("ask") == "FAILED GATE_REJECTED"
    assert data(run, "ask")["decisions"] == [
        {"decision": "APPROVED", "by": "ann", "time": "1970-01-12T13:46:40Z", "comment": ""},
        {"decision": "REJECTED", "by": "bob", "time": "1970-01-12T13:46:40Z", "comment": ""},
    ]


@pytest.mark.parametrize("approvals", [1, 2])
def test_a_decision_counts_once_and_is_not_taken_back(approvals: int) -> None:
    run = opened(gate("ask", approvals=approvals))
    decide(run, "ask", APPROVED, "ann")
    assert not decide(run, "ask", APPROVED, "ann", "again").dirty
    assert not decide(run, "ask", REJECTED, "ann").dirty
    assert standing(run.state, 0, APPROVED, "ann") is Standing.REPEATED
    assert standing(run.state, 0, REJECTED, "ann") is Standing.CONTRARY
    assert [made.comment for made in run.record("ask").decisions] == [""]


@pytest.mark.parametrize(
    ("given", "end"), [(0, "FAILED GATE_REJECTED"), (REJECTED, "FAILED GATE_REJECTED"), (APPROVED, "SUCCEEDED")]
)
def test_timeout_decides_by_default(given: pipeline_pb2.Decision.ValueType, end: str) -> None:
    run = opened(gate("ask", timeout=60, default_decision=given), step("deploy", allow_failure=True))
    assert run.timer == 60
    run.tick(59)
    assert run.step("ask") == "QUEUED AWAITING_DECISION"
    run.tick(1)
    assert run.step("ask") == end
    verb = "approved" if given == APPROVED else "rejected"
    assert run.record("ask").message == f"{verb} by default: nobody decided within 60 s"
    (made,) = run.record("ask").decisions
    assert (made.by, made.decision) == ("", given or REJECTED)


def test_timeout_tells_of_those_who_had_approved() -> None:
    run = opened(gate("ask", approvals=2, timeout=60))
    decide(run, "ask", APPROVED, "ann")
    run.tick(60)
    assert run.record("ask").message == "rejected by default: only 1 of 2 approved within 60 s"


def test_timeout_counts_from_the_opening_and_follows_a_clock_that_is_set_back() -> None:
    run = opened(step("build"), gate("ask", timeout=60))
    run.tick(1000)
    run.report("build")
    assert run.timer == 60
    run.tick(-5000)
    assert run.timer == 60


def test_nobody_decides_before_a_gate_opens_or_after_it_closed() -> None:
    run = opened(step("build"), gate("ask"), step("deploy"))
    assert not decide(run, "ask", APPROVED, "ann").dirty
    assert not decide(run, "build", APPROVED, "ann").dirty
    run.report("build")
    decide(run, "ask", APPROVED, "ann")
    assert not decide(run, "ask", REJECTED, "bob").dirty
    assert run.steps() == {"build": "SUCCEEDED", "ask": "SUCCEEDED", "deploy": "QUEUED"}


def test_cancel_ends_a_gate_at_once() -> None:
    run = opened(gate("ask", timeout=60))
    run.apply(CancelRequested("enough", 30 * SECOND))
    assert (run.step("ask"), run.run) == ("CANCELLED RUN_CANCELLED", "CANCELLED CANCEL_REQUESTED")
    assert not decide(run, "ask", APPROVED, "ann").dirty


def test_run_timeout_ends_a_gate() -> None:
    run = opened(gate("ask"), timeout={"seconds": 10})
    run.tick(10)
    assert (run.step("ask"), run.run) == ("CANCELLED RUN_TIMED_OUT", "FAILED TIMED_OUT")


def test_fail_fast_ends_a_gate() -> None:
    run = Run(pipeline(step("a"), gate("ask"), graph=True))
    run.start()
    run.report("a", "FAILED")
    assert run.step("ask") == "SKIPPED FAIL_FAST"


def test_a_run_that_is_about_to_stop_takes_no_decision() -> None:
    """One commit has no room for stopping all that a failure stops; a restart may come in between."""
    gates = [gate("one", timeout=60, default_decision=APPROVED), gate("two", timeout=60)]
    run = Run(pipeline(step("a"), *gates, graph=True))
    with patch.object(run_copy, "MAX_RECORDS", 1):
        run.start()
        run.claim("a")
        assert run.send(run.result("a", "FAILED")).more
        assert standing(run.state, 1, APPROVED, "ann") is Standing.CLOSED
        assert not run.send(StepDecided(1, APPROVED, "ann")).dirty
        run.tick(60)
    assert (run.step("one"), run.step("two")) == ("SKIPPED FAIL_FAST", "SKIPPED FAIL_FAST")


def test_a_gate_is_not_passed_by_before_all_others_have_had_room_to_start() -> None:
    with patch.object(run_copy, "MAX_RECORDS", 1):
        run = Run(pipeline(gate("ask", optional=True), step("b"), graph=True))
        run.start()
    assert (run.step("ask"), run.step("b")) == ("QUEUED AWAITING_DECISION", "QUEUED")


def test_a_finally_step_may_be_a_gate() -> None:
    run = Run(pipeline(step("a"), finally_steps=[gate("keep")], finally_timeout={"seconds": 60}))
    run.start()
    run.report("a", "FAILED")
    assert run.step("keep") == "QUEUED AWAITING_DECISION"
    run.tick(60)
    assert run.step("keep") == "CANCELLED RUN_TIMED_OUT"
    again = Run(pipeline(step("a"), finally_steps=[gate("keep")]))
    again.start()
    again.report("a")
    decide(again, "keep", APPROVED, "ann")
    assert (again.step("keep"), again.run) == ("SUCCEEDED", "SUCCEEDED")


def test_a_run_does_not_wait_for_an_optional_gate() -> None:
    run = Run(pipeline(step("a"), gate("ask", optional=True), step("deploy", "ask"), step("b", "a"), graph=True))
    run.start()
    run.report("a")
    assert run.step("ask") == "QUEUED AWAITING_DECISION"
    run.report("b")
    assert run.steps() == {
        "a": "SUCCEEDED",
        "ask": "SKIPPED NOT_DECIDED",
        "deploy": "SKIPPED NEED_SKIPPED",
        "b": "SUCCEEDED",
    }
    assert (run.run, run.record("ask").message) == ("SUCCEEDED", "nobody decided before all else had ended")


def test_what_an_optional_gate_let_go_on_leaves_time_for_others() -> None:
    gates = [gate("one", optional=True), gate("two", optional=True)]
    run = Run(pipeline(step("a"), *gates, step("deploy", "one"), step("other", "two"), graph=True))
    run.start()
    decide(run, "one", APPROVED, "ann")
    run.report("a")
    assert (run.step("deploy"), run.step("two")) == ("QUEUED", "QUEUED AWAITING_DECISION")
    decide(run, "two", APPROVED, "ann")
    run.report("deploy")
    assert run.step("other") == "QUEUED"
    run.report("other")
    assert run.run == "SUCCEEDED"


def test_an_optional_gate_waits_as_long_as_another_gate_or_a_back_off() -> None:
    flaky = step("a", retry={"max_attempts": 2})
    run = Run(pipeline(flaky, gate("must"), gate("may", optional=True), graph=True))
    run.start()
    run.report("a", "FAILED")
    decide(run, "must", APPROVED, "ann")
    assert (run.step("a"), run.step("may")) == ("RETRYING DRIVER_FAILED", "QUEUED AWAITING_DECISION")
    run.tick(2)
    run.report("a")
    assert run.step("may") == "SKIPPED NOT_DECIDED"


def test_a_gate_behind_an_optional_gate_is_passed_by_too() -> None:
    later = gate("later", "ask", rule="ALL_DONE", optional=True)
    run = Run(pipeline(step("a"), gate("ask", optional=True), later, step("end", "later", rule="ALL_DONE"), graph=True))
    run.start()
    run.report("a")
    assert run.steps() == {
        "a": "SUCCEEDED",
        "ask": "SKIPPED NOT_DECIDED",
        "later": "SKIPPED NOT_DECIDED",
        "end": "QUEUED",
    }


def test_optional_gates_alone_end_at_once() -> None:
    run = Run(pipeline(gate("ask", optional=True), graph=True, finally_steps=[step("f")]))
    run.start()
    assert (run.step("ask"), run.step("f")) == ("SKIPPED NOT_DECIDED", "QUEUED")


def test_a_retry_asks_again_at_a_gate_that_was_passed_by() -> None:
    run = Run(pipeline(step("a"), gate("ask", optional=True), step("deploy", "ask"), step("b"), graph=True))
    run.start()
    run.report("a")
    run.report("b", "FAILED")
    assert [record.step for record in inheritable(run.state)] == ["a"]


def test_a_result_for_a_gate_is_refused() -> None:
    run = opened(gate("ask"))
    for driver in ("", "x"):
        decision = run.apply(answer("ask", 1, "", driver))[0]
        assert (decision.dirty, decision.message) == (False, "step ask is no driver's work")


def test_results_that_fill_the_run_fail_a_gate_that_adds_to_them() -> None:
    run = opened(step("build"), gate("ask"))
    run.report("build", data=b"x" * (RUN_RESULTS_BYTES - 50))
    decide(run, "ask", APPROVED, "ann")
    assert run.step("ask") == "FAILED RESULT_TOO_LARGE"
    assert run.record("ask").message.startswith("approved by ann; but the results of the run would have ")


def test_decisions_that_fill_the_run_end_a_gate_that_wants_more() -> None:
    run = opened(step("build"), gate("ask", approvals=3))
    run.report("build", data=b"x" * (RUN_RESULTS_BYTES - 500))
    decide(run, "ask", APPROVED, "ann", "x" * 400)
    assert run.step("ask") == "QUEUED AWAITING_DECISION"
    decide(run, "ask", APPROVED, "bob", "x" * 400)
    assert run.step("ask") == "FAILED RESULT_TOO_LARGE"
    assert len(run.record("ask").decisions) == 2


def test_a_retry_takes_an_approval_over() -> None:
    run = opened(gate("ask"), step("deploy"))
    decide(run, "ask", APPROVED, "ann")
    run.report("deploy", "FAILED")
    kept = inheritable(run.state)
    again = Run(pipeline(gate("ask"), step("deploy")), kept)
    again.start()
    assert again.steps() == {"ask": "SUCCEEDED", "deploy": "QUEUED"}
    assert [made.by for made in again.record("ask").decisions] == ["ann"]


def test_expressions_make_what_is_asked() -> None:
    source = pipeline_pb2.Pipeline(steps=[pipeline_pb2.Step(id="ask", gate={"message": "Deploy ${{ params.x }}?"})])
    decision = begin(source, Verdicts("ask", ask=Verdict(message="Deploy it?")))
    assert states(decision) == ["QUEUED:AWAITING_DECISION"]
    assert [r.message for r in decision.state.steps if r is not None] == ["Deploy it?"]

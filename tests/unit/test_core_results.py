"""What becomes of a result: each row of the design's table."""

from __future__ import annotations

import pytest

from conveyor.core.events import CancelRequested, NotReceived, ResultReceived, Tick, WorkerLost
from conveyor.core.limits import RUN_RESULTS_BYTES
from conveyor.core.plan import SECOND
from conveyor.v1 import result_pb2, run_pb2
from tests.support.core import Run, answer, pipeline, step


def said(run: Run, event: ResultReceived) -> str:
    """What a result is answered with."""
    disposition = run.send(event).disposition
    return result_pb2.Disposition.Name(disposition).removeprefix("DISPOSITION_")


def test_first_result_counts_and_the_rest_get_an_answer() -> None:
    """F53: and the next step is given out once."""
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    run.claim("a")
    first, other = run.result("a", data=b"1"), run.result("a", "FAILED")
    assert said(run, first) == "ACCEPTED"
    state = run.state
    assert [said(run, event) for event in (first, other, first, other)] == ["DUPLICATE", "CONFLICT"] * 2
    assert run.state is state
    assert run.record("a").result.data == b"1"
    assert run.step("b") == "QUEUED"


def test_unknown_step_and_foreign_driver() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    token = run.claim("a")
    assert said(run, answer("nosuch", 1, token, "d-a")) == "NOT_FOUND"
    assert said(run, answer("a", 1, token, "d-b")) == "INVALID"
    assert said(run, answer("", 0, "", "d-b")) == "INVALID"
    assert run.step("a") == "RUNNING"


def test_result_after_the_end_is_kept_and_changes_nothing() -> None:
    """F35: also of a step that was skipped or timed out before."""
    run = Run(pipeline(step("a", timeout={"seconds": 5}), step("b")))
    run.start()
    run.claim("a")
    late = run.result("a", message="here")
    run.tick(5)
    assert run.run == "FAILED STEP_FAILED"
    head = run.state.head
    run.now += SECOND
    assert said(run, late) == "RUN_FINISHED"
    assert run.state.head == head
    kept = run.record("a").attempts[0].late_results
    assert [(k.message, k.disposition) for k in kept] == [("here", result_pb2.DISPOSITION_RUN_FINISHED)]
    assert said(run, late) == "RUN_FINISHED"
    assert len(run.record("a").attempts[0].late_results) == 1
    assert said(run, answer("b", 1, "t", "d-b")) == "RUN_FINISHED"


def test_result_of_an_older_attempt() -> None:
    run = Run(pipeline(step("a", retry={"max_attempts": 2}, timeout={"seconds": 5}), step("b")))
    run.start()
    run.claim("a")
    late = run.result("a")
    run.tick(5)
    run.tick(1)
    assert said(run, late) == "STALE_ATTEMPT"
    assert run.record("a").attempt == 2
    run.report("a")
    assert said(run, late) == "STALE_ATTEMPT"
    assert len(run.record("a").attempts[0].late_results) == 1
    run.report("b")
    assert said(run, late) == "STALE_ATTEMPT"


def test_wrong_token() -> None:
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    run.claim("a")
    assert said(run, answer("a", 1, "guessed", "d-a")) == "STALE_ATTEMPT"
    assert said(run, answer("a", 1, "", "d-a", "FAILED")) == "STALE_ATTEMPT"
    assert run.step("a") == "RUNNING"
    assert [late.outcome for late in run.record("a").attempts[0].late_results] == [1, 2]


def test_what_one_token_said_does_not_answer_for_another() -> None:
    """The worker that "never received" the attempt did, and answers the same as the one that got it next."""
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    token = run.claim("a")
    early = run.result("a")
    run.apply(NotReceived(0, token))
    assert said(run, early) == "STALE_ATTEMPT"
    run.claim("a")
    assert said(run, early) == "STALE_ATTEMPT"
    current = run.result("a")
    assert current.digest == early.digest
    assert said(run, current) == "ACCEPTED"
    assert said(run, current) == "DUPLICATE"
    assert said(run, early) == "STALE_ATTEMPT"


def test_result_for_a_step_that_nobody_has() -> None:
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    assert said(run, answer("a", 1, "", "d-a")) == "STALE_ATTEMPT"
    assert said(run, answer("b", 1, "", "d-b")) == "STALE_ATTEMPT"
    assert said(run, answer("", 0, "", "d-a")) == "STALE_ATTEMPT"
    assert run.step("a") == "QUEUED"


def test_evicted_attempts_are_stale() -> None:
    run = Run(pipeline(step("a", retry={"max_attempts": 12, "initial_backoff": {}})))
    run.start()
    run.claim("a")
    first = run.result("a", "FAILED")
    run.send(first)
    assert said(run, first) == "DUPLICATE"
    for _ in range(10):
        run.report("a", "FAILED")
    run.claim("a")
    assert [a.number for a in run.record("a").attempts] == list(range(3, 13))
    assert said(run, first) == "STALE_ATTEMPT"
    run.report("a")
    assert said(run, first) == "RUN_FINISHED"
    assert run.run == "SUCCEEDED"


def test_late_results_are_kept_within_bounds() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    run.claim("a")
    for number in range(20):
        assert said(run, answer("a", 1, "wrong", "d-a", message="x" * 4096 + str(number))) == "STALE_ATTEMPT"
    assert run.record("a").ByteSize() < 8192


@pytest.mark.parametrize("outcome", ["SUCCEEDED", "FAILED", "CANCELLED"])
def test_result_while_cancelling(outcome: str) -> None:
    run = Run(pipeline(step("a", retry={"max_attempts": 3}), step("b")))
    run.start()
    run.claim("a")
    run.apply(CancelRequested("stop", SECOND))
    assert said(run, run.result("a", outcome, data=b"kept")) == "ACCEPTED"
    assert run.record("a").result.data == b"kept"
    assert run.steps() == {"a": "CANCELLED RUN_CANCELLED", "b": "SKIPPED RUN_CANCELLED"}
    assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_not_retryable() -> None:
    run = Run(pipeline(step("a", retry={"max_attempts": 3})))
    run.start()
    run.report("a", "FAILED", retryable=False)
    assert run.step("a") == "FAILED DRIVER_FAILED"


def test_result_that_cannot_be_kept_fails_the_step() -> None:
    run = Run(pipeline(step("a", retry={"max_attempts": 3})))
    run.start()
    run.claim("a")
    event = run.result("a", message="the result has 99999 bytes", invalid=run_pb2.STEP_REASON_RESULT_TOO_LARGE)
    assert said(run, event) == "INVALID"
    assert run.step("a") == "FAILED RESULT_TOO_LARGE"
    assert run.record("a").message == "the result has 99999 bytes"
    assert said(run, event) == "DUPLICATE"


def test_result_that_cannot_be_kept_while_cancelling() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    run.claim("a")
    run.apply(CancelRequested("stop", SECOND))
    assert said(run, run.result("a", invalid=run_pb2.STEP_REASON_RESULT_INVALID)) == "INVALID"
    assert run.step("a") == "CANCELLED RUN_CANCELLED"


def test_results_of_a_run_are_bounded_together() -> None:
    size = RUN_RESULTS_BYTES // 4
    steps = [step(f"s{i}", retry={"max_attempts": 2, "initial_backoff": {}}) for i in range(5)]
    run = Run(pipeline(*steps))
    run.start()
    for index in range(4):
        # A failed attempt's data makes room for that of the next one.
        run.report(f"s{index}", "FAILED", data=b"x" * size)
        run.report(f"s{index}", data=b"x" * size)
    assert run.state.head.result_bytes == RUN_RESULTS_BYTES
    run.report("s4", data=b"x")
    assert run.step("s4") == "FAILED RESULT_TOO_LARGE"
    assert run.record("s4").message == "the results of the run would have 524289 bytes; the limit is 524288"
    assert not run.record("s4").result.data


def test_result_of_a_failed_attempt_does_not_stay_for_a_later_one() -> None:
    run = Run(pipeline(step("a", retry={"max_attempts": 2}, timeout={"seconds": 5})))
    run.start()
    run.report("a", "FAILED", data=b"first")
    assert run.record("a").result.data == b"first"
    run.tick(1)
    run.claim("a")
    run.tick(5)
    assert run.step("a") == "FAILED TIMED_OUT"
    assert not run.record("a").HasField("result")


# Older drivers name neither step nor attempt nor token.


def unnamed(driver: str, outcome: str = "SUCCEEDED", message_id: bytes = b"") -> ResultReceived:
    """What such a driver's result looks like."""
    return answer("", 0, "", driver, outcome, message_id=message_id)


def test_unnamed_result_answers_what_is_out_on_jetstream() -> None:
    run = Run(pipeline(step("a", driver="x"), step("b", driver="y"), step("c", driver="x")))
    run.start()
    run.ticket("a", delivered=True)
    assert said(run, unnamed("x")) == "ACCEPTED"
    assert said(run, unnamed("x")) == "DUPLICATE"
    assert said(run, unnamed("x", "FAILED")) == "CONFLICT"
    run.report("b")
    run.ticket("c")
    assert said(run, unnamed("x")) == "ACCEPTED"
    assert run.run == "SUCCEEDED"


def test_redelivered_message_does_not_answer_the_next_step_of_its_driver() -> None:
    run = Run(pipeline(step("a", driver="x"), step("b", driver="x"), step("c", driver="x")))
    run.start()
    run.ticket("a")
    assert said(run, unnamed("x", message_id=b"1")) == "ACCEPTED"
    run.ticket("b")
    assert said(run, unnamed("x", message_id=b"1")) == "DUPLICATE"
    assert run.step("b") == "QUEUED TICKET_SENT"
    assert said(run, unnamed("x", message_id=b"2")) == "ACCEPTED"
    assert said(run, unnamed("x", message_id=b"3")) == "DUPLICATE"
    assert said(run, unnamed("x", "FAILED", message_id=b"4")) == "CONFLICT"


def test_unnamed_result_does_not_answer_for_a_grpc_worker() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    run.claim("a")
    assert said(run, unnamed("d-a")) == "STALE_ATTEMPT"
    assert run.step("a") == "RUNNING"


def test_result_before_its_delivery_was_seen() -> None:
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    run.ticket("a")
    run.now += SECOND
    decision = run.send(run.result("a"))
    assert not decision.withdrawals
    record = run.record("a")
    assert record.start_time == record.attempts[0].start_time == run.state.head.start_time
    assert run.step("a") == "SUCCEEDED"


def test_broadcast_is_answered_by_driver() -> None:
    source = pipeline(step("x", driver="x", timeout={"seconds": 600}), step("y", driver="y", timeout={"seconds": 600}))
    source.name = ""
    run = Run(source)
    assert run.start()[0].ready == (0, 1)
    run.ticket("x")
    run.ticket("y")
    assert said(run, unnamed("y", "FAILED")) == "ACCEPTED"
    assert run.step("x") == "QUEUED TICKET_SENT"
    assert said(run, unnamed("x")) == "ACCEPTED"
    assert run.run == "FAILED STEP_FAILED"


def test_silent_jetstream_driver_of_a_broadcast_fails_nothing() -> None:
    source = pipeline(*(step(name, timeout={"seconds": 600}) for name in ("sent", "taken", "grpc", "gone")))
    source.name = ""
    run = Run(source)
    run.start()
    run.ticket("sent")
    run.ticket("taken", delivered=True)
    run.tick(300)
    run.claim("grpc")
    assert run.timer == 300
    run.report("grpc")
    decision = run.tick(300)[0]
    assert [withdrawal.index for withdrawal in decision.withdrawals] == [0, 1]
    assert run.steps() == {
        "sent": "SKIPPED NOT_REPORTED",
        "taken": "SKIPPED NOT_REPORTED",
        "grpc": "SUCCEEDED",
        "gone": "SKIPPED NOT_REPORTED",
    }
    assert run.run == "SUCCEEDED"


def test_silent_grpc_worker_of_a_broadcast_times_out() -> None:
    source = pipeline(step("x", timeout={"seconds": 600}))
    source.name = ""
    run = Run(source)
    run.start()
    run.tick(100)
    run.claim("x")
    run.apply(WorkerLost("session", ""))
    run.claim("x")
    assert run.timer == 500
    run.tick(500)
    assert run.step("x") == "FAILED TIMED_OUT"


def test_broadcast_that_nobody_hears() -> None:
    source = pipeline()
    source.name = ""
    run = Run(source)
    run.start()
    assert run.run == "SUCCEEDED NO_DRIVER"
    run.send(Tick())
    assert run.run == "SUCCEEDED NO_DRIVER"

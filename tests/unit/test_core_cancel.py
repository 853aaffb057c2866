"""Cancelling: by request, by force, by the run's timeout; and what comes late."""

from __future__ import annotations

import pytest

from conveyor.core.events import (
    CancelRequested,
    Claim,
    Claimed,
    NotReceived,
    RunCreated,
    Tick,
    TicketSent,
    TicketWithdrawn,
    WorkerLost,
)
from conveyor.core.plan import SECOND
from conveyor.core.transitions import TIMEOUT_GRACE
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2
from tests.support.core import Run, pipeline, step

RETRY = {"max_attempts": 3}
GRACE = 30 * SECOND


def busy() -> Run:
    """A run with a step in each state that a step can be in."""
    run = Run(
        pipeline(
            step("done"),
            step("running", retry=RETRY),
            step("sent"),
            step("queued"),
            step("retrying", retry=RETRY),
            step("pending", "running"),
            finally_steps=[step("f")],
            graph=True,
        )
    )
    run.start()
    run.report("done")
    run.claim("running")
    run.ticket("sent")
    run.report("retrying", "FAILED")
    return run


def test_cancel_ends_what_waits_and_tells_what_runs() -> None:
    run = busy()
    token, ticket = run.record("running").token, run.record("sent").token
    decision = run.apply(CancelRequested("not needed", GRACE))[0]
    assert run.steps() == {
        "done": "SUCCEEDED",
        "running": "RUNNING",
        "sent": "CANCELLED RUN_CANCELLED",
        "queued": "CANCELLED RUN_CANCELLED",
        "retrying": "CANCELLED RUN_CANCELLED",
        "pending": "SKIPPED RUN_CANCELLED",
        "f": "PENDING",
    }
    assert [(s.index, s.token, s.message, s.grace) for s in decision.stops] == [(1, token, "not needed", GRACE)]
    assert [w.token for w in decision.withdrawals] == [ticket]
    assert run.run == "CANCELLING CANCEL_REQUESTED"
    assert run.timer == 30
    assert run.report("running", "CANCELLED").ready == (6,)
    run.report("f")
    assert run.run == "CANCELLED CANCEL_REQUESTED"
    assert (run.state.head.message, run.state.head.cancel_message) == ("not needed", "not needed")


def test_second_cancel_and_cancel_of_a_finished_run_do_nothing() -> None:
    run = busy()
    run.apply(CancelRequested("first", GRACE))
    assert not run.send(CancelRequested("second", SECOND)).dirty
    run.report("running")
    run.report("f")
    for force in (False, True):
        assert not run.send(CancelRequested("third", SECOND, force=force)).dirty


def test_retries_left_do_not_keep_a_cancelled_run_alive() -> None:
    """F36: no new attempt, the cleanup once."""
    for outcome in ("FAILED", "CANCELLED", "SUCCEEDED"):
        run = Run(pipeline(step("a", retry=RETRY), step("b"), finally_steps=[step("f")]))
        run.start()
        run.claim("a")
        run.apply(CancelRequested("", GRACE))
        assert run.report("a", outcome).ready == (2,)
        assert run.record("a").attempt == 1
        run.report("f")
        assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_worker_that_does_not_confirm_is_abandoned() -> None:
    """F37: and what it says later is kept, and changes nothing."""
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    run.claim("a")
    late = run.result("a")
    run.apply(CancelRequested("", GRACE))
    run.tick(29)
    assert run.step("a") == "RUNNING"
    assert run.timer == 1
    run.tick(1)
    assert run.step("a") == "CANCELLED ABANDONED"
    assert run.run == "CANCELLED CANCEL_REQUESTED"
    assert run.send(late).disposition == result_pb2.DISPOSITION_RUN_FINISHED
    assert run.step("b") == "SKIPPED RUN_CANCELLED"


def test_step_timeout_while_cancelling_is_not_waited_for_twice() -> None:
    """The run's deadline counts alone: a timer in the past would have the run ticked for ever."""
    run = Run(pipeline(step("a", timeout={"seconds": 5})))
    run.start()
    run.claim("a")
    run.apply(CancelRequested("", GRACE))
    run.now += 10 * SECOND
    assert run.timer == 20
    assert not run.send(Tick()).dirty


def test_no_grace_abandons_at_once() -> None:
    run = Run(pipeline(step("a"), finally_steps=[step("f")]))
    run.start()
    run.claim("a")
    decision = run.apply(CancelRequested("", 0))[0]
    assert len(decision.stops) == 1
    assert run.steps() == {"a": "CANCELLED ABANDONED", "f": "QUEUED"}


@pytest.mark.parametrize("first", [None, CancelRequested("gently", GRACE)])
def test_force_waits_for_nobody(first: CancelRequested | None) -> None:
    run = busy()
    if first is not None:
        run.apply(first)
    decision = run.apply(CancelRequested("now", GRACE, force=True))[0]
    assert run.step("running") == "CANCELLED ABANDONED"
    assert run.step("f") == "SKIPPED RUN_CANCELLED"
    assert run.run == "CANCELLED CANCEL_REQUESTED"
    assert len(decision.stops) == (first is None)
    assert run.record("running").message == "cancelled by force; worker worker may still be at work"


def test_force_ends_finally_steps_too() -> None:
    run = Run(pipeline(step("a"), finally_steps=[step("f"), step("g"), step("h", retry=RETRY)]))
    run.start()
    run.report("a")
    run.claim("f")
    run.report("h", "FAILED")
    decision = run.apply(CancelRequested("", GRACE, force=True))[0]
    assert [stop.index for stop in decision.stops] == [1]
    assert run.steps() == {
        "a": "SUCCEEDED",
        "f": "CANCELLED ABANDONED",
        "g": "CANCELLED RUN_CANCELLED",
        "h": "CANCELLED RUN_CANCELLED",
    }
    assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_force_holds_when_the_clock_runs_backwards_between_its_commits() -> None:
    run = Run(pipeline(*(step(f"s{i}") for i in range(100)), finally_steps=[step("f")], graph=True))
    run.start()
    for index in range(100):
        run.claim(f"s{index}")
    assert run.send(CancelRequested("", GRACE, force=True)).more
    run.now -= 3600 * SECOND
    run.tick()
    assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_run_that_never_began_has_nothing_to_clean_up() -> None:
    for event, seconds, end in (
        (CancelRequested("", GRACE), 0, "CANCELLED CANCEL_REQUESTED"),
        (CancelRequested("", GRACE, reason=run_pb2.RUN_REASON_REPLACED), 0, "CANCELLED REPLACED"),
        (Tick(), 24 * 3600, "FAILED TIMED_OUT"),
    ):
        run = Run(pipeline(step("a"), finally_steps=[step("f")]))
        assert run.timer == 24 * 3600
        run.now += seconds * SECOND
        run.apply(event)
        assert {state.split()[0] for state in run.steps().values()} == {"SKIPPED"}
        assert run.run == end
        assert not run.send(RunCreated()).dirty


def test_run_timeout() -> None:
    """F87: a step that began late is stopped with the others; finally steps still run."""
    source = pipeline(step("a"), step("b", retry=RETRY), step("c"), finally_steps=[step("f")], timeout={"seconds": 6})
    run = Run(source)
    run.start()
    run.now += 4 * SECOND
    run.report("a")
    run.claim("b")
    assert run.timer == 2
    decision = run.tick(2)[0]
    assert [(s.index, s.message, s.grace) for s in decision.stops] == [(1, "the run timed out", TIMEOUT_GRACE)]
    assert run.run == "CANCELLING TIMED_OUT"
    assert run.step("c") == "SKIPPED RUN_TIMED_OUT"
    run.report("b", "CANCELLED")
    assert run.step("b") == "CANCELLED RUN_TIMED_OUT"
    run.report("f")
    assert run.run == "FAILED TIMED_OUT"
    assert run.state.head.message == "the run took longer than 6 s"


def test_lost_and_unreached_workers_while_cancelling() -> None:
    run = Run(pipeline(step("a", retry=RETRY), step("b"), finally_steps=[step("f")], graph=True))
    run.start()
    run.claim("a", session="gone")
    token = run.claim("b")
    run.apply(CancelRequested("", GRACE))
    run.apply(WorkerLost("gone", ""))
    assert run.step("a") == "CANCELLED WORKER_LOST"
    run.apply(NotReceived(1, token))
    assert run.step("b") == "CANCELLED RUN_CANCELLED"
    assert not run.record("b").attempts
    token = run.claim("f", session="gone")
    run.apply(NotReceived(2, token))
    assert run.step("f") == "QUEUED NOT_RECEIVED"
    run.claim("f", session="gone")
    run.apply(WorkerLost("gone", ""))
    assert (run.step("f"), run.record("f").attempt) == ("QUEUED", 2)


def test_finally_steps_of_a_cancelled_run_are_tried_again() -> None:
    run = Run(pipeline(step("a"), finally_steps=[step("f", retry=RETRY)]))
    run.start()
    run.apply(CancelRequested("", GRACE))
    run.report("f", "FAILED")
    assert run.step("f") == "RETRYING DRIVER_FAILED"
    assert run.timer == 1
    run.tick(1)
    run.report("f", "FAILED")
    run.tick(2)
    run.report("f")
    assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_ticket_that_was_sent_too_late_is_taken_back() -> None:
    """Claimed, then cancelled before the broker had answered."""
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    token = run.claim("a", jetstream=True)
    assert not run.apply(CancelRequested("", GRACE))[0].withdrawals
    assert run.run == "CANCELLED CANCEL_REQUESTED"
    decision = run.send(TicketSent(0, token, storage_pb2.Ticket(sequence=7)))
    assert not decision.dirty
    assert [(w.token, w.ticket.sequence) for w in decision.withdrawals] == [(token, 7)]


def test_nothing_starts_between_the_commits_of_a_cancel() -> None:
    """More steps are queued than one commit can end."""
    run = Run(pipeline(*(step(f"s{i}") for i in range(100)), graph=True))
    run.start()
    token = run.ticket("s98")
    assert run.send(CancelRequested("", GRACE)).more
    assert run.step("s99") == "QUEUED"
    claim = Claim(99, "session", "worker", "t", run_pb2.TRANSPORT_GRPC)
    assert not run.send(Claimed((claim,))).dirty
    run.send(TicketWithdrawn(98, token))
    assert run.step("s98") == "CANCELLED RUN_CANCELLED"
    run.tick()
    assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_no_finally_step_starts_between_the_commits_of_a_forced_cancel() -> None:
    run = Run(pipeline(step("a"), finally_steps=[step(f"f{i}") for i in range(100)]))
    run.start()
    run.report("a")
    assert run.send(CancelRequested("", GRACE, force=True)).more
    assert run.step("f99") == "QUEUED"
    claim = Claim(100, "session", "worker", "t", run_pb2.TRANSPORT_GRPC)
    assert not run.send(Claimed((claim,))).dirty
    run.tick()
    assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_grace_is_what_is_left_of_it() -> None:
    run = Run(pipeline(*(step(f"s{i}") for i in range(100)), graph=True))
    run.start()
    for index in range(100):
        run.claim(f"s{index}")
    assert {stop.grace for stop in run.send(CancelRequested("", GRACE)).stops} == {GRACE}
    run.now += GRACE + SECOND
    assert {stop.grace for decision in run.apply(Tick()) for stop in decision.stops} == {0}
    assert run.run == "CANCELLED CANCEL_REQUESTED"

"""Claims, tickets, waiting, lost workers, retries and deadlines."""

from __future__ import annotations

import pytest

from conveyor.core.events import (
    Claim,
    Claimed,
    InputRefused,
    NotReceived,
    Tick,
    TicketDelivered,
    TicketSent,
    TicketWithdrawn,
    Waiting,
    WorkerLost,
)
from conveyor.core.model import Decision, RunState
from conveyor.core.plan import DEFAULT_STEP_TIMEOUT, SECOND, RetryPlan, compile_plan
from conveyor.core.transitions import TIMEOUT_GRACE, apply
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2
from tests.support.core import Run, pipeline, step

NO_WORKER = run_pb2.STEP_REASON_NO_WORKER


def attempts(run: Run, name: str) -> list[str]:
    """How the attempts of a step stand."""
    return [
        f"{a.number} {run_pb2.StepState.Name(a.state).removeprefix('STEP_STATE_')}" for a in run.record(name).attempts
    ]


# Claims


def test_first_claim_gets_the_step() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    token = run.claim("a")
    claim = Claim(0, "other", "other", "late", run_pb2.TRANSPORT_GRPC)
    assert not run.send(Claimed((claim,))).dirty
    assert run.record("a").token == token
    assert run.state.head.start_time == run.now


def test_claims_of_one_event_are_one_per_step() -> None:
    run = Run(pipeline(step("a"), step("b"), step("c", "a"), graph=True))
    run.start()
    claims = tuple(Claim(i % 3, "s", "w", f"t{i}", run_pb2.TRANSPORT_GRPC) for i in range(6))
    assert run.send(Claimed(claims)).changed == {0, 1}
    assert run.step("c") == "PENDING"


def test_result_and_next_claim_in_one_commit() -> None:
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    run.claim("a")
    first = apply(run.state, run.result("a"), run.now)
    claim = Claim(1, "s", "w", "t", run_pb2.TRANSPORT_GRPC)
    both = first.then(apply(first.state, Claimed((claim,)), run.now))
    assert both.changed == {0, 1}
    assert both.ready == ()
    assert both.disposition == first.disposition
    assert both.freed == first.freed
    assert both.timers == (run.now + DEFAULT_STEP_TIMEOUT,)
    assert both.state.head.step_states == bytes([run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_STATE_RUNNING])
    assert first.then(Decision(first.state)) is first


def test_waiting_says_why_once() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    assert run.send(Waiting(0, NO_WORKER, "no worker of driver x is connected")).dirty
    assert run.step("a") == "QUEUED NO_WORKER"
    assert not run.send(Waiting(0, NO_WORKER, "no worker of driver x is connected")).dirty
    run.claim("a")
    assert run.record("a").message == ""
    assert not run.send(Waiting(0, NO_WORKER, "late")).dirty


def test_assignment_that_was_never_received() -> None:
    """Queued at once, the same attempt, no budget used; the history has only what somebody had."""
    run = Run(pipeline(step("a")))
    run.start()
    token = run.claim("a")
    decision = run.send(NotReceived(0, token))
    assert decision.ready == (0,)
    assert decision.freed == (token,)
    assert run.step("a") == "QUEUED NOT_RECEIVED"
    assert attempts(run, "a") == []
    record = run.record("a")
    assert (record.attempt, record.failures, record.losses) == (1, 0, 0)
    assert run.claim("a") != token
    assert attempts(run, "a") == ["1 RUNNING"]
    assert not run.send(NotReceived(0, token)).dirty


# Tickets


def test_ticket_is_queued_until_its_delivery_is_seen() -> None:
    """F86: the step's timeout begins with it."""
    run = Run(pipeline(step("a", timeout={"seconds": 5})))
    run.start()
    token = run.ticket("a")
    run.tick(100)
    assert run.step("a") == "QUEUED TICKET_SENT"
    run.apply(TicketDelivered(0, token))
    assert run.timer == 5
    assert run.record("a").start_time == run.now
    run.tick(5)
    assert run.step("a") == "FAILED TIMED_OUT"


def test_withdrawn_ticket_leaves_the_wait_as_it_was() -> None:
    run = Run(pipeline(step("a", queue_timeout={"seconds": 60})))
    run.start()
    run.tick(10)
    token = run.ticket("a")
    run.tick(10)
    decision = run.send(TicketWithdrawn(0, token))
    assert decision.ready == (0,)
    assert not decision.withdrawals
    assert attempts(run, "a") == []
    assert run.timer == 40
    run.claim("a")
    assert attempts(run, "a") == ["1 RUNNING"]


def test_withdrawal_comes_too_late_for_what_was_delivered() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    token = run.ticket("a", delivered=True)
    assert not run.send(TicketWithdrawn(0, token)).dirty
    assert not run.send(TicketDelivered(0, "other")).dirty


def test_ticket_is_stored_once() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    token = run.claim("a", jetstream=True)
    ticket = storage_pb2.Ticket(stream_created="s", consumer_created="c", sequence=3)
    assert run.send(TicketSent(0, token, ticket)).dirty
    assert not run.send(TicketSent(0, token, ticket)).dirty
    assert run.record("a").ticket == ticket


def test_input_that_cannot_be_sent() -> None:
    run = Run(pipeline(step("a", retry={"max_attempts": 3}), step("b")))
    run.start()
    run.claim("a", jetstream=True)
    run.apply(InputRefused(0, run_pb2.STEP_REASON_INPUT_TOO_LARGE, "9 MiB"))
    assert run.steps() == {"a": "FAILED INPUT_TOO_LARGE", "b": "SKIPPED FAIL_FAST"}
    assert attempts(run, "a") == ["1 FAILED"]


# Lost workers


def test_lost_workers_have_a_budget_of_their_own() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    for number in range(1, 4):
        run.claim("a", session=f"s{number}")
        decision = run.apply(WorkerLost(f"s{number}", ""))[0]
        assert decision.ready == (0,)
        assert (run.record("a").attempt, run.record("a").failures) == (number + 1, 0)
    run.claim("a", session="s4")
    run.apply(WorkerLost("s4", "session s4 did not come back"))
    assert run.step("a") == "FAILED WORKER_LOST"
    assert run.record("a").message == "session s4 did not come back; 4 workers in all"
    assert attempts(run, "a") == ["1 FAILED", "2 FAILED", "3 FAILED", "4 FAILED"]
    assert run.run == "FAILED STEP_FAILED"


def test_lost_worker_loses_only_its_own() -> None:
    run = Run(pipeline(step("a"), step("b"), step("c"), graph=True))
    run.start()
    run.claim("a", session="gone")
    run.claim("b", session="there")
    run.apply(WorkerLost("gone", ""))
    assert run.steps() == {"a": "QUEUED", "b": "RUNNING", "c": "QUEUED"}
    assert not run.send(WorkerLost("gone", "")).dirty


def test_lost_worker_in_a_run_that_fails_fast() -> None:
    run = Run(pipeline(step("bad"), step("a"), graph=True))
    run.start()
    run.claim("a", session="gone")
    run.report("bad", "FAILED")
    run.apply(WorkerLost("gone", "gone"))
    assert run.step("a") == "FAILED WORKER_LOST"
    assert run.run == "FAILED STEP_FAILED"


# Retries


@pytest.mark.parametrize("limit", [None, 1, 2, 3])
def test_attempts_are_counted_as_written(limit: int | None) -> None:
    """F29: `max_attempts` are all attempts; a retry policy without it means 3, no policy 1."""
    for retry, expected in (({"max_attempts": limit} if limit else None, limit or 1), ({}, 3)):
        run = Run(pipeline(step("a", retry=retry)))
        run.start()
        count = 0
        while run.run == "RUNNING":
            run.report("a", "FAILED")
            count += 1
            if run.step("a").startswith("RETRYING"):
                run.tick(run.timer)
        assert count == expected
        assert [a.number for a in run.record("a").attempts] == list(range(1, expected + 1))


def test_backoff() -> None:
    plan = RetryPlan(max_attempts=9, initial=2 * SECOND, maximum=10 * SECOND, multiplier=2, jitter=0.5)
    assert [plan.backoff(n, 0.5) / SECOND for n in range(1, 6)] == [2, 4, 8, 10, 10]
    assert [plan.backoff(1, place) / SECOND for place in (0, 0.25, 1)] == [1, 1.5, 3]
    assert RetryPlan(multiplier=100.0).backoff(100_000, 0.5) == 60 * SECOND
    assert RetryPlan(initial=0).backoff(3, 1) == 0


def test_restart_in_the_middle_of_retries() -> None:
    """F31: attempt numbers go on, and the wait is what is left of it."""
    run = Run(pipeline(step("a", retry={"max_attempts": 4, "initial_backoff": {"seconds": 2}})))
    run.start()
    run.report("a", "FAILED")
    run.tick(1)
    for _ in range(2):
        head = storage_pb2.RunHead.FromString(run.state.head.SerializeToString())
        records = [storage_pb2.StepRecord.FromString(r.SerializeToString()) for r in run.stored.values()]
        run.state = RunState.of(run.plan, head, records)
    assert run.timer == 1
    for number in (2, 3, 4):
        run.tick(run.timer)
        assert run.record("a").attempt == number
        run.report("a", "FAILED")
    assert run.run == "FAILED STEP_FAILED"


def test_timeout_is_per_attempt() -> None:
    """F34: each has its own, and it shows as a timeout."""
    run = Run(pipeline(step("a", timeout={"seconds": 2}, retry={"max_attempts": 3})))
    run.start()
    for number in (1, 2, 3):
        token = run.claim("a")
        assert run.timer == 2
        decision = run.tick(2)[0]
        assert [(s.attempt, s.token, s.grace) for s in decision.stops] == [(number, token, TIMEOUT_GRACE)]
        assert decision.freed == (token,)
        if number < 3:
            assert run.step("a") == "RETRYING TIMED_OUT"
            assert run.record("a").message == f"attempt {number} took longer than 2 s"
            run.tick(run.timer)
            assert run.record("a").message == ""
    assert run.step("a") == "FAILED TIMED_OUT"
    assert run.record("a").message == "attempt 3 took longer than 2 s"


def test_wait_for_a_worker_has_a_bound_of_its_own() -> None:
    """F86: the step's timeout does not run meanwhile; what fired can be told apart."""
    run = Run(pipeline(step("a", timeout={"seconds": 5}, queue_timeout={"seconds": 60}, retry={"max_attempts": 3})))
    run.start()
    run.send(Waiting(0, NO_WORKER, "no worker of driver a is connected"))
    assert run.timer == 60
    run.tick(59)
    assert run.step("a") == "QUEUED NO_WORKER"
    run.tick(1)
    assert run.step("a") == "FAILED QUEUE_TIMED_OUT"
    assert run.record("a").message == "no worker took it within 60 s (no worker of driver a is connected)"


def test_queue_timeout_takes_the_ticket_back() -> None:
    run = Run(pipeline(step("a", queue_timeout={"seconds": 60})))
    run.start()
    token = run.ticket("a")
    decision = run.tick(60)[0]
    assert [w.token for w in decision.withdrawals] == [token]
    assert run.step("a") == "FAILED QUEUE_TIMED_OUT"
    assert attempts(run, "a") == ["1 FAILED"]


def test_no_queue_timeout_waits_until_the_run_times_out() -> None:
    run = Run(pipeline(step("a")))
    run.start()
    assert run.timer == 24 * 3600
    run.tick(run.timer)
    assert run.step("a") == "CANCELLED RUN_TIMED_OUT"
    assert run.run == "FAILED TIMED_OUT"


def test_long_timeouts() -> None:
    """F88: what the API allows at most fits into what is stored."""
    year = 366 * 24 * 3600
    run = Run(pipeline(step("a", timeout={"seconds": year}), timeout={"seconds": year}))
    run.start()
    run.claim("a")
    assert run.timer == year
    assert not run.tick(year - 1)[0].dirty


def test_tick_that_comes_early_changes_nothing() -> None:
    run = Run(pipeline(step("a", retry={"max_attempts": 2})))
    assert not run.send(Tick()).dirty
    run.start()
    assert not run.send(Tick()).dirty
    run.report("a", "FAILED")
    run.now += SECOND - 1
    assert not run.send(Tick()).dirty


def test_clock_that_runs_backwards() -> None:
    """Nothing ends before it began, and nothing waits for the clock to catch up."""
    run = Run(pipeline(step("a", timeout={"seconds": 5}), step("b", retry={"max_attempts": 2})))
    run.start()
    run.claim("a")
    run.now -= 3600 * SECOND
    run.report("a")
    run.claim("b")
    assert run.timer == DEFAULT_STEP_TIMEOUT / SECOND
    run.report("b", "FAILED")
    assert run.timer == 1
    run.tick(1)
    run.report("b")
    record, head = run.record("b"), run.state.head
    assert record.queue_time <= record.ready_time <= record.start_time <= record.end_time <= head.end_time


def test_snapshot_is_what_counts() -> None:
    """F02: a plan keeps nothing of the pipeline that it was made from."""
    source = pipeline(step("a"), step("b"))
    plan = compile_plan(source)
    source.steps[1].driver = "other"
    del source.steps[0]
    assert [s.driver for s in plan.steps] == ["d-a", "d-b"]

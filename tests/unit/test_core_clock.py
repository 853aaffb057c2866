"""The server's clock steps, by hours: nothing waits longer than its own bound once more, and times never run back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from conveyor.core.deadlines import CLOCKS_DIFFER, grace_left
from conveyor.core.events import CancelRequested, Continue, RunCreated, Tick
from conveyor.core.inherit import inheritable
from conveyor.core.plan import SECOND
from conveyor.v1 import pipeline_pb2
from tests.support.core import START, Run, pipeline, step

HOUR = 3600.0
RETRY = pipeline_pb2.RetryPolicy(
    max_attempts=2, initial_backoff=Duration(seconds=40), max_backoff=Duration(seconds=40), jitter=0.5
)


def set_back(run: Run, seconds: float = HOUR) -> None:
    """The clock steps back."""
    run.now -= int(seconds * SECOND)


def running() -> Run:
    run = Run(pipeline(step("a", timeout=Duration(seconds=60)), timeout=Duration(seconds=600)))
    run.start()
    run.claim("a")
    return run


def queued() -> Run:
    run = Run(pipeline(step("a", queue_timeout=Duration(seconds=60)), timeout=Duration(seconds=600)))
    run.start()
    return run


def sent() -> Run:
    run = queued()
    run.ticket("a")
    return run


def retrying() -> Run:
    run = Run(pipeline(step("a", retry=RETRY), timeout=Duration(seconds=600)))
    run.start()
    run.report("a", "FAILED")
    return run


def cancelling() -> Run:
    run = running()
    run.apply(CancelRequested("enough", 60 * SECOND))
    return run


def cleaning_up() -> Run:
    run = Run(pipeline(step("a"), finally_steps=[step("f")], finally_timeout=Duration(seconds=60)))
    run.start()
    run.report("a")
    return run


def broadcast() -> Run:
    source = pipeline(step("a", timeout=Duration(seconds=60)))
    source.name = ""
    run = Run(source)
    run.start()
    return run


@pytest.mark.parametrize(
    ("made", "bound", "then"),
    [
        (running, 60, "FAILED TIMED_OUT"),
        (queued, 60, "FAILED QUEUE_TIMED_OUT"),
        (sent, 60, "FAILED QUEUE_TIMED_OUT"),
        (retrying, 60, "QUEUED"),
        (cancelling, 60, "CANCELLED ABANDONED"),
        (cleaning_up, 60, "SUCCEEDED"),
        (broadcast, 60, "SKIPPED NOT_REPORTED"),
    ],
)
def test_what_was_due_while_the_clock_was_ahead_is_due_within_its_bound(
    made: Callable[[], Run], bound: float, then: str
) -> None:
    run = made()
    set_back(run)
    decisions = run.tick()
    assert run.timer <= bound
    assert min(time for decision in decisions for time in decision.timers) <= run.now + bound * SECOND
    run.tick(bound)
    assert run.step("a") == then
    if made is cleaning_up:
        assert run.step("f") == "CANCELLED RUN_TIMED_OUT"


def test_a_run_times_out_within_its_bound() -> None:
    run = Run(pipeline(step("a"), timeout=Duration(seconds=600)))
    run.start()
    set_back(run)
    run.tick()
    run.tick(600)
    assert run.run == "FAILED TIMED_OUT"


def test_a_run_that_was_created_by_a_clock_ahead_has_its_own_time_from_its_start() -> None:
    run = Run(pipeline(step("a"), timeout=Duration(seconds=600)))
    set_back(run)
    run.apply(RunCreated())
    assert run.timer == 600


def test_a_commit_without_room_leaves_the_rest_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyor.core.run_copy.MAX_RECORDS", 2)
    run = Run(pipeline(*(step(str(n), queue_timeout=Duration(seconds=60)) for n in range(5)), graph=True))
    run.start()
    set_back(run)
    assert len(run.tick()) > 1
    assert {record.next_time for record in run.state.steps if record is not None} == {run.now + 60 * SECOND}


def test_clocks_that_hardly_differ_move_nothing() -> None:
    run = running()
    set_back(run, CLOCKS_DIFFER / SECOND)
    assert not run.apply(Continue())[0].dirty
    set_back(run, 0.1)
    assert run.apply(Continue())[0].dirty


def test_workers_are_told_of_no_longer_grace_than_was_asked_for() -> None:
    run = cancelling()
    set_back(run)
    assert grace_left(run.state.head, run.now) == 60 * SECOND
    run.tick()
    run.now += 20 * SECOND
    assert grace_left(run.state.head, run.now) == 40 * SECOND


def test_steps_of_a_run_that_is_cancelled_are_left_to_the_cancel() -> None:
    run = cancelling()
    before = run.record("a").next_time
    set_back(run)
    run.tick()
    assert run.record("a").next_time == before


def test_a_clock_that_steps_ahead_lets_time_run_out_early() -> None:
    run = running()
    run.tick(HOUR)
    assert run.step("a") == "RUNNING"
    assert run.run == "CANCELLING TIMED_OUT"


def test_what_is_written_down_never_runs_back() -> None:
    run = Run(pipeline(step("a"), step("b")))
    run.start()
    run.report("a")
    set_back(run)
    run.report("b")
    assert run.run == "SUCCEEDED"
    head, record = run.state.head, run.record("b")
    assert START <= record.queue_time <= record.start_time <= record.end_time <= head.end_time
    assert run.apply(Tick())[0].dirty is False


def test_a_retry_by_a_clock_that_was_set_back_begins_after_what_it_takes_over() -> None:
    source = pipeline(step("a"), step("b"))
    parent = Run(source)
    parent.start()
    parent.now += int(HOUR * SECOND)
    parent.report("a")
    parent.report("b", "FAILED")
    run = Run(source, inheritable(parent.state))
    run.start()
    run.report("b")
    assert run.record("a").end_time == START + HOUR * SECOND
    assert run.record("b").queue_time >= run.record("a").end_time

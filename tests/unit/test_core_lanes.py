"""A run that waits for older ones of its lane."""

from __future__ import annotations

import pytest

from conveyor.core.events import CancelRequested, Event, RunCreated, Tick
from conveyor.core.model import keep_waiting
from conveyor.core.plan import SECOND
from conveyor.core.transitions import next_timer
from conveyor.v1 import run_pb2
from tests.support.core import Run, pipeline, step

DAY = 24 * 3600 * SECOND


def waiting(**fields: object) -> Run:
    """One with a finally step."""
    run = Run(pipeline(step("a"), finally_steps=[step("f")], **fields))
    keep_waiting(run.state)
    return run


def test_it_starts_at_its_turn_only() -> None:
    run = waiting()
    assert run.run == "PENDING WAITING_FOR_RUN"
    for event in (RunCreated(), RunCreated()):
        assert not run.send(event).dirty
    assert run.send(RunCreated(turn=True)).ready == (0,)
    assert (run.run, run.state.head.message) == ("RUNNING", "")
    assert not run.send(RunCreated(turn=True)).dirty


def test_its_timeout_counts_from_its_start() -> None:
    run = waiting(timeout={"seconds": 6})
    assert next_timer(run.state) == 0
    run.now += 2 * DAY
    assert not run.send(Tick()).dirty
    decision = run.send(RunCreated(turn=True))
    assert run.state.head.deadline == run.now + 6 * SECOND
    assert run.state.head.deadline in decision.timers
    run.tick(6)
    assert run.run == "CANCELLING TIMED_OUT"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "reason", [run_pb2.RUN_REASON_CANCEL_REQUESTED, run_pb2.RUN_REASON_REPLACED], ids=["asked", "replaced"]
)
def test_cancelled_it_ends_at_once_and_runs_nothing(reason: run_pb2.RunReason.ValueType, force: bool) -> None:
    run = waiting()
    event: Event = CancelRequested("no more", 30 * SECOND, force, reason)
    decision = run.send(event)
    assert (decision.ended, decision.ready) == (True, ())
    assert run.run == "CANCELLED " + run_pb2.RunReason.Name(reason).removeprefix("RUN_REASON_")
    assert [run.step(name) for name in ("a", "f")] == ["SKIPPED RUN_CANCELLED"] * 2
    assert not run.send(RunCreated(turn=True)).dirty

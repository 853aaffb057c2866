"""What people are told of steps that wait."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.cli import progress, tables
from conveyor.cli.progress import LineProgress
from conveyor.sdk import RunUpdate
from conveyor.v1.run_pb2 import LockHolder, LockWait, SeenWorker, StepReason, StepRun, StepState, StepWait

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SOON = Timestamp(seconds=int(NOW.timestamp()) + 30)
JUST_NOW = Timestamp(seconds=int(NOW.timestamp()) - 10)


def waiting(**fields: Any) -> StepRun:
    """A step that waits since 35 seconds before NOW."""
    step = StepRun(step="ship", state=StepState.STEP_STATE_QUEUED, **fields)
    step.queue_time.FromJsonString("2026-01-31T11:59:25Z")
    return step


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (waiting(), "waiting 35s"),
        (waiting(attempt=1, message="all are busy"), "all are busy (waiting 35s)"),
        # Nobody knows since when a later attempt waits.
        (waiting(attempt=2, message="all are busy"), "all are busy"),
        (StepRun(step="ship", state=StepState.STEP_STATE_QUEUED), ""),
    ],
)
def test_how_long_a_step_waits(step: StepRun, told: str) -> None:
    assert tables.step_row(step, NOW)[-1] == told
    assert tables.step_message(step, NOW) == told


def between(state: str, **fields: Any) -> StepRun:
    """A step that waits, with an earlier attempt that began a minute before NOW."""
    step = StepRun(step="ship", state=StepState.Value(f"STEP_STATE_{state}"), **fields)
    step.start_time.FromJsonString("2026-01-31T11:59:00Z")
    return step


def told_wait(**fields: Any) -> StepWait:
    """What a step waits for, since 35 seconds before NOW."""
    wait = StepWait(**fields)
    wait.since.FromJsonString("2026-01-31T11:59:25Z")
    return wait


def seen(*names: str) -> list[SeenWorker]:
    """Workers that left 35 seconds before NOW."""
    return [SeenWorker(name=name, time=told_wait().since) for name in names]


HOLDER = LockHolder(run="r", step="deploy")
NOBODY = {"message": "nobody is there", "reason": StepReason.STEP_REASON_NO_WORKER}


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (between("PENDING", wait=StepWait(needs=["a", "b"], need_count=2)), "waits for a, b"),
        (between("PENDING", wait=StepWait(needs=["a", "b"], need_count=5)), "waits for a, b and 3 more"),
        (between("PENDING"), ""),
        (
            between("QUEUED", message="all are busy", attempt=2, wait=told_wait(workers=2, slots=3, ahead=4)),
            "all are busy (waiting 35s, 2 workers with 3 slots, 4 steps ahead)",
        ),
        (
            between("QUEUED", message="all are busy", wait=told_wait(workers=1, slots=1, ahead=1)),
            "all are busy (waiting 35s, 1 worker with 1 slot, 1 step ahead)",
        ),
        (
            between("QUEUED", message="all are busy", wait=told_wait(workers=1, slots=1, ahead=0)),
            "all are busy (waiting 35s, 1 worker with 1 slot, next in line)",
        ),
        (
            between("QUEUED", message="all are busy", wait=told_wait(workers=1, slots=1)),
            "all are busy (waiting 35s, 1 worker with 1 slot)",
        ),
        (between("QUEUED", **NOBODY, wait=told_wait(other_workers=2)), "nobody is there (waiting 35s)"),
        (between("QUEUED", **NOBODY, wait=told_wait()), "nobody is there (waiting 35s, none was ever seen)"),
        (
            between("QUEUED", **NOBODY, wait=told_wait(last_workers=seen("x", "y", "z"))),
            "nobody is there (waiting 35s, last seen: x 35s ago and y 35s ago)",
        ),
        (
            between("QUEUED", message="soon", wait=told_wait(until=SOON)),
            "soon (waiting 35s, given up in 30s)",
        ),
        (
            between("QUEUED", message="waits for lock x", wait=told_wait(lock=LockWait(holders=[HOLDER], ahead=2))),
            "waits for lock x (waiting 35s, held by step deploy of run r, 2 ahead)",
        ),
        (
            between("QUEUED", message="waits for lock x", wait=told_wait(lock=LockWait(holders=[HOLDER, HOLDER]))),
            "waits for lock x (waiting 35s, held by step deploy of run r and 1 more, next in line)",
        ),
        (
            between("RETRYING", message="broken", wait=StepWait(until=SOON)),
            "broken (next attempt in 30s)",
        ),
        (
            between("RETRYING", message="broken", next_time=SOON),
            "broken (next attempt in 30s)",
        ),
        (between("RUNNING", wait=StepWait(until=SOON)), "told to stop, given up in 30s"),
        (between("RUNNING", next_time=SOON), ""),
        (between("RETRYING", message="broken", next_time=JUST_NOW), "broken (next attempt now)"),
    ],
)
def test_what_a_step_waits_for(step: StepRun, told: str) -> None:
    assert tables.step_message(step, NOW) == told
    if step.state in {StepState.STEP_STATE_QUEUED, StepState.STEP_STATE_RETRYING}:
        assert "1m" not in "".join(tables.step_row(step, NOW)), "its last attempt has ended"


def test_a_step_that_was_just_queued_does_not_wait_yet() -> None:
    assert tables.step_message(waiting(), NOW - timedelta(seconds=34.5)) == ""


def test_lines_say_how_long_a_step_waits(
    capsys: pytest.CaptureFixture[str], make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "now", lambda: NOW)
    run = make_run()
    run.steps[2].CopyFrom(waiting(reason=StepReason.STEP_REASON_NO_WORKER))
    LineProgress().update(RunUpdate(run, tuple(run.steps[2:])))
    assert capsys.readouterr().out.splitlines()[-1].endswith("ship   QUEUED      NO_WORKER (waiting 35s)")

"""What a step waits for, in words."""

from datetime import datetime, timedelta

from conveyor.cli.durations import show_age, show_duration
from conveyor.cli.gates import approvers, is_open, missing_words
from conveyor.cli.times import time_of
from conveyor.v1.run_pb2 import LockHolder, LockWait, StepReason, StepRun, StepState

_SHORT = timedelta(seconds=1)
_SEEN = 2


def waiting(step: StepRun, now: datetime) -> str:
    """What there is to say of a step that waits; empty for any other.

    A watch tells less than `get`: there, what is counted at the moment of asking is missing.
    """
    if step.state == StepState.STEP_STATE_PENDING:
        return _needs(step)
    if step.state == StepState.STEP_STATE_RETRYING:
        return _until("next attempt", step, now)
    if step.state == StepState.STEP_STATE_RUNNING and step.HasField("wait"):
        return f"told to stop, {_until('given up', step, now)}"
    if step.state != StepState.STEP_STATE_QUEUED:
        return ""
    if is_open(step):
        parts = [_since(step, now), approvers(step), missing_words(step.wait.approvals, step)]
        parts.append(_until("decided by default", step, now))
    else:
        wants = [lock_wait(step.wait.lock)] if step.wait.HasField("lock") else _row(step, now)
        parts = [_since(step, now), *wants, _until("given up", step, now)]
    return ", ".join(part for part in parts if part)


def lock_wait(wait: LockWait) -> str:
    """Who has a lock that a run or step waits for, and how many go first."""
    others = len(wait.holders) - 1
    more = f" and {others} more" if others > 0 else ""
    held = f"held by {holder(wait.holders[0])}{more}" if wait.holders else "free now"
    return f"{held}, {wait.ahead} ahead" if wait.ahead else f"{held}, next in line"


def holder(each: LockHolder) -> str:
    """A run, or a step of one, in words."""
    return f"step {each.step} of run {each.run}" if each.step else f"run {each.run}"


def _needs(step: StepRun) -> str:
    needs = ", ".join(step.wait.needs)
    more = step.wait.need_count - len(step.wait.needs)
    if not needs:
        return ""
    return f"waits for {needs} and {more} more" if more > 0 else f"waits for {needs}"


def _since(step: StepRun, now: datetime) -> str:
    then = time_of(step.wait, "since")
    if then is None and step.attempt <= 1:
        then = time_of(step, "queue_time")
    if then is None or now - then < _SHORT:
        return ""
    return f"waiting {show_duration((now - then).total_seconds())}"


def _row(step: StepRun, now: datetime) -> list[str]:
    """Who could take it, how many others go first, and who was there last."""
    wait = step.wait
    if wait.workers:
        ahead = f"{wait.ahead} {_plural('step', wait.ahead)} ahead" if wait.ahead else "next in line"
        workers = f"{wait.workers} {_plural('worker', wait.workers)} with {wait.slots} {_plural('slot', wait.slots)}"
        return [workers, ahead if wait.HasField("ahead") else ""]
    if step.reason != StepReason.STEP_REASON_NO_WORKER or not step.HasField("wait") or wait.other_workers:
        return []
    seen = [
        f"{worker.name} {show_age(time, now)}"
        for worker in wait.last_workers
        if (time := time_of(worker, "time")) is not None
    ]
    return [f"last seen: {' and '.join(seen[:_SEEN])}"] if seen else ["none was ever seen"]


def _until(what: str, step: StepRun, now: datetime) -> str:
    then = time_of(step.wait, "until") or time_of(step, "next_time")
    if then is None:
        return ""
    return f"{what} in {show_duration((then - now).total_seconds())}" if then > now else f"{what} now"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"

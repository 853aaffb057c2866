"""Locks in rounds: random ones, and what must be true of those that held them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from random import Random

from conveyor.sdk import Client, Unavailable
from conveyor.v1.pipeline_pb2 import Lock, Pipeline, Step
from conveyor.v1.run_pb2 import Run, RunReason, StepReason, StepRun
from tests.faults.history import ENDED, ENDED_STEP, History, Violation, run_state, step_state

_KEYS = ("red", "blue", "n-${{ params.n }}")
_WHOLE = "whole"
"""No step wants this one: a run that holds it waits for locks of steps only, which wait for nobody."""
_APART = 10_000_000
"""Nanoseconds between the clocks of two servers of one machine, at most."""
_COMMITTED = 8_000_000_000
"""Nanoseconds from the decision to want a lock to the commit that makes the claim, at most, faults included."""


def random_lock(rng: Random, step: Step) -> None:
    """Give a step a lock; it does not wait for it for long."""
    step.lock.CopyFrom(Lock(key=rng.choice(_KEYS), limit=rng.choice([None, 1, 1, 2, 3])))
    if not step.HasField("queue_timeout"):
        step.queue_timeout.FromTimedelta(timedelta(seconds=rng.uniform(1, 5)))


def random_run_lock(rng: Random, pipeline: Pipeline) -> None:
    """Give a pipeline a lock; its runs do not hold it for long."""
    pipeline.lock.CopyFrom(Lock(key=_WHOLE, limit=rng.choice([3, 4])))
    pipeline.timeout.FromTimedelta(timedelta(seconds=rng.randint(2, 4)))


@dataclass(frozen=True, slots=True)
class _Held:
    """A lock that was held, by the stamps of the servers, in nanoseconds."""

    run: str
    step: str
    limit: int
    wanted: int
    """0 when nobody knows."""
    began: int
    ended: int


def locks_are_kept(history: History) -> Iterator[Violation]:
    """3: Never more holders than any of them accepts, and whoever came first goes first."""
    if any(event["component"] == "clock" for event in history.of("strike")):
        return  # the stamps of two servers can't be compared
    for run in history.runs.values():
        yield from _has_what_it_wants(run)
    for key, held in _by_key(history).items():
        for each in held:
            at_once = [other for other in held if other.began + _APART <= each.began < other.ended - _APART]
            least = min([each.limit, *(other.limit for other in at_once)])
            if len(at_once) >= least:
                others = ", ".join(f"{other.run}/{other.step}" for other in at_once)
                yield Violation(3, each.run, f"{each.step} held lock {key} beside {others}; the limit is {least}")
            if each.limit == 1 and each.wanted:
                for other in held:
                    if other.wanted and other.wanted + _COMMITTED < each.wanted and each.began < other.began:
                        text = f"{each.step} got lock {key} before {other.run}/{other.step}, which was there first"
                        yield Violation(3, each.run, text)


def _by_key(history: History) -> dict[str, list[_Held]]:
    found: dict[str, list[_Held]] = defaultdict(list)
    for run in history.runs.values():
        if run.lock and run.HasField("start_time") and run_state(run.state) in ENDED:
            limit = run.pipeline_snapshot.lock.limit
            times = run.start_time.ToNanoseconds(), run.end_time.ToNanoseconds()
            found[run.lock].append(_Held(run.id, "(all)", limit, 0, *times))
        declared = {step.id: step for step in (*run.pipeline_snapshot.steps, *run.pipeline_snapshot.finally_steps)}
        for stored in run.steps:
            if _held(stored):
                lock = declared[stored.matrix_step or stored.step].lock
                found[stored.lock].append(
                    _Held(
                        run.id,
                        stored.step,
                        lock.limit if lock.HasField("limit") else 1,
                        stored.queue_time.ToNanoseconds(),
                        stored.attempts[0].start_time.ToNanoseconds(),
                        stored.end_time.ToNanoseconds(),
                    )
                )
    return found


def _held(stored: StepRun) -> bool:
    """Whether a step held its lock."""
    began = bool(stored.attempts) and not stored.inherited
    return bool(stored.lock) and began and step_state(stored.state) in ENDED_STEP


def _has_what_it_wants(run: Run) -> Iterator[Violation]:
    """Who ran under a lock had wanted it, and who still waits has not ended."""
    declared = {step.id: step for step in (*run.pipeline_snapshot.steps, *run.pipeline_snapshot.finally_steps)}
    for stored in run.steps:
        if stored.attempts and declared[stored.matrix_step or stored.step].HasField("lock") and not stored.lock:
            yield Violation(3, run.id, f"{stored.step} ran without the lock that it wants")
        if step_state(stored.state) in ENDED_STEP and stored.reason == StepReason.STEP_REASON_WAITING_FOR_LOCK:
            yield Violation(3, run.id, f"{stored.step} has ended, and waits for its lock")
    if run.pipeline_snapshot.HasField("lock") and not run.lock:
        yield Violation(3, run.id, "it ran without the lock that it wants")
    if run_state(run.state) in ENDED and run.reason == RunReason.RUN_REASON_WAITING_FOR_LOCK:
        yield Violation(3, run.id, "it has ended, and waits for its lock")


async def claims_left(addresses: str, namespace: str) -> dict[str, str]:
    """The locks on which there are claims although all runs have ended."""
    async with Client(addresses, namespace=namespace, timeout=8) as client:
        try:
            return {f"lock {lock.key}": f"held by {lock.holders}" async for lock in client.runs.locks()}
        except Unavailable as error:
            return {"locks": str(error)}

"""Runs of one resource on one pipeline that go one after the other: part of invariant 3."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from conveyor.v1.pipeline_pb2 import ConcurrencyPolicy
from conveyor.v1.run_pb2 import Run, RunReason
from tests.faults.hands import troubled
from tests.faults.history import ENDED, History, Violation, run_state

_STOPPED = frozenset(
    {RunReason.RUN_REASON_REPLACED, RunReason.RUN_REASON_CANCEL_REQUESTED, RunReason.RUN_REASON_TIMED_OUT}
)
_STOPS_WITHIN = 2.0
"""Seconds from the start of a run to the cancel of those that it replaces, as long as nobody is struck."""
_CANCELS = frozenset({"server", "etcd", "network", "disk"})
"""Components whose faults may make that cancel late."""
_CLOCKS_DIFFER = 10_000_000
"""Nanoseconds between the clocks of two servers of one machine, at most."""
_IN_TURN = frozenset({ConcurrencyPolicy.CONCURRENCY_POLICY_QUEUE, ConcurrencyPolicy.CONCURRENCY_POLICY_REPLACE})


def one_after_the_other(history: History) -> Iterator[Violation]:
    """3: None starts before the one before it has ended, an older one never last, and a newer one may replace it."""
    if any(event["component"] == "clock" for event in history.of("strike")):
        return  # the stamps of two servers can't be compared
    asked, answered = _asked(history), _answered(history)
    for runs in _lanes(history):
        started = sorted(
            (run for run in runs if run.HasField("start_time")), key=lambda run: run.start_time.ToNanoseconds()
        )
        for before, after in pairwise(started):
            end = before.end_time.ToNanoseconds()
            if run_state(before.state) not in ENDED or end > after.start_time.ToNanoseconds():
                yield Violation(3, after.id, f"it started before {before.id}, whose turn it was, had ended")
        for number, late in enumerate(started):
            for early in started[:number]:
                if answered.get(late.id, float("inf")) < asked.get(early.id, 0.0):
                    yield Violation(3, early.id, f"it started before {late.id}, which is older")
        for run in runs:
            newer = (each for each in runs if answered.get(run.id, float("inf")) < asked.get(each.id, 0.0))
            for by in newer:
                if _replaces(by) and _went_on(run, by) and not _delayed(by, history, asked, answered):
                    yield Violation(3, run.id, f"it went on after {by.id}, which replaces it, was there")
        for run in runs:
            if run.reason == RunReason.RUN_REASON_REPLACED and not _replaced(run, runs, history):
                yield Violation(3, run.id, "it was replaced, and there is no newer run that did so")


def _lanes(history: History) -> Iterator[list[Run]]:
    lanes: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in history.runs.values():
        if run.pipeline_snapshot.concurrency.policy in _IN_TURN:
            lanes[run.pipeline, run.definition, run.resource].append(run)
    return iter(lanes.values())


def _asked(history: History) -> dict[str, float]:
    """When each run was asked for, the first time that it may have been made."""
    requests: dict[str, float] = {}
    for event in history.of("invoke"):
        if event.get("request"):
            requests.setdefault(event["request"], event["at"])
    return {run.id: requests.get(run.labels["request"], 0.0) for run in history.runs.values()}


def _answered(history: History) -> dict[str, float]:
    """When each run was acknowledged."""
    found: dict[str, float] = {}
    for event in history.of("ok"):
        if event["what"] in ("start", "create", "retry"):
            found.setdefault(event["run"], event["at"])
    return found


def _replaces(run: Run) -> bool:
    return bool(run.pipeline_snapshot.concurrency.policy == ConcurrencyPolicy.CONCURRENCY_POLICY_REPLACE)


def _went_on(run: Run, by: Run) -> bool:
    """Whether it ended by itself, long after one was made that replaces it."""
    late = by.create_time.ToNanoseconds() + int(_STOPS_WITHIN * 1e9)
    return run.reason not in _STOPPED and run_state(run.state) in ENDED and run.end_time.ToNanoseconds() > late


def _delayed(by: Run, history: History, asked: dict[str, float], answered: dict[str, float]) -> bool:
    """Whether a fault may have kept it from replacing others."""
    since = asked[by.id]
    return troubled(history, _CANCELS, since, answered.get(by.id, since) + _STOPS_WITHIN)


def _replaced(run: Run, runs: list[Run], history: History) -> bool:
    if any(event["what"] == "delete" for event in history.of("invoke")):
        return True  # the newer one may be gone
    return any(_replaces(each) for each in runs if each.id != run.id and each.id[:13] >= run.id[:13])

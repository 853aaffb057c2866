"""Schedules in rounds: due at each minute, and triggered by clients; each time and each trigger starts one run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from random import Random

from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.schedule_pb2 import MissedRuns, Overlap, Schedule
from tests.faults.history import History, Violation

_POLICIES = [MissedRuns.MISSED_RUNS_RUN_ONCE, MissedRuns.MISSED_RUNS_SKIP]


def random_schedules(rng: Random, pipelines: Sequence[Pipeline], resources: Sequence[Resource]) -> list[Schedule]:
    """One that waits until its runs have ended, and one that does not."""
    return [
        Schedule(
            name=name,
            definition="app",
            resource=rng.choice(resources).name,
            pipeline=rng.choice(pipelines).name,
            cron="* * * * *",
            missed=rng.choice(_POLICIES),
            overlap=overlap,
        )
        for name, overlap in (("patient", Overlap.OVERLAP_SKIP), ("eager", Overlap.OVERLAP_ALLOW))
    ]


def schedules_start_one_run(history: History) -> Iterator[Violation]:
    """2: Each time of a schedule, and each trigger with its request id, starts one run at most."""
    due: dict[tuple[str, int], list[str]] = defaultdict(list)
    for run in history.runs.values():
        if run.HasField("schedule_time"):
            due[run.schedule, run.schedule_time.ToSeconds()].append(run.id)
    for (schedule, time), runs in due.items():
        if len(runs) > 1:
            yield Violation(2, min(runs), f"the time {time} of schedule {schedule} started {len(runs)} runs: {runs}")
    triggered: dict[str, set[str]] = defaultdict(set)
    for event in history.of("ok"):
        if event["what"] == "trigger":
            triggered[event["asked"]].add(event["run"])
    for asked, ids in triggered.items():
        if len(ids) > 1:
            yield Violation(2, min(ids), f"the trigger {asked} started {len(ids)} runs: {sorted(ids)}")

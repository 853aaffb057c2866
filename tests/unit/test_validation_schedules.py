"""What is refused of a schedule, by its path, and what docs/schedules.md shows is taken."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from conveyor.api.validation import check
from conveyor.cli.manifest import load
from conveyor.cli.sources import Source
from conveyor.core import errors, limits
from conveyor.schedules.cron import cron_fault
from conveyor.v1.schedule_pb2 import MISSED_RUNS_SKIP, Schedule
from conveyor.v1.schedule_service_pb2 import ApplyScheduleRequest, ListSchedulesRequest, TriggerScheduleRequest

PAGE = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text(encoding="utf-8")


def problems(request: Any) -> list[tuple[str, str]]:
    try:
        check(request)
    except errors.DomainError as error:
        return [(each.field, each.description) for each in error.violations]
    return []


def late(schedule: Schedule, **length: float) -> None:
    schedule.deadline.FromTimedelta(timedelta(**length))


def skips_and_may_be_late(schedule: Schedule) -> None:
    schedule.missed = MISSED_RUNS_SKIP
    late(schedule, hours=1)


def nested(schedule: Schedule) -> None:
    value: Any = "deep"
    for _ in range(limits.STRUCT_NESTING):
        value = {"in": value}
    schedule.params.update({"a": value})


@pytest.mark.parametrize(
    ("change", "path", "said"),
    [
        (lambda it: it.ClearField("name"), "schedule.name", "missing"),
        (lambda it: it.ClearField("definition"), "schedule.definition", "missing"),
        (lambda it: it.ClearField("resource"), "schedule.resource", "missing"),
        (lambda it: it.ClearField("cron"), "schedule.cron", "is missing; it has five fields"),
        (lambda it: setattr(it, "pipeline", "A/b"), "schedule.pipeline", ""),
        (lambda it: setattr(it, "cron", "0 0 31 2 *"), "schedule.cron", "never comes"),
        (lambda it: setattr(it, "cron", "* " * 200), "schedule.cron", "at most 256"),
        (lambda it: setattr(it, "time_zone", "Mars"), "schedule.time_zone", '"Mars" is not the name of a time zone'),
        (lambda it: late(it, seconds=9), "schedule.deadline", "must be from 10 s to 366 days"),
        (lambda it: late(it, days=367), "schedule.deadline", "must be from 10 s to 366 days"),
        (skips_and_may_be_late, "schedule.deadline", "has no meaning when missed is SKIP"),
        (lambda it: setattr(it, "missed", 9), "schedule.missed", "9 is not a value that this server knows"),
        (lambda it: setattr(it, "overlap", 9), "schedule.overlap", "9 is not a value that this server knows"),
        (lambda it: it.labels.update({"": "x"}), "schedule.labels", "empty key"),
        (lambda it: it.run_labels.update({"k": "x" * 300}), 'schedule.run_labels["k"]', "at most 256"),
        (lambda it: it.params.update({"a": float("inf")}), "schedule.params/a", "send it as a string"),
        (nested, "schedule.params", "deeper than 32 levels"),
        (lambda it: it.params.update({"a": "x" * limits.PARAMS_BYTES}), "schedule.params", "at most"),
        (lambda it: setattr(it, "namespace", "other"), "schedule.namespace", "must be empty or that of the request"),
    ],
)
def test_what_is_refused(change: Callable[[Schedule], object], path: str, said: str) -> None:
    schedule = Schedule(name="nightly", definition="app", resource="shop", cron="@daily")
    assert problems(ApplyScheduleRequest(schedule=schedule)) == []
    change(schedule)
    ((where, text),) = problems(ApplyScheduleRequest(schedule=schedule))
    assert where.startswith(path)
    assert said in text


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = problems(ApplyScheduleRequest(schedule=Schedule(cron="x", time_zone="y")))
    assert [path for path, _ in found] == [
        f"schedule.{field}" for field in ("name", "definition", "resource", "cron", "time_zone")
    ]
    assert problems(TriggerScheduleRequest(name="A")) != []
    assert problems(ListSchedulesRequest(labels={"": ""})) != []


def test_what_the_page_shows_is_taken() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    manifests = load([Source(f"block-{i}", block.encode()) for i, block in enumerate(blocks)])
    schedules = [each.object for each in manifests if isinstance(each.object, Schedule)]
    assert len(schedules) == 2
    for schedule in schedules:
        assert problems(ApplyScheduleRequest(schedule=schedule)) == []


def test_expressions_of_the_page() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    shown = {text for text in re.findall(r"`([^`]+)`", prose) if len(text.split()) == 5 or text.startswith("@")}
    never = {"0 0 31 2 *"}
    assert never < shown
    assert len(shown) > 8
    for text in shown - {"@reboot"}:
        assert bool(cron_fault(text)) == (text in never), text

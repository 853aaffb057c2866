"""Schedules on the command line, but for what needs a real server: files, lists, one object, dry runs, pruning."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from conveyor.v1.pipeline_pb2 import Pipeline, Step
from conveyor.v1.schedule_pb2 import MissedRuns, Overlap, Schedule, ScheduleStatus

FILE = """
kind: Schedule
name: nightly
definition: app
resource: shop
cron: "30 2 * * *"
timeZone: Europe/Berlin
deadline: 12h
missed: RUN_ALL
overlap: REPLACE
"""
RUN = "0193a5b0-0000-7000-8000-000000000002"


def stored(**status: Any) -> Schedule:
    made = Schedule(name="nightly", definition="app", resource="shop", cron="30 2 * * *", time_zone="Europe/Berlin")
    made.status.CopyFrom(ScheduleStatus(**status))
    return made


def in_hours(hours: float) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


def test_a_file_is_sent_as_it_says(conveyor: Callable[..., Any], server: Any, tmp_path: Path) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text(FILE + "status: {started: 7, nextTime: 2027-01-01T00:00:00Z}\n")
    done = conveyor("apply", "-f", str(path))
    assert (done.code, done.out) == (0, "schedule/nightly created\n")
    sent = server.requests[-1].schedule
    assert sent == Schedule(
        name="nightly",
        generation=1,
        definition="app",
        resource="shop",
        cron="30 2 * * *",
        time_zone="Europe/Berlin",
        deadline=Duration(seconds=12 * 3600),
        missed=MissedRuns.MISSED_RUNS_RUN_ALL,
        overlap=Overlap.OVERLAP_REPLACE,
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cron: 5", '6: cron: is the number 5, not text: quote this value: "5"'),
        ("missed: NEVER", "6: missed: "),
        ("deadline: soon", "6: deadline: "),
        ("onChange: false", "6: onChange: "),
        ("cron:", "2: cron: is missing"),
    ],
)
def test_mistakes_have_their_line(conveyor: Callable[..., Any], tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text(f"\nkind: Schedule\nname: nightly\ndefinition: app\nresource: shop\n{line}\n")
    done = conveyor("apply", "-f", str(path))
    assert done.code == 1
    assert f"nightly.yaml:{said}" in done.err


@pytest.mark.parametrize(("cron", "mark"), [("* * * * *", "*"), ("*/5 * * * *", "*"), ("@daily", "@")])
def test_expressions_that_must_be_quoted(conveyor: Callable[..., Any], tmp_path: Path, cron: str, mark: str) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text(f"kind: Schedule\nname: nightly\ndefinition: app\nresource: shop\ncron: {cron}\n")
    assert conveyor("apply", "-f", str(path)).err.endswith(f"; a value that begins with {mark} must be quoted\n")


def test_status_is_a_field_of_schedules_only(conveyor: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "release.yaml"
    path.write_text("kind: Pipeline\nname: release\nsteps: [{id: a, driver: a}]\nstatus: {}\n")
    assert "status: " in conveyor("apply", "-f", str(path)).err


def test_what_the_server_says_is_no_difference(conveyor: Callable[..., Any], server: Any, tmp_path: Path) -> None:
    server.objects["schedule", "nightly"] = stored(started=3)
    path = tmp_path / "nightly.yaml"
    path.write_text("".join(FILE.splitlines(keepends=True)[:7]))
    assert (conveyor("diff", "-f", str(path)).code, conveyor("diff", "-f", str(path)).out) == (0, "")
    path.write_text(path.read_text() + "paused: true\n")
    done = conveyor("diff", "-f", str(path))
    assert done.code == 1
    assert [line for line in done.out.splitlines() if re.match(r"[+-]\w", line)] == ["+paused: true"]


def test_lists(conveyor: Callable[..., Any], server: Any) -> None:
    server.objects["schedule", "nightly"] = stored(
        next_time=in_hours(5.2), last_time=in_hours(-19), last_run=RUN, last_error="there is no resource app/shop"
    )
    server.objects["schedule", "off"] = Schedule(
        name="off", definition="app", resource="x", cron="@daily", paused=True, status=ScheduleStatus()
    )
    rows = [re.split(r"  +", line) for line in conveyor("schedule", "list").out.splitlines()]
    assert rows[0] == ["NAME", "CRON", "TIME ZONE", "RESOURCE", "NEXT", "LAST", "LAST RUN", "MESSAGE"]
    assert rows[1][:4] == ["nightly", "30 2 * * *", "Europe/Berlin", "app/shop"]
    assert rows[1][4].startswith("in 5h")
    assert rows[1][5:] == ["19h ago", RUN, "there is no resource app/shop"]
    assert rows[2][:5] == ["off", "@daily", "UTC", "app/x", "paused"]
    assert conveyor("list", "schedules", "-o", "name").out == "schedule/nightly\nschedule/off\n"
    done = conveyor("list", "schedules", "--pipeline", "release")
    assert (done.code, "--pipeline does not fit schedules" in done.err) == (2, True)
    assert "--schedule does not fit pipelines" in conveyor("list", "pipelines", "--schedule", "nightly").err


def test_one(conveyor: Callable[..., Any], server: Any) -> None:
    made = stored(
        last_time=in_hours(-1), last_run=RUN, active_runs=[RUN], last_error="it is gone", started=4, skipped=2, failed=1
    )
    made.run_labels["by"] = "schedule"
    made.missed = MissedRuns.MISSED_RUNS_SKIP
    server.objects["schedule", "nightly"] = made
    shown = dict(re.split(r": +", line, maxsplit=1) for line in conveyor("schedule", "get", "nightly").out.splitlines())
    assert shown["Missed"] == "SKIP"
    assert shown["Overlap"] == "SKIP"
    assert shown["Run labels"] == "by=schedule"
    assert shown["Under way"] == RUN
    assert shown["Error"] == "it is gone"
    assert shown["Runs"] == "4 started, 2 skipped, 1 refused"
    assert "Next" not in shown
    made.status.next_time.FromDatetime(in_hours(5.2))
    shown = dict(re.split(r": +", line, maxsplit=1) for line in conveyor("schedule", "get", "nightly").out.splitlines())
    assert re.fullmatch(r"\S+Z \(in 5h1\dm\)", shown["Next"])


def test_a_dry_run_says_what_it_could_not_check(
    conveyor: Callable[..., Any], server: Any, refusal: Any, tmp_path: Path
) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(f"{FILE}---\nkind: Resource\nname: shop\ndefinition: app\n")
    server.refusals["ApplySchedule"] = refusal(
        grpc.StatusCode.FAILED_PRECONDITION, "UNKNOWN_RESOURCE", "there is no resource app/shop"
    )
    done = conveyor("apply", "--dry-run", "-f", str(path))
    assert done.code == 0
    assert "schedule/nightly not checked: it needs resource/app/shop, which a dry run does not store" in done.out


def test_pruned_before_what_it_names_which_stays(conveyor: Callable[..., Any], server: Any, tmp_path: Path) -> None:
    release = Pipeline(name="release", steps=[Step(id="a", driver="a")], labels={"kit": "shop"})
    old = Schedule(name="old", definition="app", resource="shop", cron="@daily", labels={"kit": "shop"})
    server.objects["pipeline", "release"] = release
    server.objects["schedule", "old"] = old
    path = tmp_path / "nightly.yaml"
    path.write_text(f"{FILE}pipeline: release\nlabels: {{kit: shop}}\n")
    done = conveyor("apply", "--prune", "-l", "kit=shop", "-f", str(path))
    assert (done.code, done.out) == (0, "schedule/nightly created\nschedule/old pruned\n")
    assert "pipeline/release is in none of the files, but stays" in done.err

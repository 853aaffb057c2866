"""What people see: tables, times, progress, and nothing that drives their terminal."""

import io
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conveyor.cli import live, output, terminal
from conveyor.cli.durations import parse_duration, parse_time, show_age, show_duration
from conveyor.cli.loglines import LogPrinter
from conveyor.cli.progress import LineProgress
from conveyor.sdk import RunUpdate
from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.run_pb2 import RunState, StepRun, StepState

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Terminal(io.StringIO):
    """A terminal that keeps what it was shown."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard output a terminal. No fixture: pytest changes sys.stdout between a fixture and its test."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return shown


def on_pipe(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Make standard output a pipe of an old locale."""
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    return data


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("90s", 90, 0),
        ("1h30m", 5400, 0),
        ("500ms", 0, 500_000_000),
        ("0.5s", 0, 500_000_000),
        ("30d", 2_592_000, 0),
        ("2147484s", 2147484, 0),
        ("1us", 0, 1000),
        ("0s", 0, 0),
    ],
)
def test_durations(text: str, seconds: int, nanos: int) -> None:
    assert parse_duration(text) == (seconds, nanos)


@pytest.mark.parametrize("text", ["", "90", "inf", "5 min", "10y", "9e15", "-1s", "1s ", "s", "1" * 50 + "s", "1٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|unit"):
        parse_duration(text)


def test_times_and_lengths() -> None:
    assert parse_time("2h", NOW) == NOW - timedelta(hours=2)
    assert parse_time("2026-01-31T11:00:00+01:00", NOW) == NOW - timedelta(hours=2)
    with pytest.raises(ValueError, match="neither a duration"):
        parse_time("yesterday", NOW)
    shown = [show_duration(seconds) for seconds in (-5, 0.44, 9.96, 59.6, 185, 7620, 357_000)]
    assert shown == ["0.0s", "0.4s", "10s", "1m00s", "3m05s", "2h07m", "4d03h"]
    ages = [show_age(NOW - timedelta(seconds=seconds), NOW) for seconds in (-9, 0, 12, 100, 185, 3700, 90_000)]
    assert ages == ["just now", "just now", "12s ago", "100s ago", "3m ago", "1h ago", "1d ago"]


ATTACKS = {
    "\x1b[2J\x1b[Hgone": "gone",
    "\x1b]0;title\x07text": "text",
    "\x1b]52;c;aGk=\x1b\\text": "text",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\": "link",
    "\x1bPq...\x1b\\text": "text",
    "\x9b2Jtext": "text",
    "\x1bctext": "text",
    "over\rwrite\r": "over␍write",
    "bell\x07 \x00": "bell␇ ␀",
    "safe\u202eflip": "safe\ufffdflip",
    "\x1b]0;never ends": "",
    "tab\tis é fine 😀": "tab\tis é fine 😀",
}


@pytest.mark.parametrize("text", ATTACKS)
def test_escape_sequences_do_not_reach_a_terminal(text: str) -> None:
    assert terminal.harmless(text) == ATTACKS[text]
    assert terminal.harmless(text, colours=True) == ATTACKS[text]


def test_colours_may_stay_and_end_with_the_line() -> None:
    assert terminal.harmless("\x1b[31mred", colours=True) == "\x1b[31mred\x1b[0m"
    assert terminal.harmless("\x1b[31mred\x1b[0m") == "red"


def line(text: str, step: str = "build", attempt: int = 1, **fields: Any) -> LogLine:
    return LogLine(step=step, attempt=attempt, text=text, **fields)


def test_log_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    tty = on_terminal(monkeypatch)
    printer = LogPrinter()
    for each in (
        line("\x1b]0;x\x07\x1b[31mred"),
        line("b", attempt=2),
        line("", lost=3),
        line("old", step="", attempt=0),
    ):
        printer.write(each)
    printer.close()
    assert tty.getvalue().splitlines() == [
        "[build] \x1b[31mred\x1b[0m",
        "[build#2] b",
        "[build] … 3 lines were lost",
        "old",
    ]


def test_a_pipe_gets_the_exact_text(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = on_pipe(monkeypatch)
    printer = LogPrinter()
    printer.write(line("\x1b]0;é\x07\r"))
    printer.write(line("...", partial=True))
    printer.write(line("done"))
    printer.write(line("a", partial=True))
    printer.write(line("other", step="test"))
    printer.write(line("b"))
    printer.close()
    assert pipe.getvalue().decode().split("\n") == [
        "[build] \x1b]0;é\x07\r",
        "[build] ...done",
        "[build] a",
        "[test] other",
        "[build] b",
        "",
    ]


def test_raw_is_nothing_but_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = on_pipe(monkeypatch)
    printer = LogPrinter(raw=True)
    printer.write(line("a", partial=True))
    printer.write(line("b"))
    printer.close()
    assert pipe.getvalue() == b"ab\n"


def test_timestamps(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = on_pipe(monkeypatch)
    stamped = line("x")
    stamped.time.FromJsonString("2026-01-31T12:00:00.5Z")
    printer = LogPrinter(timestamps=True)
    printer.write(stamped)
    printer.close()
    assert pipe.getvalue() == b"2026-01-31T12:00:00.500Z [build] x\n"


def test_tables_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    text = output.table(
        ("STATE", "NAME", "EMPTY", "MESSAGE"), [("FAILED", "日本", "", "m" * 100), ("RUNNING", "x", "", "")]
    )
    lines = text.splitlines()
    assert lines[0] == "STATE    NAME  MESSAGE"
    assert lines[1].startswith("\x1b[31mFAILED\x1b[0m   日本  mmm")
    assert lines[1].endswith("m…")
    assert terminal.width(terminal.harmless(lines[1])) == 60


def test_no_colour_when_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in output.table(("STATE",), [("FAILED",)])


def test_tables_elsewhere_are_whole_and_plain() -> None:
    (_, row) = output.table(("STATE", "MESSAGE"), [("FAILED", "m" * 500 + "\n\x1b[31mx")]).splitlines()
    assert row == "FAILED  " + "m" * 500 + " x"


def test_a_run_is_drawn_over_itself(monkeypatch: pytest.MonkeyPatch, make_run: Any) -> None:
    tty = on_terminal(monkeypatch)
    view = live.LiveProgress()
    view._run = make_run()
    view._paint(live.frame(view._run, 10))
    height = tty.getvalue().count("\n")
    view.close()
    assert tty.getvalue().count(f"\x1b[{height}A") == 1
    assert all(terminal.width(terminal.harmless(each)) <= 60 for each in tty.getvalue().splitlines())


def test_a_note_takes_the_place_of_what_is_drawn(monkeypatch: pytest.MonkeyPatch, make_run: Any) -> None:
    tty = on_terminal(monkeypatch)
    view = live.LiveProgress()
    view._run = make_run()
    view._paint(live.frame(view._run, 10))
    height = tty.getvalue().count("\n")
    terminal.note("connecting again")
    assert tty.getvalue().endswith(f"\x1b[{height}A\r\x1b[J")
    view.close()
    assert terminal.room_makers == []


def test_lines_of_many_runs_say_whose_they_are(capsys: pytest.CaptureFixture[str], make_run: Any, run_id: str) -> None:
    show = LineProgress(many=True)
    show.update(RunUpdate(make_run()))
    show.update(RunUpdate(make_run(RunState.RUN_STATE_FAILED, message="broken")))
    show.close()
    assert [each.split() for each in capsys.readouterr().out.splitlines()] == [
        [run_id, "2.0s", "(run)", "RUNNING", "app/shop", "on", "release"],
        [run_id, "2.0s", "(run)", "FAILED", "app/shop", "on", "release:", "broken"],
    ]


def test_what_matters_is_shown_when_there_is_little_room(make_run: Any) -> None:
    run = make_run()
    del run.steps[:]
    states = [StepState.STEP_STATE_SUCCEEDED] * 20 + [StepState.STEP_STATE_FAILED, StepState.STEP_STATE_RUNNING]
    run.steps.extend(StepRun(step=f"s{number}", state=state) for number, state in enumerate(states))
    assert [step.step for step in live.chosen(run, 3)] == ["s0", "s20", "s21"]
    assert live.frame(run, 3)[-1] == "… and 19 more steps"

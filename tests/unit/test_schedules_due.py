"""Which of the times that have passed start a run, by policy, deadline, and a clock that jumps."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.schedules.cron import Timing
from conveyor.schedules.due import MOST, SECOND, Due, decide, next_time
from conveyor.v1.schedule_pb2 import MISSED_RUNS_RUN_ALL, MISSED_RUNS_RUN_ONCE, MISSED_RUNS_SKIP, MissedRuns

MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
START = 1_800_000_000 * SECOND
"""A whole hour."""

MINUTELY, HOURLY = Timing("* * * * *", ""), Timing("0 * * * *", "")


def test_nothing_is_due_before_its_time() -> None:
    assert decide(HOURLY, MISSED_RUNS_RUN_ONCE, 0, START, START + HOUR - 1) is None
    assert decide(HOURLY, MISSED_RUNS_RUN_ONCE, 0, START, START + HOUR) == Due(START + HOUR, 0, START + HOUR)


@pytest.mark.parametrize(
    ("missed", "deadline", "down", "expected"),
    [
        # The server was away for so long; hours after START, and None for nothing that may start.
        (MISSED_RUNS_RUN_ONCE, 0, HOUR + 5 * MINUTE, (1, 0, 1)),
        (MISSED_RUNS_RUN_ONCE, 0, HOUR + 6 * MINUTE, (None, 1, 1)),
        (MISSED_RUNS_RUN_ONCE, 0, 5 * HOUR + MINUTE, (5, 4, 5)),
        (MISSED_RUNS_RUN_ONCE, 0, 5 * HOUR + 6 * MINUTE, (None, 5, 5)),
        (MISSED_RUNS_RUN_ONCE, DAY, 5 * HOUR + 6 * MINUTE, (5, 4, 5)),
        (MISSED_RUNS_RUN_ALL, 0, 5 * HOUR + MINUTE, (5, 4, 5)),
        (MISSED_RUNS_RUN_ALL, DAY, 5 * HOUR + MINUTE, (1, 0, 1)),
        (MISSED_RUNS_RUN_ALL, 2 * HOUR, 5 * HOUR + MINUTE, (4, 3, 4)),
        (MISSED_RUNS_SKIP, 0, HOUR + MINUTE, (1, 0, 1)),
        (MISSED_RUNS_SKIP, 0, HOUR + MINUTE + SECOND, (None, 1, 1)),
        (MISSED_RUNS_SKIP, 0, 3 * HOUR + SECOND, (3, 2, 3)),
    ],
)
def test_after_a_time_away(
    missed: MissedRuns.ValueType, deadline: int, down: int, expected: tuple[int | None, int, int]
) -> None:
    time, count, decided = expected
    due = decide(HOURLY, missed, deadline, START, START + down)
    assert due == Due(START + time * HOUR if time else 0, count, START + decided * HOUR)


def test_all_missed_times_run_one_after_the_other_and_of_many_the_last() -> None:
    decided, now = START, START + 250 * MINUTE
    started: list[int] = []
    passed = 0
    while (due := decide(MINUTELY, MISSED_RUNS_RUN_ALL, DAY, decided, now)) is not None:
        started.append(due.time)
        passed += due.missed
        decided = due.decided
    assert started == [START + minute * MINUTE for minute in range(151, 251)]
    assert (len(started), passed) == (MOST, 150)


@pytest.mark.parametrize("missed", [MISSED_RUNS_RUN_ONCE, MISSED_RUNS_RUN_ALL, MISSED_RUNS_SKIP])
def test_after_years_the_end_is_what_counts(missed: MissedRuns.ValueType) -> None:
    now = START + 3 * 365 * DAY + 10 * SECOND
    due = decide(MINUTELY, missed, DAY, START, now)
    assert due is not None
    first = (MOST - 1) * MINUTE if missed == MISSED_RUNS_RUN_ALL else 0
    assert due.time == now - 10 * SECOND - first
    assert due.missed >= 900


def test_a_clock_that_is_set_back_starts_nothing_twice() -> None:
    decided = START + 3 * HOUR
    for back in range(0, 2 * HOUR, 7 * MINUTE):
        assert decide(HOURLY, MISSED_RUNS_RUN_ALL, DAY, decided, decided - back) is None
        assert next_time(HOURLY, decided, decided - back) == decided + HOUR
    assert decide(HOURLY, MISSED_RUNS_RUN_ALL, DAY, decided, decided + HOUR) == Due(
        START + 4 * HOUR, 0, START + 4 * HOUR
    )


def test_after_a_clock_that_was_far_ahead_it_goes_on_at_once() -> None:
    decided, now = START + 400 * DAY, START + MINUTE
    due = decide(HOURLY, MISSED_RUNS_RUN_ALL, DAY, decided, now)
    assert due == Due(0, 0, now)
    assert next_time(HOURLY, decided, now) == next_time(HOURLY, due.decided, now) == START + HOUR
    assert decide(HOURLY, MISSED_RUNS_RUN_ALL, DAY, due.decided, START + HOUR) == Due(START + HOUR, 0, START + HOUR)


def test_a_clock_that_is_set_forward_starts_one_run() -> None:
    decided, now = START, START + 4 * HOUR + 2 * MINUTE
    due = decide(MINUTELY, MISSED_RUNS_RUN_ONCE, 0, decided, now)
    assert due == Due(now, 241, now)
    assert decide(MINUTELY, MISSED_RUNS_RUN_ONCE, 0, due.decided, now) is None


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3 * HOUR), max_size=5), st.sampled_from([1, 2, 3]), st.sampled_from([0, MINUTE, DAY]))
def test_each_time_is_decided_once_however_often_one_looks(steps: list[int], missed: int, deadline: int) -> None:
    timing = Timing("0 * * * *", "Europe/Berlin")
    decided = now = START
    started: list[int] = []
    passed = 0
    for step in steps:
        now += step
        while (due := decide(timing, MissedRuns.ValueType(missed), deadline, decided, now)) is not None:
            assert due.decided > decided
            started += [due.time] if due.time else []
            passed += due.missed
            decided = due.decided
    assert started == sorted(set(started))
    assert len(started) + passed == sum(1 for time in islice(timing.after(START), 1000) if time <= now)

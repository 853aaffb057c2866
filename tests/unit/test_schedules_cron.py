"""Cron expressions in time zones: what is refused and how, and which times come, over all turns of the clocks."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.schedules.cron import Timing, cron_fault, zone_fault

DAY = 24 * 3600 * 1_000_000


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


def times(cron: str, zone: str, since: str, count: int) -> list[str]:
    """The next times after this one, all in UTC."""
    found = islice(Timing(cron, zone).after(at(since)), count)
    return [datetime.fromtimestamp(time // 1_000_000, UTC).strftime("%m-%d %H:%M") for time in found]


@pytest.mark.parametrize(
    ("cron", "zone", "since", "expected"),
    [
        ("*/15 * * * *", "", "2027-01-01T00:01", ["01-01 00:15", "01-01 00:30", "01-01 00:45", "01-01 01:00"]),
        ("0 2 * * *", "Europe/Berlin", "2027-01-01T00:00", ["01-01 01:00", "01-02 01:00"]),
        ("0 0 1 * *", "UTC", "2027-01-01T00:00", ["02-01 00:00", "03-01 00:00"]),
        ("0 9 * * MON-FRI", "", "2027-01-01T10:00", ["01-04 09:00", "01-05 09:00"]),
        ("0 9 * * 7", "", "2027-01-01T10:00", ["01-03 09:00", "01-10 09:00"]),
        # The last day of the month, the first Monday, and both day fields: either will do.
        ("0 0 L * *", "", "2027-01-15T00:00", ["01-31 00:00", "02-28 00:00"]),
        ("0 0 * * MON#1", "", "2027-01-15T00:00", ["02-01 00:00", "03-01 00:00"]),
        ("0 0 13 * FRI", "", "2027-01-01T12:00", ["01-08 00:00", "01-13 00:00", "01-15 00:00"]),
        ("@daily", "Asia/Kolkata", "2027-01-01T00:00", ["01-01 18:30", "01-02 18:30"]),
        ("  @Hourly ", "", "2027-01-01T00:00", ["01-01 01:00", "01-01 02:00"]),
        # Berlin, spring: 02:00 becomes 03:00 on 28 March. A fixed time in the gap comes at its end, once.
        ("30 2 * * *", "Europe/Berlin", "2027-03-26T12:00", ["03-27 01:30", "03-28 01:00", "03-29 00:30"]),
        ("0,30 2 * * *", "Europe/Berlin", "2027-03-27T12:00", ["03-28 01:00", "03-29 00:00", "03-29 00:30"]),
        ("0 * * * *", "Europe/Berlin", "2027-03-27T23:30", ["03-28 00:00", "03-28 01:00", "03-28 02:00"]),
        # Berlin, autumn: 03:00 becomes 02:00 on 31 October. A fixed time comes in the first of the two hours only.
        ("30 2 * * *", "Europe/Berlin", "2027-10-30T12:00", ["10-31 00:30", "11-01 01:30"]),
        ("30 2 * * *", "Europe/Berlin", "2027-10-31T00:45", ["11-01 01:30"]),
        ("30 2 * * *", "Europe/Berlin", "2027-10-31T01:15", ["11-01 01:30"]),
        ("*/30 * * * *", "Europe/Berlin", "2027-10-31T00:00", ["10-31 00:30", "10-31 01:00", "10-31 01:30"]),
        # Half an hour only, and a gap at midnight.
        ("15 2 * * *", "Australia/Lord_Howe", "2027-10-01T00:00", ["10-01 15:45", "10-02 15:30", "10-03 15:15"]),
        ("0 0 * * *", "Africa/Cairo", "2027-04-28T12:00", ["04-28 22:00", "04-29 22:00", "04-30 21:00"]),
        ("0 0 29 2 *", "", "2027-01-01T00:00", ["02-29 00:00"]),
    ],
)
def test_which_times_come(cron: str, zone: str, since: str, expected: list[str]) -> None:
    assert times(cron, zone, since, len(expected)) == expected


@pytest.mark.parametrize(
    ("cron", "fault"),
    [
        ("", "is missing; it has five fields"),
        ("   ", "is missing"),
        ("* * * *", "has 4 fields; it must have five"),
        (
            "0 0 0 * * *",
            "has 6 fields; it must have five: minute, hour, day of month, month, day of week; there are no",
        ),
        ("@reboot", 'must not be "@reboot"; the shorthands are @yearly'),
        ("CRON_TZ=UTC 0 0 * * *", "must not name a time zone; time_zone is for that"),
        ("61 * * * *", 'has "61" for the minute, which is none: 0 to 59'),
        ("* 24 * * *", "for the hour"),
        ("* * 32 * *", "for the day-of-month"),
        ("* * 0 * *", "for the day-of-month"),
        ("* * * 13 *", "for the month"),
        ("* * * * 8", "for the day-of-week"),
        ("H * * * *", 'has "H" for the minute'),
        ("*/0 * * * *", "for the minute"),
        ("-1 * * * *", "for the minute"),
        ("30-10 * * * *", "for the minute"),
        ("1,,2 * * * *", "for the minute"),
        ("² * * * *", "for the minute"),
        ("* * * * MON#6", "for the day-of-week"),
        ("0 0 31 2 *", "never comes"),
        ("0 0 30 FEB *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("0 0 */31 2 1#5", "never comes"),
    ],
)
def test_what_is_refused(cron: str, fault: str) -> None:
    assert fault in cron_fault(cron)
    with pytest.raises(ValueError, match=re.escape(fault)):
        Timing(cron, "")


@pytest.mark.parametrize("cron", ["0 0 30-31 4 *", "0 0 31 * *", "0 0 31 2 MON", "5/20 * * * *", "0 0 LW * *"])
def test_what_looks_odd_and_comes(cron: str) -> None:
    assert cron_fault(cron) == ""


@pytest.mark.parametrize(
    ("zone", "fault"),
    [
        ("", ""),
        ("UTC", ""),
        ("America/Argentina/Buenos_Aires", ""),
        ("Europe/Berln", "did you mean Europe/Berlin?"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("Mars/Olympus", '"Mars/Olympus" is not the name of a time zone in the IANA database'),
        ("+02:00", "is not the name"),
        ("../../etc/passwd", "is not the name"),
        ("/etc/localtime", "is not the name"),
        ("Europe", "is not the name"),
        ("x" * 100_000, "…"),
    ],
)
def test_time_zones(zone: str, fault: str) -> None:
    found = zone_fault(zone)
    assert fault in found
    assert bool(found) == bool(fault)
    assert len(found) < 200


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text: str) -> None:
    if not cron_fault(text):
        assert Timing(text, "").next(0) > 0
    zone_fault(text)


_FIELD = st.sampled_from(["*", "*/7", "0", "5", "1,4", "2-3"])
_ZONE = st.sampled_from(
    ["", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Kolkata"]
)


@settings(deadline=None, max_examples=50)
@given(_FIELD, _FIELD, _FIELD, _ZONE, st.integers(at("2027-01-01"), at("2028-01-01")), st.integers(0, 3 * DAY))
def test_from_whichever_time_one_looks_the_same_times_come(
    minute: str, hour: str, weekday: str, zone: str, since: int, later: int
) -> None:
    timing = Timing(f"{minute} {hour} * * {weekday}", zone)
    found = list(islice(timing.after(since), 20))
    assert found == sorted(set(found))
    assert all(time % 60_000_000 == 0 for time in found)
    middle = since + later
    rest = [time for time in found if time > middle]
    assert list(islice(timing.after(middle), len(rest))) == rest

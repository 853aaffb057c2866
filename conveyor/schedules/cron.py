"""Cron expressions in a time zone: what is wrong with one, and which times it names.

Times are microseconds since 1970-01-01 UTC, always at whole minutes. Daylight saving is as in Debian's cron: a job with
a fixed hour runs once on each day, also on the day when that hour is left out (then at the end of the gap) or comes
twice (then the first time); a job of every hour, or of every few minutes, goes on by elapsed time.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from importlib import resources
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
_VALUES = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31, L (the last) or LW (the last weekday)",
    "month": "1 to 12 or JAN to DEC",
    "day-of-week": "0 (Sunday) to 7 or SUN to SAT, with # and a number for the n-th of a month, or with L for the last",
}
_SHORTHANDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_SHOWN = 40


def _zone_names() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text().split())


_ZONES = _zone_names()


def cron_fault(expression: str) -> str:
    """What is wrong with a cron expression; empty when it can be used, and names a time at all."""
    text = expression.strip()
    if not text:
        return "is missing; it has five fields: minute, hour, day of month, month, day of week"
    if text.startswith("@"):
        if text.lower() in _SHORTHANDS:
            return ""
        return f"must not be {_shown(text)}; the shorthands are {', '.join(_SHORTHANDS)}"
    parts = text.upper().split()
    if "=" in parts[0]:
        return "must not name a time zone; time_zone is for that"
    if len(parts) != len(_FIELDS):
        seconds = "; there are no seconds" if len(parts) == len(_FIELDS) + 1 else ""
        return f"has {len(parts)} fields; it must have five: minute, hour, day of month, month, day of week{seconds}"
    for name, part in zip(_FIELDS, parts, strict=True):
        if not _stands_alone(name, part):
            allowed = f"{_VALUES[name]}; *, ranges, steps and lists of those"
            return f"has {_shown(part)} for the {name}, which is none: {allowed}"
    return "" if _ever(" ".join(parts)) else "never comes: there is no such day"


def zone_fault(name: str) -> str:
    """What is wrong with the name of a time zone; empty when it can be used."""
    if not name or name in _ZONES:
        return ""
    folded = {zone.casefold(): zone for zone in _ZONES}
    near = difflib.get_close_matches(name.casefold()[:64], folded, 1)
    hint = f"; did you mean {folded[near[0]]}?" if near else ', as "Europe/Berlin" is'
    return f"{_shown(name)} is not the name of a time zone in the IANA database{hint}"


class Timing:
    """The times that an expression names in a time zone. Raises ValueError when either cannot be used.

    The first use of a time zone reads files, and finding times takes some 50 µs each.
    """

    def __init__(self, cron: str, time_zone: str) -> None:
        fault = cron_fault(cron) or zone_fault(time_zone)
        if fault:
            raise ValueError(fault)
        text = cron.strip()
        self._cron = _SHORTHANDS.get(text.lower(), text)
        self._zone = _zone(time_zone)

    def after(self, time: int) -> Iterator[int]:
        """All times after this one, in their order."""
        last = time
        for moment in CronSim(self._cron, (_EPOCH + time * MICROSECOND).astimezone(self._zone)):
            found = (moment.astimezone(UTC) - _EPOCH) // MICROSECOND
            # What falls into the hour that comes twice is named by its first pass, which may be over; and two times
            # that fall into the gap are one.
            if found > last:
                last = found
                yield found

    def next(self, time: int) -> int:
        """The first time after this one; 0 when none ever comes."""
        return next(self.after(time), 0)


@functools.lru_cache(4096)
def timing(cron: str, time_zone: str) -> Timing:
    """The times of an expression in a time zone, read once. Raises ValueError as Timing does."""
    return Timing(cron, time_zone)


@functools.cache
def _zone(name: str) -> tzinfo:
    if name in {"", "UTC"}:
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"{_shown(name)} is not a time zone that this server has") from error


def _stands_alone(name: str, part: str) -> bool:
    """Whether a field can be read, whatever the others are."""
    parts = ["*"] * len(_FIELDS)
    parts[_FIELDS.index(name)] = part
    try:
        CronSim(" ".join(parts), _EPOCH)
    except CronSimError:
        # Days from the 30th on are days, though not of each month.
        return name == "day-of-month" and part.isdigit() and part.isascii() and 1 <= int(part) <= 31
    return True


def _ever(expression: str) -> bool:
    try:
        return next(CronSim(expression, _EPOCH), None) is not None
    except CronSimError:
        return False


def _shown(text: str) -> str:
    return f'"{text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"}"'

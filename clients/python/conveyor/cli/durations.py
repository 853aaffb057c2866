"""Durations and ages as people write and read them."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

_UNITS = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("1e-3"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "ns": Decimal("1e-9"),
}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|us|µs|ns|d|h|m|s)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_BARE = re.compile(r"[0-9]+(?:\.[0-9]+)?")
# The bound of google.protobuf.Duration: about 10,000 years.
_MAX_SECONDS = 315_576_000_000
_MAX_DIGITS = 40


def parse_duration(text: str) -> tuple[int, int]:
    """Seconds and nanoseconds of a text like 1h30m, 90s, 500ms or 2d. ValueError says what to write instead."""
    if len(text) > _MAX_DIGITS or not _WHOLE.fullmatch(text):
        if len(text) <= _MAX_DIGITS and _BARE.fullmatch(text):
            raise ValueError(f'{text} has no unit; write "{text}s" for seconds')
        raise ValueError(
            f'{text[:_MAX_DIGITS]!r} is not a duration; write numbers with units, e.g. "90s", "5m" or "1h30m"'
        )
    total = sum((Decimal(number) * _UNITS[unit] for number, unit in _PART.findall(text)), Decimal(0))
    if total > _MAX_SECONDS:
        raise ValueError(f"{text} is longer than 10,000 years")
    nanos = int(total * 1_000_000_000)
    return divmod(nanos, 1_000_000_000)


def parse_seconds(text: str) -> float:
    """The same as seconds."""
    seconds, nanos = parse_duration(text)
    return seconds + nanos / 1e9


def parse_time(text: str, now: datetime) -> datetime:
    """A time given in RFC 3339, or as the duration since then. ValueError when it is neither."""
    try:
        return now - timedelta(seconds=parse_seconds(text))
    except (ValueError, OverflowError):
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f'{text!r} is neither a duration like "2h" nor a time like 2026-01-31T12:00:00Z') from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def show_duration(seconds: float) -> str:
    """A length of time, short: 0.4s, 12s, 3m05s, 2h07m, 4d03h. Never negative."""
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def show_age(then: datetime, now: datetime) -> str:
    """How long ago, in one unit: 12s ago."""
    seconds = int((now - then).total_seconds())
    if seconds < 1:
        return "just now"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size or (unit != "m" and seconds >= size):
            return f"{seconds // size}{unit} ago"
    return f"{seconds}s ago"

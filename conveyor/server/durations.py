"""Times as people write them: `90s`, `1h30m`, `500ms`, `30d`."""

from __future__ import annotations

import re

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """The seconds of a duration. Raises ValueError that says what to write."""
    total, end = 0.0, 0
    for match in _PART.finditer(text):
        if match.start() != end:
            break
        total += float(match[1]) * _SECONDS[match[2]]
        end = match.end()
    if not end or end != len(text):
        raise ValueError(f"{text!r} is not a duration: write it with units, such as 500ms, 90s, 1h30m or 30d")
    return total

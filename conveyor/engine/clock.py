"""The server's time."""

from __future__ import annotations

import time
from collections.abc import Callable

Now = Callable[[], int]
"""Microseconds since 1970-01-01 UTC."""

_READINGS = 8


def anchored_clock(offset: int = 0) -> Now:
    """A clock that reads the system's time once and goes on from there by the monotonic clock.

    A system clock that is set while the server runs moves no deadline. `offset` in microseconds is added.
    """
    start = _distance() // 1000 + offset

    def now() -> int:
        return start + time.monotonic_ns() // 1000

    return now


def _distance() -> int:
    """From the monotonic clock to the system's, in nanoseconds, by the quickest of some readings.

    On a busy machine the process may lose its turn between the two, and would be late by as much from then on.
    """
    quickest = distance = 0
    for _ in range(_READINGS):
        before = time.monotonic_ns()
        system = time.time_ns()
        took = time.monotonic_ns() - before
        if not distance or took < quickest:
            quickest, distance = took, system - before - took // 2
    return distance

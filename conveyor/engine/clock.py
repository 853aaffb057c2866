"""The server's time."""

from __future__ import annotations

import time
from collections.abc import Callable

Now = Callable[[], int]
"""Microseconds since 1970-01-01 UTC."""


def anchored_clock(offset: int = 0) -> Now:
    """A clock that reads the system's time once and goes on from there by the monotonic clock.

    A system clock that is set while the server runs moves no deadline. `offset` in microseconds is added.
    """
    start = time.time_ns() // 1000 + offset - time.monotonic_ns() // 1000

    def now() -> int:
        return start + time.monotonic_ns() // 1000

    return now

"""Waiting for conditions: never a sleep that hopes, and always a bound that says what was waited for."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

LONG = 60.0
"""Seconds after which something that must happen is given up; a net, not a limit."""


async def until(condition: Callable[[], T | Awaitable[T]], what: str = "", within: float = LONG) -> T:
    """Asks until the answer is true, and returns it."""
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what or condition}; the last answer was {answer!r}")
        await asyncio.sleep(0.02)


def until_sync(condition: Callable[[], T], what: str = "", within: float = LONG) -> T:
    """The same for tests without a loop."""
    deadline = time.monotonic() + within
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what or condition}; the last answer was {answer!r}")
        time.sleep(0.02)
    return answer

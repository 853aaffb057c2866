"""Waiting for what a driver does."""

import asyncio
from collections.abc import Callable
from typing import Any


class Changes:
    """Wakes those who wait for a condition whenever something has happened. For one event loop."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Something has happened: all conditions are looked at again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], object], within: float) -> bool:
        """Wait until a condition holds; False when it did not within so many seconds."""
        try:
            async with asyncio.timeout(within):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return bool(condition())
        return True


async def cancelled(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait for their end."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        # Once more after a while: before Python 3.12 an answer that comes at the same moment swallows it.
        _, left = await asyncio.wait(left, timeout=1.0)

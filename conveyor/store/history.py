"""The recent changes of an embedded store, and the watches that follow them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from conveyor.store.port import Changes, Reset, Unavailable


class History:
    """A bounded window over the last revisions, each of them a dense successor of the one before.

    Watchers keep no queues of their own: each reads the window at its own position, so a thousand slow ones hold
    no more memory than a fast one. A position that the window has left behind gets a Reset.
    All methods belong to one event loop.
    """

    def __init__(self, revision: int, max_changes: int, max_bytes: int) -> None:
        self.revision = revision
        self._oldest = revision + 1
        self._window: dict[int, tuple[Changes, int]] = {}
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._changes = 0
        self._bytes = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    def append(self, changes: Changes, size: int) -> None:
        """Add the next revision, `size` bytes in memory; `wake` must follow before the loop goes on."""
        self.revision = changes.revision
        self._window[changes.revision] = changes, size
        self._changes += len(changes.changes)
        self._bytes += size
        while (self._changes > self._max_changes or self._bytes > self._max_bytes) and self._oldest < self.revision:
            oldest, size = self._window.pop(self._oldest)
            self._oldest += 1
            self._changes -= len(oldest.changes)
            self._bytes -= size

    def wake(self) -> None:
        """Let the watchers look at what was added."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    def close(self) -> None:
        """End every watch with Unavailable."""
        self._closed = True
        self._window.clear()
        self.wake()

    async def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Changes | Reset, None]:
        """See `Store.watch`."""
        position = after_revision
        while True:
            if self._closed:
                raise Unavailable("the store is closed")
            if not self._oldest - 1 <= position <= self.revision:
                position = self.revision
                yield Reset(position)
            elif position == self.revision:
                await self._next()
            else:
                position += 1
                found = _below(prefix, self._window[position][0])
                if found is not None:
                    yield found

    async def _next(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)


def _below(prefix: str, changes: Changes) -> Changes | None:
    matching = tuple(change for change in changes.changes if change.key.startswith(prefix))
    if not matching:
        return None
    return changes if len(matching) == len(changes.changes) else Changes(changes.revision, matching)

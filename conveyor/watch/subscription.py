"""What waits for one subscriber: every revision while it keeps up, the newest state of each run when it does not."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from conveyor.core import errors
from conveyor.store.port import Reset
from conveyor.watch.feed import Revision, RunDelta, RunKey

KEEPS_UP = 256
"""Revisions that a subscriber may be behind before runs are merged."""

MAX_RUNS_BEHIND = 20_000
"""Runs that wait for one subscriber before it has to begin anew."""


class Subscription:
    """A bounded queue between the feed and one stream."""

    def __init__(self, wanted: Callable[[RunDelta], bool]) -> None:
        self._wanted = wanted
        self._queue: deque[tuple[int, list[tuple[RunDelta, int]]]] = deque()
        self._merged: dict[RunKey, tuple[RunDelta, int]] = {}
        self._merged_revision = 0
        self._reset: Reset | None = None
        self._something = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """The server shuts down: `next` raises."""
        self._closed = True
        self._something.set()

    def take(self, item: Revision | Reset) -> None:
        """The feed's next revision; called by the feed."""
        if isinstance(item, Reset):
            self._begin_anew(item)
        elif self._reset is None:
            deltas = [delta for delta in item.runs.values() if self._wanted(delta)]
            if not deltas:
                return
            if self._merged or len(self._queue) >= KEEPS_UP:
                self._merge(item.revision, deltas)
            else:
                self._queue.append((item.revision, [(delta, 0) for delta in deltas]))
        self._something.set()

    def clear(self) -> None:
        """Forget what has gathered."""
        self._queue.clear()
        self._merged.clear()
        self._reset = None

    def _begin_anew(self, reset: Reset) -> None:
        self.clear()
        self._reset = reset

    def _merge(self, revision: int, deltas: list[RunDelta]) -> None:
        """The reader is slow: keep the newest state of each run, and count what it will not see."""
        for delta in deltas:
            key = (delta.namespace, delta.run)
            older = self._merged.pop(key, None)
            self._merged[key] = (delta, 0) if older is None else (_newest(older[0], delta), older[1] + 1)
        self._merged_revision = revision
        if len(self._merged) > MAX_RUNS_BEHIND:
            self._begin_anew(Reset(revision))

    async def next(self, timeout: float) -> Reset | tuple[int, list[tuple[RunDelta, int]]] | None:
        """The next revision with its runs and how many changes of each were left out; None when nothing came.

        Raises errors.ShuttingDown.
        """
        try:
            async with asyncio.timeout(timeout):
                while not (self._queue or self._merged or self._reset):
                    if self._closed:
                        raise errors.ShuttingDown
                    self._something.clear()
                    await self._something.wait()
        except TimeoutError:
            if not (self._queue or self._merged or self._reset):
                return None
        if self._reset is not None:
            reset, self._reset = self._reset, None
            return reset
        if self._queue:
            return self._queue.popleft()
        merged, self._merged = self._merged, {}
        return self._merged_revision, list(merged.values())


def _newest(older: RunDelta, newer: RunDelta) -> RunDelta:
    """Both changes as one; the steps of the newer one win."""
    steps = {record.step: record for record in older.steps}
    steps.update((record.step, record) for record in newer.steps)
    return RunDelta(
        namespace=newer.namespace,
        run=newer.run,
        revision=newer.revision,
        head=newer.head or older.head,
        deleted=newer.deleted,
        steps=list(steps.values()),
        expanded=older.expanded | newer.expanded,
    )

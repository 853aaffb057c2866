"""When which run wants a Tick."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import structlog

from conveyor.engine.clock import Now

log = structlog.get_logger("conveyor.engine")

RunKey = tuple[str, str]
"""Namespace and run id."""

_BUCKET = 20_000  # microseconds: how late a timer may be, against how many sets there are
_LONGEST_SLEEP = 1.0
_SPARE = 64
_REMEMBERED = 4096


class Timers:
    """The earliest due time of each run, in buckets, so that setting and forgetting cost the same for any number."""

    def __init__(self, now: Now) -> None:
        self._now = now
        self._bucket_of: dict[RunKey, int] = {}
        self._buckets: dict[int, set[RunKey]] = {}
        self._heap: list[int] = []
        self._over: OrderedDict[RunKey, None] = OrderedDict()
        self._earlier = asyncio.Event()

    def __len__(self) -> int:
        return len(self._bucket_of)

    def runs(self) -> set[RunKey]:
        """Those that are going to be ticked."""
        return {*self._bucket_of}

    def set(self, key: RunKey, time: int) -> None:
        """Have the run ticked at `time` (microseconds) or soon after, unless it is due earlier anyway or has ended."""
        if key in self._over:
            return
        bucket = time // _BUCKET + 1
        known = self._bucket_of.get(key)
        if known is not None:
            if known <= bucket:
                return
            self._take_out(key, known)
        self._bucket_of[key] = bucket
        members = self._buckets.get(bucket)
        if members is None:
            members = self._buckets[bucket] = set()
            heapq.heappush(self._heap, bucket)
            if self._heap[0] == bucket:
                self._earlier.set()
        members.add(key)

    def forget(self, key: RunKey) -> None:
        """The run has ended. Who read it just before and comes late with a timer is not listened to."""
        self._over[key] = None
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)
        bucket = self._bucket_of.pop(key, None)
        if bucket is not None:
            self._take_out(key, bucket)

    def _take_out(self, key: RunKey, bucket: int) -> None:
        """An empty bucket goes at once, hours before its time; the heap is cleared of such when most of it is."""
        members = self._buckets[bucket]
        members.discard(key)
        if not members:
            del self._buckets[bucket]
            if len(self._heap) > 2 * len(self._buckets) + _SPARE:
                self._heap = sorted(self._buckets)

    def due(self) -> list[RunKey]:
        """Take out all runs whose time has come."""
        found: list[RunKey] = []
        current = self._now() // _BUCKET
        while self._heap and self._heap[0] <= current:
            for key in self._buckets.pop(heapq.heappop(self._heap), ()):
                del self._bucket_of[key]
                found.append(key)
        return found

    async def run(self, tick: Callable[[RunKey], Awaitable[None]]) -> None:
        """Tick due runs for ever. A tick that raises is logged; the others go on."""
        while True:
            self._earlier.clear()
            due = self.due()
            if due:
                ticks = await asyncio.gather(*(tick(key) for key in due), return_exceptions=True)
                for key, error in zip(due, ticks, strict=True):
                    if isinstance(error, Exception):
                        log.error("tick_failed", run_id=key[1], exc_info=error)
                continue
            wait = _LONGEST_SLEEP
            if self._heap:
                wait = min(wait, max(0.0, (self._heap[0] * _BUCKET - self._now()) / 1e6))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._earlier.wait()

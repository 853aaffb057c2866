"""Group commit: what has gathered goes out together, where that changes nothing for anybody."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from conveyor.store.port import MAX_COMMIT_BYTES, Guard, Put, Unavailable

MAX_BATCH = 32
"""Commits in one batch. With at most 96 guards or operations in each, no batch passes etcd's 128."""

_MAX_SCAN = 256
"""Waiting commits looked at for one batch: under a hot key the queue may be long."""


class Pending:
    """A commit on its way, with the keys that it guards and writes."""

    __slots__ = ("answer", "deletes", "guarded", "guards", "puts", "since", "size", "written")

    def __init__(
        self,
        answer: asyncio.Future[int],
        guards: Sequence[Guard],
        puts: Sequence[Put],
        deletes: Sequence[str],
        size: int,
        since: float,
    ) -> None:
        self.answer = answer
        self.guards = guards
        self.puts = puts
        self.deletes = deletes
        self.size = size
        self.since = since
        self.guarded = {guard.key for guard in guards}
        self.written = {put.key for put in puts}
        self.written.update(deletes)

    def fail(self, error: Exception) -> None:
        """Answer with `error`, unless the caller is gone."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def succeed(self, revision: int) -> None:
        """Answer with the revision, unless the caller is gone."""
        if not self.answer.done():
            self.answer.set_result(revision)


class _Keys:
    """Keys that earlier commits guard and write."""

    __slots__ = ("guarded", "written")

    def __init__(self) -> None:
        self.guarded: set[str] = set()
        self.written: set[str] = set()

    def add(self, pending: Pending) -> None:
        self.guarded |= pending.guarded
        self.written |= pending.written

    def clash(self, pending: Pending) -> bool:
        """Whether the order of `pending` and these matters. Two guards on one key don't disturb each other."""
        return not (
            self.written.isdisjoint(pending.written)
            and self.guarded.isdisjoint(pending.written)
            and self.written.isdisjoint(pending.guarded)
        )


class Group:
    """Forms batches of commits that no two of which touch a key that either of them writes.

    All comparisons of a batch are made before any of its writes and its order is not promised, hence that rule. The
    same rule keeps a commit back while an earlier one that it touches waits or is in flight, so that commits with
    a common key take effect in the order of `submit`. Up to `max_in_flight` batches are in flight at once.

    `send` must answer every commit of its batch. No await lies between read and write of this class's state.
    """

    def __init__(
        self, send: Callable[[Sequence[Pending]], Awaitable[None]], max_in_flight: int, patience: float
    ) -> None:
        self._send = send
        self._max_in_flight = max_in_flight
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Pending] = deque()
        self._in_flight: dict[asyncio.Task[None], _Keys] = {}
        self._scheduled = False
        self._closed = False

    def submit(self, pending: Pending) -> None:
        """Send `pending` with what else is submitted before the loop's next turn."""
        if self._closed:
            raise Unavailable("the store is closed")
        self._queue.append(pending)
        self._schedule()

    async def close(self) -> None:
        """Fail what waits, and wait for what is in flight."""
        self._closed = True
        for pending in self._queue:
            pending.fail(Unavailable("the store is closed"))
        self._queue.clear()
        if self._in_flight:
            await asyncio.wait(list(self._in_flight))

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        while self._queue and len(self._in_flight) < self._max_in_flight:
            batch, keys = self._pick()
            if not batch:
                return
            task = self._loop.create_task(self._carry(batch))
            self._in_flight[task] = keys
            task.add_done_callback(self._landed)

    def _pick(self) -> tuple[list[Pending], _Keys]:
        """The first commits that may go together now, and their keys."""
        batch: list[Pending] = []
        taken, seen = _Keys(), _Keys()
        kept: list[Pending] = []
        size = 0
        too_old = self._loop.time() - self._patience
        while self._queue and len(batch) < MAX_BATCH and len(kept) < _MAX_SCAN:
            pending = self._queue.popleft()
            if pending.answer.done():
                continue
            if pending.since < too_old:
                pending.fail(Unavailable("the store did not take the commit in time; it was not sent"))
                continue
            if seen.clash(pending) or any(keys.clash(pending) for keys in self._in_flight.values()):
                kept.append(pending)
            elif batch and size + pending.size > MAX_COMMIT_BYTES:
                self._queue.appendleft(pending)
                break
            else:
                batch.append(pending)
                taken.add(pending)
                size += pending.size
            seen.add(pending)
        self._queue.extendleft(reversed(kept))
        return batch, taken

    async def _carry(self, batch: list[Pending]) -> None:
        try:
            await self._send(batch)
        except Exception as error:  # noqa: BLE001 - a bug in sending must not leave its callers waiting
            for pending in batch:
                pending.fail(error)

    def _landed(self, task: asyncio.Task[Any]) -> None:
        del self._in_flight[task]
        # After the callers that were just answered: their next commits then go along.
        if self._queue:
            self._schedule()

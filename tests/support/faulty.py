"""A clock that a test sets, and a real store between which and its user things go wrong when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence

from conveyor.core.plan import SECOND
from conveyor.engine.clock import anchored_clock
from conveyor.store.port import (
    Changes,
    Exhausted,
    Guard,
    KeyValue,
    Lease,
    Listing,
    Put,
    Reset,
    Store,
    Unavailable,
    Uncertain,
)


class Clock:
    """The server's clock, which a test may set forward."""

    def __init__(self) -> None:
        self._now = anchored_clock()
        self.ahead = 0

    def __call__(self) -> int:
        return self._now() + self.ahead

    def advance(self, seconds: float) -> None:
        """So much time passes at once."""
        self.ahead += int(seconds * SECOND)


class FaultyStore:
    """A real store between which and its user things go wrong when a test says so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        """Whether everything fails with Unavailable."""
        self.full = False
        """Whether commits fail with Exhausted."""
        self.lose: Callable[[Sequence[Put]], str] = lambda puts: ""
        """Says of a commit whether its answer is lost: "before" it takes effect, "after", or "" for not."""
        self.hold: asyncio.Event | None = None
        """Commits wait for it."""
        self.hold_ranges: asyncio.Event | None = None
        """Reads of runs wait for it."""
        self.commits = 0
        self.lists = 0
        self.refused = 0
        """How often it was away or full when somebody came."""

    @property
    def epoch(self) -> str:
        """As the port says, like all here."""
        return self._store.epoch

    def _check(self) -> None:
        if self.away:
            self.refused += 1
            raise Unavailable("the store is away")

    async def get(self, key: str) -> KeyValue | None:
        self._check()
        return await self._store.get(key)

    async def list(self, prefix: str, after: str = "", limit: int = 0, *, keys_only: bool = False) -> Listing:
        self._check()
        self.lists += 1
        return await self._store.list(prefix, after, limit, keys_only=keys_only)

    async def ranges(self, prefixes: Sequence[str]) -> Sequence[Sequence[KeyValue]]:
        if self.hold_ranges is not None:
            await self.hold_ranges.wait()
        self._check()
        return await self._store.ranges(prefixes)

    async def commit(self, guards: Sequence[Guard] = (), puts: Sequence[Put] = (), deletes: Sequence[str] = ()) -> int:
        if self.hold is not None:
            await self.hold.wait()
        self._check()
        if self.full:
            self.refused += 1
            raise Exhausted("the store is full")
        lost = self.lose(puts)
        if lost == "before":
            raise Uncertain("lost")
        revision = await self._store.commit(guards, puts, deletes)
        self.commits += 1
        if lost == "after":
            raise Uncertain("lost")
        return revision

    async def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Changes | Reset, None]:
        self._check()
        async with contextlib.aclosing(self._store.watch(prefix, after_revision)) as items:
            async for item in items:
                self._check()
                yield item

    async def lease(self, ttl: float) -> Lease:
        self._check()
        return await self._store.lease(ttl)

    async def close(self) -> None:
        await self._store.close()


def once(where: str, wanted: Callable[[Sequence[Put]], bool] = lambda puts: True) -> Callable[[Sequence[Put]], str]:
    """For FaultyStore.lose: the answer of the first commit that is wanted is lost."""
    left = [where]

    def lose(puts: Sequence[Put]) -> str:
        return left.pop() if left and wanted(puts) else ""

    return lose


def touches(text: str) -> Callable[[Sequence[Put]], bool]:
    """Commits that write a key with this text in it."""
    return lambda puts: any(text in put.key for put in puts)

"""Optimistic commits: tried again when overtaken, done once per request, settled when their answer is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from conveyor.core import errors
from conveyor.state.cache import Cache
from conveyor.state.requests import Remembered, Requests, Slip
from conveyor.store.port import Conflict, Guard, LeaseLost, Put, Store, StoreError, Uncertain

R = TypeVar("R")

_TRIES = 32
_PROMPT_TRIES = 3
_PAUSE_S = 0.002


class Stale(Exception):
    """What the cache holds is not enough for this decision: decide again on what the store holds."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Draft(Generic[R]):
    """A commit that is ready.

    `done` makes the answer, given the revision (0: nothing was stored); `undo` is called when the commit does not go
    through. `witness` is a key that this commit alone writes with this value (None: with any), so that it tells
    whether the commit went through. `clash` is the error when somebody else has made the key.
    """

    guards: Sequence[Guard]
    puts: Sequence[Put]
    witness: tuple[str, bytes | None]
    done: Callable[[int], Awaitable[R]]
    undo: Callable[[], None] = _nothing
    deletes: Sequence[str] = ()
    clash: tuple[str, errors.DomainError] | None = None


class Rows:
    """Callers that want the same key go one after the other."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def turn(self, key: str) -> AsyncGenerator[None, None]:
        """Waits for the caller's turn, which lasts until the context ends."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]


class Committer:
    """Carries drafts out."""

    def __init__(self, store: Store, cache: Cache, requests: Requests) -> None:
        self._store = store
        self._cache = cache
        self._requests = requests
        self._rows = Rows()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(
        self,
        draft: Callable[[bool, Slip | None], Awaitable[Draft[R]]],
        slip: Slip | None,
        again: Callable[[Remembered], Awaitable[R]],
        *,
        validate_only: bool = False,
    ) -> R:
        """Make a draft and commit it, until it goes through or is refused.

        `draft(fresh, slip)` may decide by what the cache holds unless `fresh`: a refusal that rests on the cache is
        checked against the store. `again` answers a request that had its effect before.
        Raises what the draft raises, errors.RequestIdReused, errors.Contention, errors.OutcomeUnknown, and the
        store's errors.
        """
        async with contextlib.AsyncExitStack() as row:
            return await self._run(draft, slip, again, row, validate_only=validate_only)

    async def _run(
        self,
        draft: Callable[[bool, Slip | None], Awaitable[Draft[R]]],
        slip: Slip | None,
        again: Callable[[Remembered], Awaitable[R]],
        row: contextlib.AsyncExitStack,
        *,
        validate_only: bool,
    ) -> R:
        fresh = validate_only
        contended = ""
        for attempt in range(_TRIES):
            if attempt > _PROMPT_TRIES:
                await asyncio.sleep(random.uniform(0, _PAUSE_S * attempt))
            try:
                ready = await draft(fresh, slip)
            except Stale:
                fresh = True
                continue
            except errors.DomainError:
                if slip is not None and (before := await self._requests.find(slip)) is not None:
                    return await again(before)
                if fresh:
                    raise
                fresh = True
                continue
            if validate_only:
                ready.undo()
                return await ready.done(0)
            try:
                return await self._unhurried(ready)
            except Conflict as conflict:
                if slip is not None and conflict.key == slip.key and conflict.current is not None:
                    return await again(self._requests.read(slip, conflict.current))
                if ready.clash is not None and conflict.key == ready.clash[0]:
                    raise ready.clash[1] from None
                self._cache.drop(conflict.key)
                if conflict.key != contended:
                    # Those of this process that were overtaken go one after the other, so that each gets its turn.
                    contended = conflict.key
                    await row.aclose()
                    await row.enter_async_context(self._rows.turn(contended))
            except LeaseLost:
                if slip is None:
                    raise
                slip = await self._requests.renew(slip)
        raise errors.Contention

    async def _unhurried(self, ready: Draft[R]) -> R:
        """Carry it out to its end, even when the caller is gone by then: a commit without what follows helps nobody."""
        task = asyncio.ensure_future(self._carry_out(ready))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits for it

    async def _carry_out(self, ready: Draft[R]) -> R:
        try:
            revision = await self._store.commit(ready.guards, ready.puts, ready.deletes) if ready.puts else 0
        except Uncertain:
            revision = await self._settle(ready)
        except BaseException:
            ready.undo()
            raise
        return await ready.done(revision)

    async def _settle(self, ready: Draft[R]) -> int:
        """The revision of a commit whose answer was lost. Raises errors.OutcomeUnknown when it is not to be seen."""
        key, value = ready.witness
        try:
            kv = await self._store.get(key)
        except StoreError as error:
            ready.undo()
            raise errors.OutcomeUnknown from error
        # Not there need not mean that it never will be: the commit may still be under way.
        if kv is None or (value is not None and kv.value != value):
            ready.undo()
            raise errors.OutcomeUnknown
        return kv.mod_revision

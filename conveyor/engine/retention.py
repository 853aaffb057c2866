"""Finished runs are deleted after their time, and when there are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from conveyor.core import errors
from conveyor.core.model import TERMINAL_RUN
from conveyor.engine.clock import Now
from conveyor.engine.presence import Presence
from conveyor.state import keys
from conveyor.state.ids import first_id_at
from conveyor.state.runs import Runs
from conveyor.store.port import Conflict, Store, StoreError

log = structlog.get_logger("conveyor.engine")

_PERIOD = 10.0
_PAGE = 500
_DELETED_AT_ONCE = 16


class Retention:
    """Runs in the replica that leads."""

    def __init__(
        self,
        store: Store,
        runs: Runs,
        presence: Presence,
        now: Now,
        delete: Callable[[str, str], Awaitable[None]],
        *,
        age: int,
        count: int,
    ) -> None:
        """`age` in microseconds since the run ended, `count` of the runs of a namespace; 0 means no bound."""
        self._store = store
        self._runs = runs
        self._presence = presence
        self._now = now
        self._delete = delete
        self._age = age
        self._count = count

    async def run(self) -> None:
        """Delete for ever."""
        while True:
            await asyncio.sleep(_PERIOD)
            if self._presence.leading_for < 0:
                continue
            try:
                await self.once()
            except StoreError as error:
                log.debug("retention_interrupted", error=str(error))

    async def once(self) -> int:
        """Delete what is over age or over count; returns how many runs. Raises the store's errors."""
        deleted = 0
        for namespace in await self._namespaces():
            if self._age:
                deleted += await self._prune(namespace, first_id_at(self._now() - self._age))
            if self._count:
                newest, more = await self._runs.page(keys.index_runs(namespace), "", self._count)
                if more:
                    deleted += await self._prune(namespace, newest[-1], whatever_age=True)
        return deleted

    async def _namespaces(self) -> list[str]:
        """All namespaces that have runs; each found by one read of one key."""
        root = keys.ROOT + "index/"
        found: list[str] = []
        after = ""
        while True:
            listing = await self._store.list(root, after, 1, keys_only=True)
            if not listing.items:
                return found
            namespace = listing.items[0].key[len(root) :].partition("/")[0]
            found.append(namespace)
            after = f"{root}{namespace}/\U0010ffff"

    async def _prune(self, namespace: str, after: str, *, whatever_age: bool = False) -> int:
        """Delete finished runs that are older than the run id `after`."""
        deleted = 0
        more = True
        while more:
            ids, more = await self._runs.page(keys.index_runs(namespace), after, _PAGE)
            if not ids:
                break
            after = ids[-1]
            old = [
                head.id
                for found in await self._runs.heads(namespace, ids)
                if found is not None and (head := found[0]).state in TERMINAL_RUN
                if whatever_age or head.end_time <= self._now() - self._age
            ]
            for start in range(0, len(old), _DELETED_AT_ONCE):
                part = old[start : start + _DELETED_AT_ONCE]
                await asyncio.gather(*(self._delete_one(namespace, run) for run in part))
            deleted += len(old)
        return deleted

    async def _delete_one(self, namespace: str, run: str) -> None:
        try:
            await self._delete(namespace, run)
        except (errors.DomainError, Conflict) as error:  # somebody else was at it; one that cannot be read stays
            log.debug("run_not_deleted", run_id=run, error=str(error))

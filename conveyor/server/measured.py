"""A store that measures how long its commits take."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from conveyor.store.port import Changes, Guard, KeyValue, Lease, Listing, Put, Reset, Store, StoreError

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)


class MeasuredStore:
    """Another store, with a histogram of its commits and a count of those that failed."""

    def __init__(self, store: Store, registry: CollectorRegistry) -> None:
        self._store = store
        self._seconds = Histogram("conveyor_commit_seconds", "Time of commits.", buckets=_BUCKETS, registry=registry)
        self._failures = Counter("conveyor_commit_failures", "Commits that failed.", ["reason"], registry=registry)

    @property
    def epoch(self) -> str:
        """As the port says, like all here."""
        return self._store.epoch

    async def get(self, key: str) -> KeyValue | None:
        """Passed on."""
        return await self._store.get(key)

    async def list(self, prefix: str, after: str = "", limit: int = 0, *, keys_only: bool = False) -> Listing:
        """Passed on."""
        return await self._store.list(prefix, after, limit, keys_only=keys_only)

    async def ranges(self, prefixes: Sequence[str]) -> Sequence[Sequence[KeyValue]]:
        """Passed on."""
        return await self._store.ranges(prefixes)

    async def commit(self, guards: Sequence[Guard] = (), puts: Sequence[Put] = (), deletes: Sequence[str] = ()) -> int:
        """Passed on and measured."""
        began = time.perf_counter()
        try:
            revision = await self._store.commit(guards, puts, deletes)
        except StoreError as error:
            self._failures.labels(type(error).__name__.lower()).inc()
            raise
        self._seconds.observe(time.perf_counter() - began)
        return revision

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Changes | Reset, None]:
        """Passed on."""
        return self._store.watch(prefix, after_revision)

    async def lease(self, ttl: float) -> Lease:
        """Passed on."""
        return await self._store.lease(ttl)

    async def close(self) -> None:
        """Passed on."""
        await self._store.close()

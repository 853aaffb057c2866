"""What other replicas write: sessions of their workers, and runs that concern workers of this one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from conveyor.core import errors
from conveyor.engine.loop import Engine, cancellation
from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Changes, Reset, Store, StoreError
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.engine")


class SessionsWatch:
    """Keeps the engine's view of all sessions."""

    def __init__(self, engine: Engine, store: Store, moved: Callable[[storage_pb2.SessionRecord], None]) -> None:
        self._engine = engine
        self._store = store
        self._moved = moved
        self._revision = 0

    async def read(self) -> None:
        """Read all sessions. Raises the store's errors."""
        listing = await self._store.list(keys.SESSIONS)
        self._engine.sessions.clear()
        for kv in listing.items:
            self._put(kv.value)
        self._revision = listing.revision
        self._engine.sessions.complete = True

    async def run(self) -> None:
        """Follow them for ever."""
        while True:
            try:
                async for item in self._store.watch(keys.SESSIONS, self._revision):
                    if isinstance(item, Reset):
                        await self.read()
                        break
                    self._take(item)
            except StoreError as error:
                log.debug("sessions_watch_interrupted", error=str(error))
                await asyncio.sleep(0.5)

    def _take(self, changes: Changes) -> None:
        for change in changes.changes:
            if change.value is not None:
                self._put(change.value)
            else:
                namespace, driver, session = change.key[len(keys.SESSIONS) :].split("/")
                self._engine.sessions.delete(namespace, driver, session)
        self._revision = changes.revision

    def _put(self, value: bytes) -> None:
        record = storage_pb2.SessionRecord.FromString(value)
        self._engine.sessions.put(record)
        self._moved(record)


class RemoteRuns:
    """Looks at what other replicas did to runs: a step that a worker of this one can take, or shall stop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, changes: Changes) -> None:
        """One revision of the store, from the feed."""
        if changes.revision in self._engine.own_revisions:
            return
        for change in changes.changes:
            if change.value is None:
                continue
            namespace, run, step = keys.parse_run_key(change.key)
            if not step:
                self._engine.outdated(namespace, run, changes.revision)
                continue
            record = storage_pb2.StepRecord.FromString(change.value)
            if record.state == run_pb2.STEP_STATE_QUEUED and not record.token:
                self._engine.spawn(self._resume(namespace, run))
            elif record.cancel_sent and record.state == run_pb2.STEP_STATE_RUNNING:
                self._stop(run, record)

    async def _resume(self, namespace: str, run: str) -> None:
        try:
            stored = await self._engine.run(namespace, run)
        except (errors.NotFound, StoreError):
            return  # Gone, or the sweep will look at it.
        if not stored.state.terminal:
            self._engine.resume(stored)

    def _stop(self, run: str, record: storage_pb2.StepRecord) -> None:
        worker = self._engine.pool.session(record.session)
        if worker is not None and worker.outbox is not None:
            worker.outbox.stop(cancellation(run, record.step, record.attempt, "the run was cancelled", 0))

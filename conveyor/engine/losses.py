"""Workers whose server died: the leader declares them lost after their full time to live."""

from __future__ import annotations

import asyncio
import time

import structlog

from conveyor.engine.loop import Engine
from conveyor.engine.presence import Presence
from conveyor.engine.sweep import Sweep
from conveyor.state.sessions import SessionStore
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import StoreError

log = structlog.get_logger("conveyor.engine")


class OrphanedSessions:
    """Watches over the sessions of replicas that are gone."""

    def __init__(self, engine: Engine, store: SessionStore, presence: Presence, sweep: Sweep, replica: str) -> None:
        self._engine = engine
        self._store = store
        self._presence = presence
        self._sweep = sweep
        self._replica = replica
        self._orphaned_since: dict[str, float] = {}
        self._others: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Look every now and then, for ever."""
        while True:
            await asyncio.sleep(min(1.0, self._presence.ttl / 3))
            try:
                await self.once()
            except StoreError as error:
                log.debug("orphans_not_checked", error=str(error))

    async def once(self) -> None:
        """End the sessions whose time has passed. Raises the store's errors."""
        if self._others - self._presence.others:
            self._sweep.request()  # A replica is gone: its runs and their timers need somebody.
        self._others = self._presence.others
        living = self._presence.others | {self._replica}
        now = time.monotonic()
        orphans = {record.id: record for record in self._engine.sessions if record.replica not in living}
        self._orphaned_since = {id_: self._orphaned_since.get(id_, now) for id_ in orphans}
        ended = False
        for id_, record in orphans.items():
            ttl = record.ttl / 1e6
            # Whoever leads only just may have slept until now, with all workers about to come back.
            if now - self._orphaned_since[id_] >= ttl and self._presence.leading_for >= ttl:
                ended = await self._end(record) or ended
        if ended:
            self._sweep.request()

    async def _end(self, record: storage_pb2.SessionRecord) -> bool:
        stored = await self._store.get(record.namespace, record.driver, record.id)
        if stored is None or stored[0].replica != record.replica:
            return False
        stored[0].update_time = self._engine.now()
        if not await self._store.delete(*stored):
            return False
        self._engine.sessions.delete(record.namespace, record.driver, record.id)
        self._engine.unattached.pop(record.id, None)
        log.warning("worker_lost", namespace=record.namespace, driver=record.driver, worker=record.worker)
        return True

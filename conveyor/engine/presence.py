"""This replica's lease: that it lives, and whether it leads."""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog

from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Conflict, Guard, Lease, LeaseLost, Put, Store, StoreError

log = structlog.get_logger("conveyor.engine")


class Presence:
    """Keeps `replicas/{id}` and, when nobody else has it, `leader`, both under one lease.

    Being wrong about leadership is harmless: whatever a leader does is guarded in the store.
    """

    def __init__(self, store: Store, record: storage_pb2.ReplicaRecord, ttl: float) -> None:
        self._store = store
        self._record = record
        self.ttl = ttl
        self._lease: Lease | None = None
        self._present = False
        self._leading_since: float | None = None
        self._renewed = 0.0
        self.others: frozenset[str] = frozenset()
        """Ids of the other replicas that live, as of the last look."""

    @property
    def leading_for(self) -> float:
        """For how many seconds this replica has led without a break; negative when it doesn't lead.

        A process that was stopped or starved for longer than the lease may have lost it without knowing.
        """
        now = time.monotonic()
        if self._leading_since is None or now - self._renewed > self.ttl:
            return -1.0
        return now - self._leading_since

    async def run(self) -> None:
        """Keep the lease for ever."""
        while True:
            try:
                await self.renew()
            except StoreError as error:
                self._leading_since = None
                log.debug("presence_not_renewed", error=str(error))
            await asyncio.sleep(self.ttl / 3)

    async def renew(self) -> None:
        """Renew the lease, show this replica, and lead if nobody does. Raises the store's errors."""
        began = time.monotonic()
        if began - self._renewed > self.ttl:
            self._leading_since = None
        if self._lease is not None:
            try:
                await self._lease.refresh()
            except LeaseLost:
                self._lease, self._present, self._leading_since = None, False, None
        if self._lease is None:
            self._lease = await self._store.lease(self.ttl)
        self._renewed = began
        value = self._record.SerializeToString()
        if not self._present:
            await self._store.commit((), [Put(keys.replica(self._record.id), value, self._lease.id)])
            self._present = True
        await self._lead(value, self._lease.id)
        listing = await self._store.list(keys.REPLICAS, keys_only=True)
        ids = frozenset(kv.key[len(keys.REPLICAS) :] for kv in listing.items)
        self._present = self._record.id in ids
        self.others = ids - {self._record.id}

    async def _lead(self, value: bytes, lease: int) -> None:
        current = await self._store.get(keys.LEADER)
        if current is not None and storage_pb2.ReplicaRecord.FromString(current.value).id == self._record.id:
            self._leading_since = self._leading_since or time.monotonic()
            return
        self._leading_since = None
        if current is None:
            with contextlib.suppress(Conflict):
                await self._store.commit([Guard(keys.LEADER, 0)], [Put(keys.LEADER, value, lease)])
                self._leading_since = time.monotonic()
                log.info("leading", replica=self._record.id)

    async def leave(self) -> None:
        """Give up the lease at once, so that another replica takes over without waiting for its end."""
        self._leading_since = None
        if self._lease is not None:
            with contextlib.suppress(StoreError):
                await self._lease.revoke()

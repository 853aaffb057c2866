"""Request ids: one request, one effect, for 24 hours.

A record of the request is written in the commit of its effect, guarded by "there is none yet". Whoever comes second
finds the guard broken, reads the record, and answers as the first one did.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from google.protobuf.message import Message

from conveyor.core import errors
from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Conflict, Guard, KeyValue, LeaseLost, Put, Store

KEPT_S = 24 * 3600
"""How long a request id is remembered, in seconds."""

_LEASE_SHARED_S = 60


@dataclass(frozen=True, slots=True)
class Slip:
    """What a commit must carry so that its request takes effect once."""

    key: str
    digest: bytes
    lease: int

    @property
    def guard(self) -> Guard:
        """Holds as long as the request had no effect."""
        return Guard(self.key, 0)

    def put(self, target: str = "", generation: int = 0, run: str = "") -> Put:
        """Remembers what to answer: the key and generation of an object, the id of a run."""
        record = storage_pb2.RequestRecord(digest=self.digest, target=target, generation=generation, run=run)
        return Put(self.key, record.SerializeToString(), self.lease)


@dataclass(frozen=True, slots=True)
class Remembered:
    """A request that had its effect, in the commit of revision `revision`."""

    target: str
    generation: int
    run: str
    revision: int


class Requests:
    """Gives out slips and reads what they left."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lease = 0
        self._lease_until = 0.0
        self._granting = asyncio.Lock()

    async def slip(self, namespace: str, method: str, request_id: str, request: Message) -> Slip | None:
        """The slip for a request; None when it has no id. Raises the store's errors."""
        if not request_id:
            return None
        digest = hashlib.sha256(request_id.encode()).hexdigest()
        return Slip(
            keys.request(namespace, method, digest),
            hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
            await self._current_lease(),
        )

    async def renew(self, slip: Slip) -> Slip:
        """The same slip for another try, after a commit that said that its lease is gone."""
        if slip.lease == self._lease:
            self._lease_until = 0.0
        return replace(slip, lease=await self._current_lease())

    async def find(self, slip: Slip) -> Remembered | None:
        """What the request did, if it did. Raises errors.RequestIdReused and the store's errors."""
        kv = await self._store.get(slip.key)
        return None if kv is None else self.read(slip, kv)

    async def note(self, slip: Slip, run: str) -> bool:
        """Write a record in a commit of its own, for what may be done twice; False when there was one already.

        Raises errors.RequestIdReused and the store's errors.
        """
        while True:
            try:
                await self._store.commit([slip.guard], [slip.put(run=run)])
            except LeaseLost:
                slip = await self.renew(slip)
            except Conflict as conflict:
                if conflict.current is not None:
                    self.read(slip, conflict.current)
                    return False
            else:
                return True

    def read(self, slip: Slip, kv: KeyValue) -> Remembered:
        """The record of the request. Raises errors.RequestIdReused when it is one of another request."""
        record = storage_pb2.RequestRecord.FromString(kv.value)
        if record.digest != slip.digest:
            raise errors.RequestIdReused
        return Remembered(record.target, record.generation, record.run, kv.mod_revision)

    async def _current_lease(self) -> int:
        # One lease for all requests of a minute: a lease of its own for each would be the dearest part of a request.
        if self._clock() < self._lease_until:
            return self._lease
        async with self._granting:
            if self._clock() >= self._lease_until:
                began = self._clock()
                self._lease = (await self._store.lease(KEPT_S + _LEASE_SHARED_S)).id
                self._lease_until = began + _LEASE_SHARED_S
        return self._lease

"""Sessions of workers and records of drivers in the store."""

from __future__ import annotations

from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Conflict, Guard, Put, Store

_WORKERS_REMEMBERED = 5


class SessionStore:
    """Written when a worker connects, reconnects, leaves or is lost; never on a heartbeat."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, namespace: str, driver: str, session: str) -> tuple[storage_pb2.SessionRecord, int] | None:
        """The session and its revision."""
        kv = await self._store.get(keys.session(namespace, driver, session))
        return None if kv is None else (storage_pb2.SessionRecord.FromString(kv.value), kv.mod_revision)

    async def put(self, record: storage_pb2.SessionRecord, revision: int) -> int:
        """Write a session if it is still as in `revision` (0: new), and note that its driver was seen.

        Returns the new revision. Raises Conflict when somebody else wrote or deleted it.
        """
        key = keys.session(record.namespace, record.driver, record.id)
        driver = await self._driver(record)
        puts = [Put(key, record.SerializeToString()), driver]
        return await self._store.commit([Guard(key, revision)], puts)

    async def delete(self, record: storage_pb2.SessionRecord, revision: int) -> bool:
        """Delete a session if it is still as in `revision`; whether it was."""
        key = keys.session(record.namespace, record.driver, record.id)
        try:
            await self._store.commit([Guard(key, revision)], [await self._driver(record)], [key])
        except Conflict:
            return False
        return True

    async def _driver(self, record: storage_pb2.SessionRecord) -> Put:
        """The driver's record, seen now. Whoever writes last is right: nothing depends on it."""
        known = await self.driver(record.namespace, record.driver)
        driver = storage_pb2.DriverRecord(
            name=record.driver,
            create_time=known.create_time if known is not None else record.connect_time,
            last_seen_time=record.update_time,
            last_worker=record.worker,
        )
        driver.last_workers.add(name=record.worker, time=record.update_time)
        others = [seen for seen in known.last_workers if seen.name != record.worker] if known is not None else []
        driver.last_workers.extend(others[: _WORKERS_REMEMBERED - 1])
        return Put(keys.driver(record.namespace, record.driver), driver.SerializeToString())

    async def driver(self, namespace: str, driver: str) -> storage_pb2.DriverRecord | None:
        """What is stored of a driver."""
        kv = await self._store.get(keys.driver(namespace, driver))
        return None if kv is None else storage_pb2.DriverRecord.FromString(kv.value)

    async def all(self) -> list[tuple[storage_pb2.SessionRecord, int]]:
        """All sessions with their revisions."""
        listing = await self._store.list(keys.SESSIONS)
        return [(storage_pb2.SessionRecord.FromString(kv.value), kv.mod_revision) for kv in listing.items]

"""The sessions of all replicas, as the store's watch shows them."""

from __future__ import annotations

from collections.abc import Iterator

from conveyor.storage.v1 import storage_pb2


class SessionsView:
    """Every session in the store. `complete` once all that are stored were read; `replica` is this process."""

    def __init__(self, replica: str = "") -> None:
        self._replica = replica
        self.complete = False
        self._by_driver: dict[tuple[str, str], dict[str, storage_pb2.SessionRecord]] = {}

    def put(self, record: storage_pb2.SessionRecord) -> None:
        """A session was written."""
        self._by_driver.setdefault((record.namespace, record.driver), {})[record.id] = record

    def delete(self, namespace: str, driver: str, session: str) -> None:
        """A session is gone."""
        sessions = self._by_driver.get((namespace, driver))
        if sessions is not None:
            sessions.pop(session, None)
            if not sessions:
                del self._by_driver[(namespace, driver)]

    def clear(self) -> None:
        """Forget everything, before it is read again."""
        self._by_driver.clear()

    def __iter__(self) -> Iterator[storage_pb2.SessionRecord]:
        for sessions in self._by_driver.values():
            yield from sessions.values()

    def of(self, namespace: str, driver: str) -> list[storage_pb2.SessionRecord]:
        """The sessions of a driver."""
        return list(self._by_driver.get((namespace, driver), {}).values())

    def has(self, namespace: str, driver: str, session_id: str) -> bool:
        """Whether a session is stored."""
        return session_id in self._by_driver.get((namespace, driver), {})

    def takers(self, namespace: str, driver: str, definition: str) -> bool:
        """Whether a worker of another replica takes steps for resources of the definition."""
        return any(
            not record.definitions or definition in record.definitions for record in self.elsewhere(namespace, driver)
        )

    def elsewhere(self, namespace: str, driver: str) -> list[storage_pb2.SessionRecord]:
        """The driver's sessions at other replicas that have a stream."""
        found = self._by_driver.get((namespace, driver), {}).values()
        return [record for record in found if record.replica != self._replica and not record.detached]

    def listeners(self, namespace: str, definition: str) -> set[str]:
        """The drivers of other replicas that want broadcasts of the definition."""
        return {
            record.driver
            for (space, _), sessions in self._by_driver.items()
            if space == namespace
            for record in sessions.values()
            if record.replica != self._replica and not record.detached and definition in record.definitions
        }

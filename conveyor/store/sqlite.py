"""The embedded store: one process, one SQLite file, nothing to operate."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import sys
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from conveyor.store import sqlite_backup, sqlite_file
from conveyor.store.checks import commit_size, key_size, prefix_end
from conveyor.store.history import History
from conveyor.store.port import Changes, Guard, KeyValue, Listing, Put, Reset, Unavailable
from conveyor.store.sqlite_writer import Commit, Grant, Refresh, Request, Revoke, Stop, Writer

Result = TypeVar("Result")

_READERS = 2
_SWITCH_INTERVAL_S = 0.0005


class SqliteLease:
    """A lease of the embedded store. See `Lease` of the port."""

    def __init__(self, store: SqliteStore, lease: int) -> None:
        self._store = store
        self._id = lease

    @property
    def id(self) -> int:
        """Positive number to put into `Put.lease`."""
        return self._id

    async def refresh(self) -> None:
        """Give the lease its full time again. Raises LeaseLost, Unavailable."""
        await self._store._ask(lambda answer: Refresh(answer, self._id))

    async def revoke(self) -> None:
        """End the lease now; its keys are deleted when this returns."""
        await self._store._ask(lambda answer: Revoke(answer, self._id))


class SqliteStore:
    """See `Store` of the port. A data directory has one open store at a time, in this or any other process."""

    def __init__(
        self,
        path: Path,
        lock: int,
        connection: sqlite3.Connection,
        leases: dict[int, float],
        loop: asyncio.AbstractEventLoop,
        history: History,
    ) -> None:
        """Use `open`."""
        self._path = path
        self._lock = lock
        self._connection = connection
        self._loop = loop
        self._history = history
        self._epoch = uuid.uuid4().hex
        self._closing: asyncio.Task[None] | None = None
        self._local = threading.local()
        self._read_connections: list[sqlite3.Connection] = []
        self._readers = ThreadPoolExecutor(_READERS, "conveyor-store-read", self._start_reader)
        writer = Writer(connection, leases, loop, history)
        self._requests = writer.requests
        self._thread = threading.Thread(target=writer.run, name="conveyor-store-write", daemon=True)
        self._thread.start()

    @classmethod
    async def open(
        cls,
        directory: Path | str,
        *,
        max_bytes: int = 0,
        history_changes: int = 20_000,
        history_bytes: int = 16 << 20,
    ) -> SqliteStore:
        """Open or create the store in `directory`, which is created too.

        `max_bytes` bounds the file (0: the disk does); beyond it commits raise Exhausted. `history_changes` and
        `history_bytes` bound what is kept in memory for watchers. Raises Unavailable when another process has it
        open, or when the file is not a store.
        """
        # A busy event loop would otherwise keep the writer from the GIL for 5 ms at each statement.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        path = Path(directory) / sqlite_file.FILE_NAME

        def prepare() -> tuple[int, sqlite3.Connection, dict[int, float], int]:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = sqlite_file.lock(path.parent)
            except OSError as error:
                raise Unavailable(f"the data directory {path.parent} cannot be used: {error}") from error
            try:
                connection = sqlite_file.connect(path, max_bytes)
                sqlite_file.prepare(connection, path)
                return lock, connection, sqlite_file.leases(connection), sqlite_file.revision(connection)
            except BaseException as error:
                os.close(lock)
                if isinstance(error, sqlite3.Error):
                    raise Unavailable(f"{path} cannot be opened: {error}") from error
                raise

        lock, connection, leases, revision = await asyncio.to_thread(prepare)
        history = History(revision, history_changes, history_bytes)
        return cls(path, lock, connection, leases, asyncio.get_running_loop(), history)

    @property
    def epoch(self) -> str:
        """New at each open: the history that watches follow does not outlive the process."""
        return self._epoch

    async def get(self, key: str) -> KeyValue | None:
        """See `Store.get`."""
        key_size(key)
        return await self._read(lambda connection: sqlite_file.get(connection, key))

    async def list(self, prefix: str, after: str = "", limit: int = 0, *, keys_only: bool = False) -> Listing:
        """See `Store.list`."""
        end = prefix_end(prefix)
        return await self._read(
            lambda connection: sqlite_file.list_keys(connection, after, prefix, end, limit, keys_only)
        )

    async def ranges(self, prefixes: Sequence[str]) -> Sequence[Sequence[KeyValue]]:
        """See `Store.ranges`."""
        bounds = [(prefix, prefix_end(prefix)) for prefix in prefixes]
        return await self._read(lambda connection: sqlite_file.ranges(connection, bounds))

    async def commit(self, guards: Sequence[Guard] = (), puts: Sequence[Put] = (), deletes: Sequence[str] = ()) -> int:
        """See `Store.commit`."""
        commit_size(guards, puts, deletes)
        if self._closing is not None:
            raise Unavailable("the store is closed")
        answer: asyncio.Future[int] = self._loop.create_future()
        self._requests.put(Commit(answer, guards, puts, deletes))
        return await answer

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Changes | Reset, None]:
        """See `Store.watch`."""
        return self._history.watch(prefix, after_revision)

    async def lease(self, ttl: float) -> SqliteLease:
        """See `Store.lease`. Raises Exhausted too: a lease is stored."""
        if ttl <= 0:
            raise ValueError(f"a lease needs a positive time to live, not {ttl}")
        lease = secrets.randbits(62) + 1
        await self._ask(lambda answer: Grant(answer, lease, ttl))
        return SqliteLease(self, lease)

    async def backup(self, path: Path | str) -> None:
        """Write a consistent copy to the file `path` while the store is in use; replaces what is there.

        `sqlite_backup.restore` makes a store of it. Raises Unavailable when it cannot be written.
        """
        target = Path(path)

        def copy(connection: sqlite3.Connection) -> None:
            try:
                sqlite_backup.copy(connection, target)
            except (OSError, sqlite3.Error, sqlite_backup.BackupError) as error:
                raise Unavailable(f"the backup {target} cannot be written: {error}") from error

        await self._read(copy)

    async def close(self) -> None:
        """See `Store.close`. What was committed before is written first."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        answer: asyncio.Future[None] = self._loop.create_future()
        self._requests.put(Stop(answer))
        await answer
        self._history.close()
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self._thread.join()
        self._readers.shutdown()
        for connection in self._read_connections:
            connection.close()
        # The last connection to close writes the log back into the file.
        self._connection.close()
        os.close(self._lock)

    async def _ask(self, request: Callable[[asyncio.Future[Any]], Request]) -> None:
        if self._closing is not None:
            raise Unavailable("the store is closed")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._requests.put(request(answer))
        await answer

    async def _read(self, query: Callable[[sqlite3.Connection], Result]) -> Result:
        if self._closing is not None:
            raise Unavailable("the store is closed")
        try:
            return await self._loop.run_in_executor(self._readers, lambda: query(self._local.connection))
        except sqlite3.Error as error:
            raise Unavailable(f"the store cannot be read: {error}") from error

    def _start_reader(self) -> None:
        self._local.connection = sqlite_file.connect(self._path)
        self._read_connections.append(self._local.connection)

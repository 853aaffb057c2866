"""The SQLite file: its schema, its exclusive owner, and the few statements run on it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from conveyor.store.port import KeyValue, Listing, Unavailable

FILE_NAME = "conveyor.db"
LOCK_NAME = "lock"
_APPLICATION_ID = 0x434E5659  # "CNVY": tells a foreign SQLite file from ours
_SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 5.0
_LONGEST_RUN = 256
_CACHE_KIB = 8_192

# A row's lease is 0 for none; the partial index costs nothing for those.
_SCHEMA = f"""
CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB NOT NULL, mod INTEGER NOT NULL, lease INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX kv_lease ON kv (lease) WHERE lease != 0;
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl REAL NOT NULL);
CREATE TABLE head (revision INTEGER NOT NULL);
INSERT INTO head VALUES (1);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_SCHEMA_VERSION};
"""

Item = TypeVar("Item")
Row = tuple[str, bytes, int, int]
"""Key, value, mod-revision, lease."""


def lock(directory: Path) -> int:
    """Own `directory` until the returned descriptor is closed; raises Unavailable when another store owns it.

    The kernel drops the lock with the process, so nothing is left to clean up after a crash.
    """
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise Unavailable(f"{directory} is in use by another Conveyor server (process {owner})") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def connect(path: Path, max_bytes: int = 0) -> sqlite3.Connection:
    """A connection with every commit durable when it returns; `max_bytes` bounds the file (0: the disk does)."""
    # Statements come in a few fixed shapes; the cache holds all of them.
    connection = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    if max_bytes:
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_size)}")
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Create the schema in an empty file; raises Unavailable for a file that is not ours or from a newer version."""
    if not check_format(connection, path):
        connection.executescript(f"BEGIN EXCLUSIVE;{_SCHEMA}COMMIT;")


def check_format(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file holds a store: False when it is empty. Raises Unavailable when it is not ours, or newer."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        return False
    if application != _APPLICATION_ID:
        raise Unavailable(f"{path} is not a Conveyor store")
    if version != _SCHEMA_VERSION:
        raise Unavailable(f"{path} has format {version}; this server reads format {_SCHEMA_VERSION}")
    return True


def revision(connection: sqlite3.Connection) -> int:
    """The revision of the last change."""
    (value,) = connection.execute("SELECT revision FROM head").fetchone()
    return int(value)


def leases(connection: sqlite3.Connection) -> dict[int, float]:
    """The times to live of the stored leases, in seconds."""
    return dict(connection.execute("SELECT id, ttl FROM lease"))


def get(connection: sqlite3.Connection, key: str) -> KeyValue | None:
    """The stored row of `key`."""
    row = connection.execute("SELECT key, value, mod FROM kv WHERE key = ?", (key,)).fetchone()
    return None if row is None else KeyValue(*row)


def list_keys(connection: sqlite3.Connection, after: str, start: str, end: str, limit: int, keys_only: bool) -> Listing:
    """One page of the range from `start` up to `end` ("": no end), beyond the key `after`."""
    value = "x''" if keys_only else "value"
    # One lower bound: of two, SQLite would take the first for its search and read all that lies between them.
    lower, bound = ("key > ?", after) if after >= start else ("key >= ?", start)
    query = f"SELECT key, {value}, mod FROM kv WHERE {lower} {'AND key < ?' if end else ''} ORDER BY key"
    arguments: list[str | int] = [bound]
    if end:
        arguments.append(end)
    if limit:
        query += " LIMIT ?"
        arguments.append(limit + 1)
    connection.execute("BEGIN")
    try:
        now = revision(connection)
        rows = connection.execute(query, arguments).fetchall()
    finally:
        connection.execute("COMMIT")
    more = bool(limit) and len(rows) > limit
    return Listing(tuple(KeyValue(*row) for row in (rows[:limit] if more else rows)), more, now)


def ranges(connection: sqlite3.Connection, bounds: Sequence[tuple[str, str]]) -> list[list[KeyValue]]:
    """All rows from each first key up to the second ("": no end), at one revision."""
    found: list[list[KeyValue]] = []
    connection.execute("BEGIN")
    try:
        for start, end in bounds:
            where, arguments = ("key >= ? AND key < ?", (start, end)) if end else ("key >= ?", (start,))
            rows = connection.execute(f"SELECT key, value, mod FROM kv WHERE {where} ORDER BY key", arguments)
            found.append([KeyValue(*row) for row in rows])
        return found
    finally:
        connection.execute("COMMIT")


def write(connection: sqlite3.Connection, rows: Sequence[Row], deleted: Sequence[str], new_revision: int) -> None:
    """Write rows and deletions in one transaction; on any sqlite3.Error nothing of it is visible."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for some in _runs(rows):
            marks = ",".join(["(?,?,?,?)"] * len(some))
            connection.execute(f"INSERT OR REPLACE INTO kv VALUES {marks}", list(chain.from_iterable(some)))
        for keys in _runs(deleted):
            connection.execute(f"DELETE FROM kv WHERE key IN ({_marks(keys)})", keys)
        connection.execute("UPDATE head SET revision = ?", (new_revision,))
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def revisions(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, int]:
    """The mod-revisions of those of `keys` that exist."""
    found: dict[str, int] = {}
    for run in _runs(keys):
        found.update(connection.execute(f"SELECT key, mod FROM kv WHERE key IN ({_marks(run)})", run))
    return found


def values(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, bytes]:
    """The values of those of `keys` that exist."""
    found: dict[str, bytes] = {}
    for run in _runs(keys):
        found.update(connection.execute(f"SELECT key, value FROM kv WHERE key IN ({_marks(run)})", run))
    return found


def _marks(run: Sequence[object]) -> str:
    return ",".join("?" * len(run))


def _runs(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """`items` cut into runs whose lengths are powers of two.

    One statement for a run, not one for each row: sqlite3 gives up the GIL at every statement, and under a busy event
    loop it waits a whole switch interval to get it back. Few different lengths keep the statements cached.
    """
    start = 0
    while start < len(items):
        length = min(_LONGEST_RUN, 1 << ((len(items) - start).bit_length() - 1))
        yield items[start : start + length]
        start += length

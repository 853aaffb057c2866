"""The one thread that writes: it takes what has gathered, judges each commit, and syncs all of it at once."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from conveyor.store import sqlite_file
from conveyor.store.failpoints import failpoint
from conveyor.store.history import History
from conveyor.store.port import (
    Change,
    Changes,
    Conflict,
    Exhausted,
    Guard,
    KeyValue,
    LeaseLost,
    Put,
    StoreError,
    Unavailable,
    Uncertain,
)

_log = logging.getLogger("conveyor.store.sqlite")

_MAX_BATCH = 512
_LEASE_CHUNK = 512
"""Keys of an ended lease deleted in one transaction, so that commits never wait for all of them."""
_RETRY_S = 1.0


@dataclass(slots=True)
class Commit:
    """Guards, puts and deletes; answered with the revision."""

    answer: asyncio.Future[Any]
    guards: Sequence[Guard]
    puts: Sequence[Put]
    deletes: Sequence[str]


@dataclass(slots=True)
class Grant:
    """A new lease; answered with None once it is durable."""

    answer: asyncio.Future[Any]
    lease: int
    ttl: float


@dataclass(slots=True)
class Refresh:
    """A lease gets its full time again."""

    answer: asyncio.Future[Any]
    lease: int


@dataclass(slots=True)
class Revoke:
    """A lease ends; answered when its keys are deleted."""

    answer: asyncio.Future[Any]
    lease: int


@dataclass(slots=True)
class Stop:
    """The last request: the thread ends after it."""

    answer: asyncio.Future[Any]


Request = Commit | Grant | Refresh | Revoke | Stop


@dataclass(slots=True)
class _Lease:
    ttl: float
    deadline: float
    """On the monotonic clock."""


@dataclass(slots=True)
class _Ending:
    lease: int
    answers: list[asyncio.Future[Any]] = field(default_factory=list)


class _Revisions:
    """Mod-revisions of the keys used last, 0 for keys known to be absent: most guards need no query.

    Two generations instead of an exact LRU: no bookkeeping at a hit.
    """

    def __init__(self, generation: int = 16_384) -> None:
        self._generation = generation
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def get(self, key: str) -> int | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self._young[key] = found
        return found

    def update(self, found: dict[str, int]) -> None:
        if len(self._young) > self._generation:
            self._old, self._young = self._young, {}
        self._young.update(found)

    def clear(self) -> None:
        self._young, self._old = {}, {}


class _Batch:
    """The effect of the commits judged so far, not yet written. The last word on each key wins."""

    __slots__ = ("answers", "changes", "mods", "revision", "rows")

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.rows: dict[str, sqlite_file.Row | None] = {}
        self.mods: dict[str, int] = {}
        self.changes: list[tuple[Changes, int]] = []
        self.answers: list[tuple[asyncio.Future[Any], int | StoreError]] = []


class Writer:
    """Owns the writing connection and the leases. `run` is the body of the thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        leases: dict[int, float],
        loop: asyncio.AbstractEventLoop,
        history: History,
    ) -> None:
        """`leases` are the stored ones with their times to live; each begins anew."""
        self.requests: SimpleQueue[Request] = SimpleQueue()
        self._connection = connection
        self._loop = loop
        self._history = history
        self._revision = history.revision
        self._mods = _Revisions()
        now = time.monotonic()
        self._leases = {lease: _Lease(ttl, now + ttl) for lease, ttl in leases.items()}
        self._ending: deque[_Ending] = deque()
        self._retry_at = 0.0

    def run(self) -> None:
        """Serve requests until Stop; whatever comes after it is refused."""
        stopped = False
        while not stopped:
            batch = self._take()
            self._end_expired()
            commits: list[Commit] = []
            for request in batch:
                if isinstance(request, Commit):
                    commits.append(request)
                    continue
                self._commit_all(commits)
                commits = []
                if isinstance(request, Stop):
                    stopped = True
                    self._answer([(request.answer, None)])
                else:
                    self._control(request)
            self._commit_all(commits)
            if self._ending and not stopped and time.monotonic() >= self._retry_at:
                self._delete_some(self._ending[0])
        for ending in self._ending:
            self._answer([(answer, Unavailable("the store is closed")) for answer in ending.answers])

    def _take(self) -> list[Request]:
        """Everything that has gathered, waiting for the first of it no longer than the next lease allows."""
        take = self.requests.get_nowait
        batch: list[Request] = []
        try:
            batch.append(self.requests.get(timeout=self._patience()))
            while len(batch) < _MAX_BATCH:
                batch.append(take())
        except Empty:
            pass
        return batch

    def _patience(self) -> float | None:
        now = time.monotonic()
        if self._ending:
            return max(0.0, self._retry_at - now)
        if not self._leases:
            return None
        return max(0.0, min(lease.deadline for lease in self._leases.values()) - now)

    # Commits

    def _commit_all(self, commits: Sequence[Commit]) -> None:
        if not commits:
            return
        batch = _Batch(self._revision)
        try:
            priors = self._look_up(commits)
            for commit in commits:
                batch.answers.append((commit.answer, self._judge(commit, batch, priors)))
            self._write(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, every caller gets an answer and the thread lives on
            # Nothing of this batch stands, so neither do the conflicts found with it.
            self._fail([commit.answer for commit in commits], error)
        else:
            self._answer(batch.answers, batch.changes)

    def _look_up(self, commits: Sequence[Commit]) -> dict[str, bytes]:
        """Make the revisions of all guarded and deleted keys known; returns the values of the deleted ones."""
        unknown: dict[str, int] = {}
        deleted: dict[str, None] = {}
        for commit in commits:
            for guard in commit.guards:
                if self._mods.get(guard.key) is None:
                    unknown[guard.key] = 0
            for key in commit.deletes:
                deleted[key] = None
                if self._mods.get(key) is None:
                    unknown[key] = 0
        if unknown:
            unknown.update(sqlite_file.revisions(self._connection, list(unknown)))
            self._mods.update(unknown)
        return sqlite_file.values(self._connection, list(deleted)) if deleted else {}

    def _judge(self, commit: Commit, batch: _Batch, priors: dict[str, bytes]) -> int | StoreError:
        """Add the commit to the batch and return its revision, or say why it cannot be."""
        mods = batch.mods
        for guard in commit.guards:
            mod = mods.get(guard.key)
            if mod is None:
                mod = self._mods.get(guard.key)
            if mod != guard.mod_revision:
                return Conflict(guard.key, self._current(guard.key, batch))
        for put in commit.puts:
            if put.lease and put.lease not in self._leases:
                return LeaseLost(f"lease {put.lease} of {put.key} is gone")
        revision = batch.revision + 1
        changes: list[Change] = []
        size = 0
        for put in commit.puts:
            batch.rows[put.key] = put.key, put.value, revision, put.lease
            mods[put.key] = revision
            changes.append(Change(put.key, put.value, None, revision))
            size += len(put.key) + len(put.value)
        for key in commit.deletes:
            row = batch.rows.get(key)
            prior = row[1] if row else None if key in batch.rows else priors.get(key)
            if prior is not None:
                batch.rows[key] = None
                mods[key] = 0
                changes.append(Change(key, None, prior, revision))
                size += len(key) + len(prior)
        if not changes:
            return batch.revision
        batch.revision = revision
        batch.changes.append((Changes(revision, tuple(changes)), size))
        return revision

    def _current(self, key: str, batch: _Batch) -> KeyValue | None:
        if key in batch.rows:
            row = batch.rows[key]
            return KeyValue(*row[:3]) if row else None
        return sqlite_file.get(self._connection, key)

    def _write(self, batch: _Batch) -> None:
        if not batch.changes:
            return
        rows = [row for row in batch.rows.values() if row]
        deleted = [key for key, row in batch.rows.items() if not row]
        failpoint("store.before_commit")
        sqlite_file.write(self._connection, rows, deleted, batch.revision)
        failpoint("store.after_commit")
        self._revision = batch.revision
        self._mods.update(batch.mods)

    def _fail(self, answers: Sequence[asyncio.Future[Any]], error: Exception) -> None:
        """Answer for a failed transaction, and forget what was remembered of the file."""
        self._mods.clear()
        code = error.sqlite_errorcode if isinstance(error, sqlite3.Error) else None
        kind: type[StoreError] = Uncertain
        if code == sqlite3.SQLITE_FULL:
            kind = Exhausted
        elif code == sqlite3.SQLITE_BUSY:
            kind = Unavailable
        else:
            # A failed sync may still have reached the disk: only a reopen would tell.
            _log.error("the SQLite store could not write", exc_info=error)
        # An exception each: they are raised, and so get tracebacks, in different tasks.
        self._answer([(answer, kind(f"the store could not write: {error}")) for answer in answers])

    # Leases

    def _control(self, request: Grant | Refresh | Revoke) -> None:
        answer: StoreError | None = None
        lease = self._leases.get(request.lease)
        if isinstance(request, Grant):
            try:
                self._connection.execute("INSERT INTO lease VALUES (?, ?)", (request.lease, request.ttl))
                self._leases[request.lease] = _Lease(request.ttl, time.monotonic() + request.ttl)
            except sqlite3.Error as error:
                self._fail([request.answer], error)
                return
        elif isinstance(request, Refresh):
            if lease is None:
                answer = LeaseLost(f"lease {request.lease} is gone")
            else:
                lease.deadline = time.monotonic() + lease.ttl
        elif lease is not None:
            self._end(request.lease).answers.append(request.answer)
            return
        else:
            for ending in self._ending:
                if ending.lease == request.lease:
                    ending.answers.append(request.answer)
                    return
        self._answer([(request.answer, answer)])

    def _end_expired(self) -> None:
        now = time.monotonic()
        for lease in [lease for lease, state in self._leases.items() if state.deadline <= now]:
            self._end(lease)

    def _end(self, lease: int) -> _Ending:
        del self._leases[lease]
        ending = _Ending(lease)
        self._ending.append(ending)
        return ending

    def _delete_some(self, ending: _Ending) -> None:
        """Delete the next keys of an ended lease, and the lease itself after its last key.

        A lease that a crash finds half ended gets its full time at the next open and then ends again.
        """
        batch = _Batch(self._revision)
        try:
            found = self._connection.execute(
                "SELECT key, value FROM kv WHERE lease = ? LIMIT ?", (ending.lease, _LEASE_CHUNK)
            ).fetchall()
            if found:
                batch.revision += 1
                changes = tuple(Change(key, None, value, batch.revision) for key, value in found)
                batch.changes.append(
                    (Changes(batch.revision, changes), sum(len(key) + len(value) for key, value in found))
                )
                batch.rows = dict.fromkeys((key for key, _ in found), None)
                batch.mods = dict.fromkeys(batch.rows, 0)
                self._write(batch)
            else:
                self._connection.execute("DELETE FROM lease WHERE id = ?", (ending.lease,))
                self._ending.popleft()
        except Exception as error:  # noqa: BLE001 - the lease stays ended and its keys are tried again
            self._retry_at = time.monotonic() + _RETRY_S
            self._fail(ending.answers, error)
            ending.answers.clear()
            return
        self._answer([(answer, None) for answer in ending.answers] if not found else [], batch.changes)

    # Answers

    def _answer(
        self,
        answers: Sequence[tuple[asyncio.Future[Any], int | StoreError | None]],
        changes: Sequence[tuple[Changes, int]] = (),
    ) -> None:
        """Hand everything of one transaction to the event loop in one call: each call wakes it."""
        if not answers and not changes:
            return
        try:
            self._loop.call_soon_threadsafe(self._deliver, answers, changes)
        except RuntimeError:
            _log.warning("the event loop closed before the store: answers are lost")

    def _deliver(
        self,
        answers: Sequence[tuple[asyncio.Future[Any], int | StoreError | None]],
        changes: Sequence[tuple[Changes, int]],
    ) -> None:
        for change, size in changes:
            self._history.append(change, size)
        if changes:
            self._history.wake()
        for future, answer in answers:
            if future.done():
                continue
            if isinstance(answer, StoreError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

"""What other replicas write: sessions of their workers, and runs that concern workers of this one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import structlog
from google.protobuf.message import DecodeError

from conveyor.core import errors
from conveyor.core.deadlines import TIMEOUT_GRACE, stop_order
from conveyor.core.model import TERMINAL_RUN
from conveyor.engine.loop import Engine, cancellation
from conveyor.engine.repair import waits
from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Change, Changes, Reset, Store, StoreError
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.engine")

Moved = Callable[[storage_pb2.SessionRecord, int], None]
"""Takes a session that was written, and the revision at which it was."""

Changed = Callable[[str, str], None]
"""Takes namespace and driver of a session that came, changed or went."""


class SessionsWatch:
    """Keeps the engine's view of all sessions."""

    def __init__(self, engine: Engine, store: Store, moved: Moved, changed: Changed) -> None:
        self._engine = engine
        self._changed = changed
        self._store = store
        self._moved = moved
        self._revision = 0

    async def read(self) -> None:
        """Read all sessions. Raises the store's errors."""
        listing = await self._store.list(keys.SESSIONS)
        self._engine.sessions.clear()
        for kv in listing.items:
            self._put(kv.key, kv.value, kv.mod_revision)
        self._revision = listing.revision
        self._engine.sessions.complete = True

    async def run(self) -> None:
        """Follow them for ever."""
        while True:
            try:
                async with aclosing(self._store.watch(keys.SESSIONS, self._revision)) as items:
                    async for item in items:
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
                self._put(change.key, change.value, change.mod_revision)
            else:
                namespace, driver, session = change.key[len(keys.SESSIONS) :].split("/", 2)
                self._engine.sessions.delete(namespace, driver, session)
                self._changed(namespace, driver)
        self._revision = changes.revision

    def _put(self, key: str, value: bytes, revision: int) -> None:
        try:
            record = storage_pb2.SessionRecord.FromString(value)
        except DecodeError as error:
            log.error("record_not_readable", key=key, error=str(error))
            return
        self._engine.sessions.put(record)
        self._moved(record, revision)
        self._changed(record.namespace, record.driver)


class RemoteRuns:
    """Looks at what other replicas did to runs: a step that a worker of this one can take, or shall stop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, changes: Changes) -> None:
        """One revision of the store, from the feed. A record that cannot be read is the sweep's."""
        if changes.revision in self._engine.own_revisions:
            return
        queued: set[tuple[str, str]] = set()
        stopped: set[tuple[str, str]] = set()
        for change in changes.changes:
            try:
                self._look(change, queued, stopped)
            except (DecodeError, ValueError) as error:
                log.debug("change_not_readable", key=change.key, error=str(error))
        for key in queued:
            self._engine.spawn(self._resume(*key, changes.revision))
        for key in stopped:
            self._engine.spawn(self._stop(*key, changes.revision))

    def _look(self, change: Change, queued: set[tuple[str, str]], stopped: set[tuple[str, str]]) -> None:
        namespace, run, step = keys.parse_run_key(change.key)
        if not step:
            self._head(namespace, run, change)
        elif change.value is not None:
            record = storage_pb2.StepRecord.FromString(change.value)
            if record.lock.key and not record.lock.held:
                # It waits for its lock, or has given it up.
                self._engine.locks.elsewhere(namespace, record.lock.key)
            if waits(record):
                queued.add((namespace, run))
            elif (
                record.cancel_sent
                and record.state == run_pb2.STEP_STATE_RUNNING
                and self._engine.pool.session(record.session) is not None
            ):
                stopped.add((namespace, run))
            self._relieve(run, record)

    def _head(self, namespace: str, run: str, change: Change) -> None:
        engine = self._engine
        engine.outdated(namespace, run, change.mod_revision)
        head = storage_pb2.RunHead.FromString(change.value) if change.value is not None else None
        if head is None or head.state in TERMINAL_RUN:
            engine.timers.forget((namespace, run))
        if head is not None and head.lock.key and not head.lock.held:
            engine.locks.elsewhere(namespace, head.lock.key)
        # The watch may be behind: what this process has put into a row since stays there.
        for index in engine.pool.waited_before(run, change.mod_revision):
            if head is None or head.step_states[index] != run_pb2.STEP_STATE_QUEUED:
                engine.leave_row(run, index)

    async def _resume(self, namespace: str, run: str, revision: int) -> None:
        try:
            stored = await self._engine.run(namespace, run)
            if stored.revision < revision:  # in use, so that it could not be forgotten
                stored = await self._engine.runs.load(namespace, run)
        except (errors.DomainError, StoreError):
            return  # Gone, or the sweep will look at it.
        if not stored.state.terminal:
            self._engine.resume(stored)

    async def _stop(self, namespace: str, run: str, revision: int) -> None:
        """Have workers of this replica stop what another one cancelled."""
        engine = self._engine
        try:
            stored = await engine.run(namespace, run)
        except (errors.DomainError, StoreError):
            return  # Gone, or the sweep will look at it.
        if revision in engine.own_revisions:
            return  # The watch was faster than the answer to our own commit.
        for index, record in enumerate(stored.state.steps):
            if record is None or not record.cancel_sent or record.state != run_pb2.STEP_STATE_RUNNING:
                continue
            worker = engine.pool.session(record.session)
            if worker is not None:
                grace, message = stop_order(stored.state, index, engine.now())
                engine.tell_to_stop(worker, cancellation(run, record.step, record.attempt, message, grace))

    def _relieve(self, run: str, record: storage_pb2.StepRecord) -> None:
        """Attempts of workers here that have ended: answered elsewhere, or over, which their workers don't know."""
        engine = self._engine
        for attempt in record.attempts:
            worker = engine.pool.holder(attempt.token) if attempt.end_time else None
            if worker is None:
                continue
            if attempt.result_digest:
                engine.relieve(attempt.token)
            else:
                told = cancellation(run, record.step, attempt.number, attempt.message, TIMEOUT_GRACE)
                engine.tell_to_stop(worker, told)
                engine.relieve_later(attempt.token, TIMEOUT_GRACE)

"""Sessions: workers come, come back, leave, and are lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from conveyor.core import errors
from conveyor.core.model import WorkerLost
from conveyor.engine.loop import Engine
from conveyor.engine.workers import Held, Worker
from conveyor.gateway.outbox import Outbox
from conveyor.state.sessions import SessionStore
from conveyor.storage.v1 import storage_pb2
from conveyor.store.failpoints import failpoint
from conveyor.store.port import Conflict, StoreError
from conveyor.v1 import run_pb2, worker_pb2

log = structlog.get_logger("conveyor.gateway")


@dataclass(slots=True)
class Session:
    """What this process knows of a session beside its worker."""

    worker: Worker
    record: storage_pb2.SessionRecord
    revision: int
    outbox: Outbox | None
    last_sign: float
    """Monotonic seconds of the last sign of life."""


class Sessions:
    """The sessions whose streams end at this process."""

    def __init__(self, engine: Engine, store: SessionStore, replica: str, ttl: float) -> None:
        self._engine = engine
        self._store = store
        self._replica = replica
        self.ttl = ttl
        self.heartbeat = min(5.0, ttl / 3)
        self._sessions: dict[str, Session] = {}
        self._closing = False

    def __len__(self) -> int:
        return len(self._sessions)

    async def attach(
        self, hello: worker_pb2.Hello, namespace: str, outbox: Outbox
    ) -> tuple[Session, list[worker_pb2.Holding]]:
        """Connect a worker; returns its session and what it says it holds and doesn't.

        The first message of the outbox is the caller's Welcome: until `ready` nothing is assigned.
        Raises errors.SessionMismatch, errors.ShuttingDown and the store's errors.
        """
        if self._closing:
            raise errors.ShuttingDown
        session = await self._take_over(hello, namespace) if hello.session else None
        if session is None:
            session = await self._begin(hello, namespace)
        worker = session.worker
        worker.slots = hello.slots
        worker.draining = False
        session.last_sign = time.monotonic()
        revoked = await self._reconcile(session, hello.holding)
        session.outbox = outbox
        return session, revoked

    def ready(self, session: Session, outbox: Outbox) -> None:
        """The Welcome is on its way: let the worker have work."""
        if session.outbox is outbox:
            session.worker.outbox = outbox
            self._engine.pool.freed(session.worker)
            self._engine.workers_came(session.worker.namespace, session.worker.driver)

    async def _begin(self, hello: worker_pb2.Hello, namespace: str) -> Session:
        record = self._record(hello, namespace, str(uuid.uuid4()), self._engine.now())
        revision = await self._store.put(record, 0)
        worker = self._worker(record)
        session = Session(worker, record, revision, None, time.monotonic())
        self._sessions[record.id] = session
        self._engine.sessions.put(record)
        self._engine.pool.add(worker)
        log.info("worker_connected", namespace=namespace, driver=hello.driver, worker=hello.worker, session=record.id)
        return session

    async def _take_over(self, hello: worker_pb2.Hello, namespace: str) -> Session | None:
        """The session that the worker names, wherever its last stream ended; None when it is lost."""
        known = self._sessions.get(hello.session)
        if known is None:
            stored = await self._store.get(namespace, hello.driver, hello.session)
            if stored is None:
                return None
            record, revision = stored
            worker = self._worker(record)
            worker.held.update(self._engine.unattached.pop(record.id, {}))
            known = Session(worker, record, revision, None, time.monotonic())
        worker = known.worker
        if (worker.namespace, worker.driver) != (namespace, hello.driver):
            raise errors.SessionMismatch(
                f"session {hello.session} belongs to driver {worker.driver} in namespace {worker.namespace}"
            )
        if known.outbox is not None:
            known.outbox.close(errors.SessionTakenOver())
        known.outbox = worker.outbox = None
        record = self._record(hello, namespace, hello.session, known.record.connect_time)
        try:
            revision = await self._store.put(record, known.revision)
        except Conflict:
            # Lost, or taken over by another stream, while this one was being read.
            self._forget(known)
            return None
        known.record, known.revision = record, revision
        worker.name, worker.sdk = record.worker, record.sdk
        worker.definitions = frozenset(record.definitions)
        worker.labels = dict(record.labels)
        if hello.session not in self._sessions:
            self._sessions[hello.session] = known
            self._engine.pool.add(worker)
        self._engine.sessions.put(record)
        log.info("worker_reconnected", namespace=namespace, driver=hello.driver, worker=hello.worker, session=record.id)
        return known

    def _record(
        self, hello: worker_pb2.Hello, namespace: str, session: str, connect_time: int
    ) -> storage_pb2.SessionRecord:
        return storage_pb2.SessionRecord(
            id=session,
            namespace=namespace,
            driver=hello.driver,
            worker=hello.worker,
            replica=self._replica,
            slots=hello.slots,
            definitions=hello.definitions,
            labels=hello.labels,
            connect_time=connect_time,
            update_time=self._engine.now(),
            sdk=hello.sdk,
            ttl=int(self.ttl * 1e6),
        )

    @staticmethod
    def _worker(record: storage_pb2.SessionRecord) -> Worker:
        return Worker(
            namespace=record.namespace,
            driver=record.driver,
            session=record.id,
            name=record.worker,
            slots=record.slots,
            definitions=frozenset(record.definitions),
            labels=dict(record.labels),
            sdk=record.sdk,
            connect_time=record.connect_time,
        )

    async def _reconcile(self, session: Session, holding: Sequence[worker_pb2.Holding]) -> list[worker_pb2.Holding]:
        """Bring what the worker holds and what is stored together: what it holds it keeps, the rest is given out."""
        worker, pool = session.worker, self._engine.pool
        revoked: list[worker_pb2.Holding] = []
        named = {held.token for held in holding}
        for held in holding:
            if held.token in worker.held:
                continue
            index = await self._current(worker, held)
            if index < 0:
                revoked.append(held)
            else:
                pool.hold(worker, held.token, Held(worker.namespace, held.run, index, held.step, held.attempt))
        for token in [token for token in worker.held if token not in named]:
            self._engine.not_received(worker, token)
        return revoked

    async def _current(self, worker: Worker, held: worker_pb2.Holding) -> int:
        """The index of the step whose current attempt this is; -1 when it is none, or another session's."""
        try:
            run = await self._engine.run(worker.namespace, held.run)
        except errors.NotFound:
            return -1
        index = run.state.plan.index.get(held.step, -1)
        record = run.state.steps[index] if index >= 0 else None
        current = (
            record is not None
            and record.state == run_pb2.STEP_STATE_RUNNING
            and record.token == held.token
            and record.session == worker.session
        )
        return index if current else -1

    def sign_of_life(self, session: Session) -> None:
        """The worker has said something."""
        session.last_sign = time.monotonic()

    def resize(self, session: Session, slots: int) -> None:
        """The worker has another capacity from now on."""
        session.worker.slots = slots
        self._engine.pool.freed(session.worker)
        self._engine.pump(session.worker.namespace, session.worker.driver)

    async def detach(self, session: Session, outbox: Outbox) -> None:
        """A stream has ended. A worker that has nothing is gone; one that has something may come back for its TTL."""
        for assignment in outbox.unsent():
            self._engine.not_received(session.worker, assignment.token)
        if session.outbox is not outbox:
            return
        session.outbox = session.worker.outbox = None
        session.last_sign = time.monotonic()
        if not session.worker.held and not self._closing:
            with contextlib.suppress(StoreError):
                await self._end(session)

    async def _end(self, session: Session) -> bool:
        """Delete the session from the store, and then from here; False when another replica has it."""
        session.record.update_time = self._engine.now()
        deleted = await self._store.delete(session.record, session.revision)
        if deleted:
            self._engine.sessions.delete(session.record.namespace, session.record.driver, session.record.id)
        if session.outbox is None or not deleted:
            self._forget(session)
        return deleted

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.record.id, None)
        self._engine.pool.remove(session.worker)
        self._engine.worker_left(session.worker.namespace, session.worker.driver)
        if session.outbox is not None:
            session.outbox.close(errors.SessionTakenOver())

    def moved(self, record: storage_pb2.SessionRecord) -> None:
        """The store's watch shows a session; if it is one of ours and another replica has it now, let it go."""
        session = self._sessions.get(record.id)
        if session is not None and record.replica != self._replica:
            self._forget(session)

    async def watch_over(self) -> None:
        """Declare workers lost that give no sign of life for their TTL; for ever."""
        while True:
            await asyncio.sleep(min(0.5, self.ttl / 10))
            now = time.monotonic()
            for session in [s for s in self._sessions.values() if now - s.last_sign > self.ttl]:
                try:
                    await self._lose(session)
                except StoreError:
                    log.warning("session_not_ended", session=session.record.id, exc_info=True)

    async def _lose(self, session: Session) -> None:
        worker = session.worker
        runs = {(held.namespace, held.run) for held in worker.held.values()}
        failpoint("gateway.before_loss")
        if session.outbox is not None:
            session.outbox.close(errors.ProtocolViolation("no heartbeat within the session's TTL"))
            session.outbox = worker.outbox = None
        if not await self._end(session):
            return
        failpoint("gateway.after_loss")
        log.warning(
            "worker_lost", namespace=worker.namespace, driver=worker.driver, worker=worker.name, session=worker.session
        )
        message = f"worker {worker.name} gave no sign of life for {self.ttl:g} s"
        for namespace, run in runs:
            self._engine.spawn(self._engine.handle(namespace, run, WorkerLost(worker.session, message)))

    def close(self) -> None:
        """Refuse new streams and end those that are open; what workers hold they keep, and bring back elsewhere."""
        self._closing = True
        for session in self._sessions.values():
            if session.outbox is not None:
                session.outbox.close(errors.ShuttingDown())
                session.worker.outbox = None

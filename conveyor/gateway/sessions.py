"""Sessions: workers come, come back, leave, and are lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import structlog

from conveyor.core import errors
from conveyor.core.deadlines import stop_order
from conveyor.core.events import WorkerLost
from conveyor.engine.loop import Engine, cancellation
from conveyor.engine.timers import RunKey
from conveyor.engine.workers import Held, Worker
from conveyor.gateway.outbox import Outbox
from conveyor.state.ids import is_run_id
from conveyor.state.runs import StoredRun
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

    @property
    def idle(self) -> bool:
        """Whether no stream is open, and nothing that the worker could come back with."""
        return self.outbox is None and not self.worker.held


class Sessions:
    """The sessions whose streams end at this process."""

    def __init__(self, engine: Engine, store: SessionStore, replica: str, ttl: float) -> None:
        self._engine = engine
        self._store = store
        self._replica = replica
        self.ttl = ttl
        self.heartbeat = min(5.0, ttl / 3)
        self._sessions: dict[str, Session] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._closing = False

    def __len__(self) -> int:
        return len(self._sessions)

    async def attach(
        self, hello: worker_pb2.Hello, namespace: str, outbox: Outbox
    ) -> tuple[Session, list[worker_pb2.Holding], list[worker_pb2.Cancellation]]:
        """Connect a worker; returns its session, what it says it holds and doesn't, and what it has been told to stop.

        The first message of the outbox is the caller's Welcome: until `ready` nothing is assigned.
        Raises errors.SessionMismatch, errors.ShuttingDown and the store's errors.
        """
        if self._closing:
            raise errors.ShuttingDown
        async with self._turn(hello.session):
            session = await self._take_over(hello, namespace) if hello.session else None
            if session is None:
                session = await self._begin(hello, namespace)
            worker = session.worker
            worker.slots = hello.slots
            worker.draining = False
            session.last_sign = time.monotonic()
            revoked, stops = await self._reconcile(session, hello.holding)
            if self._closing:
                raise errors.ShuttingDown
            session.outbox = outbox
        return session, revoked, stops

    def _turn(self, session: str) -> asyncio.Lock:
        """What is done to one session is done one after the other: its streams may come and go at the same time."""
        lock = self._turns.get(session) if session else None
        if lock is None:
            lock = asyncio.Lock()
            if session:
                self._turns[session] = lock
        return lock

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
        while True:
            if known is None:
                stored = await self._store.get(namespace, hello.driver, hello.session)
                if stored is None:
                    return None
                worker = self._worker(stored[0])
                worker.held.update(self._engine.unattached.pop(hello.session, {}))
                known = Session(worker, *stored, None, time.monotonic())
                # Until that has been done once, a sweep would think that the worker lacks what it holds.
                worker.reconciling = True
            worker = known.worker
            if (worker.namespace, worker.driver) != (namespace, hello.driver):
                raise errors.SessionMismatch(
                    f"session {hello.session} belongs to driver {worker.driver} in namespace {worker.namespace}"
                )
            self._cut(known, errors.SessionTakenOver())
            record = self._record(hello, namespace, hello.session, known.record.connect_time)
            try:
                known.revision = await self._store.put(record, known.revision)
                break
            except Conflict:
                # Another replica has or had it since, or declared it lost: what is stored counts.
                self._forget(known)
                known = None
        known.record = record
        worker.name, worker.sdk = record.worker, record.sdk
        worker.definitions = frozenset(record.definitions)
        worker.labels = dict(record.labels)
        if self._sessions.get(hello.session) is not known:
            self._sessions[hello.session] = known
            self._engine.pool.add(worker)
        self._engine.sessions.put(record)
        log.info("worker_reconnected", namespace=namespace, driver=hello.driver, worker=hello.worker, session=record.id)
        return known

    def _cut(self, session: Session, reason: errors.DomainError) -> None:
        """The session's stream is not the one that counts any more; what it has not sent yet it never will."""
        session.last_sign = time.monotonic()
        outbox, session.outbox, session.worker.outbox = session.outbox, None, None
        if outbox is not None:
            self._give_back(outbox)
            outbox.close(reason)

    def _give_back(self, outbox: Outbox) -> None:
        for token in outbox.unsent():
            self._engine.not_received(token)

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

    async def _reconcile(
        self, session: Session, holding: Sequence[worker_pb2.Holding]
    ) -> tuple[list[worker_pb2.Holding], list[worker_pb2.Cancellation]]:
        """Bring what the worker holds and what is stored together: what it holds it keeps, the rest is given out."""
        worker, pool = session.worker, self._engine.pool
        revoked: list[worker_pb2.Holding] = []
        stops: list[worker_pb2.Cancellation] = []
        current = await self._current(worker, holding)
        for held in holding:
            if held.token not in current:
                revoked.append(held)
                if pool.holder(held.token) is worker:
                    self._engine.relieve(held.token)
                continue
            run, index = current[held.token]
            pool.hold(worker, held.token, Held(worker.namespace, held.run, index))
            record = run.state.steps[index]
            if record is not None and record.cancel_sent:
                # Said once already, but perhaps on a stream that was broken.
                left, message = stop_order(run.state, index, self._engine.now())
                stops.append(cancellation(held.run, held.step, held.attempt, message, left))
        named = {held.token for held in holding}
        # A sweep has found these meanwhile.
        for token, found in self._engine.unattached.pop(worker.session, {}).items():
            if token not in named:
                pool.hold(worker, token, found)
        worker.reconciling = False
        for token in [token for token in worker.held if token not in named]:
            self._engine.not_received(token)
        return revoked, stops

    async def _current(self, worker: Worker, holding: Sequence[worker_pb2.Holding]) -> dict[str, tuple[StoredRun, int]]:
        """Run and index of each attempt that the worker holds, by token; without those that are over or another's."""
        current: dict[str, tuple[StoredRun, int]] = {}
        open_: dict[RunKey, list[worker_pb2.Holding]] = {}
        for held in holding:
            if is_run_id(held.run):
                open_.setdefault((worker.namespace, held.run), []).append(held)
        # What is in hand may be older than what the replica has stored that the worker comes from.
        for read in (self._engine.take_in_hand, self._engine.runs.load_many):
            async for key, run in read(list(open_)):
                if not isinstance(run, StoredRun):
                    del open_[key]
                    continue
                for held in open_[key]:
                    index = _held_at(run, held, worker.session)
                    if index >= 0:
                        current[held.token] = run, index
            open_ = {key: left for key, all_ in open_.items() if (left := [h for h in all_ if h.token not in current])}
        return current

    def sign_of_life(self, session: Session) -> None:
        """The worker has said something."""
        session.last_sign = time.monotonic()

    def resize(self, session: Session, slots: int) -> None:
        """The worker has another capacity from now on."""
        session.worker.slots = slots
        self._engine.pool.freed(session.worker)
        self._engine.pump(session.worker.namespace, session.worker.driver)

    def drain(self, session: Session, outbox: Outbox) -> None:
        """Nothing more is assigned on this session."""
        session.worker.draining = True
        self._give_back(outbox)

    async def detach(self, session: Session, outbox: Outbox) -> None:
        """A stream has ended. A worker that has nothing is gone; one that has something may come back for its TTL."""
        self._give_back(outbox)
        if session.outbox is not outbox:
            return
        self._cut(session, errors.ShuttingDown())
        async with self._turn(session.record.id):
            if session.idle and not self._closing and self._sessions.get(session.record.id) is session:
                with contextlib.suppress(StoreError):
                    await self._end(session)

    async def _end(self, session: Session) -> bool:
        """Delete the session from the store, and then from here; False when another replica has it."""
        session.record.update_time = self._engine.now()
        deleted = await self._store.delete(session.record, session.revision)
        if deleted:
            self._engine.sessions.delete(session.record.namespace, session.record.driver, session.record.id)
        self._forget(session)
        return deleted

    def _forget(self, session: Session) -> None:
        if self._sessions.get(session.record.id) is session:
            del self._sessions[session.record.id]
        self._engine.pool.remove(session.worker)
        self._engine.worker_left(session.worker.namespace, session.worker.driver)
        self._cut(session, errors.SessionTakenOver())

    def moved(self, record: storage_pb2.SessionRecord, revision: int) -> None:
        """The store's watch shows a session; if it is one of ours and another replica has it now, let it go."""
        session = self._sessions.get(record.id)
        if session is not None and record.replica != self._replica and revision > session.revision:
            self._forget(session)

    async def watch_over(self) -> None:
        """Declare workers lost that give no sign of life for their TTL; for ever."""
        period = min(0.5, self.ttl / 10)
        before = time.monotonic()
        swept = before
        while True:
            await asyncio.sleep(period)
            now = time.monotonic()
            self.forgive(now - before - period)
            before = now
            for session in [s for s in self._sessions.values() if now - s.last_sign > self.ttl]:
                await self._guarded(self._lose(session), session.record)
            if now - swept > self.ttl:
                swept = now
                await self.end_strays()

    def forgive(self, stalled: float) -> None:
        """This process itself was stopped or starved for so many seconds: no worker could be heard meanwhile."""
        if stalled > self.heartbeat / 2:
            log.warning("server_was_stalled", seconds=round(stalled, 1))
            for session in self._sessions.values():
                session.last_sign += stalled

    async def end_strays(self) -> None:
        """End sessions that were stored for this process and never came to be: the answer, or the worker, was lost."""
        horizon = self._engine.now() - int(self.ttl * 1e6)
        for record in list(self._engine.sessions):
            if record.replica == self._replica and record.id not in self._sessions and record.update_time < horizon:
                await self._guarded(self._end_stray(record), record)

    async def _end_stray(self, record: storage_pb2.SessionRecord) -> None:
        async with self._turn(record.id):
            stored = await self._store.get(record.namespace, record.driver, record.id)
            ours = stored is not None and stored[0].replica == self._replica
            if stored is None or (ours and record.id not in self._sessions and await self._store.delete(*stored)):
                self._engine.sessions.delete(record.namespace, record.driver, record.id)

    async def _guarded(self, work: Awaitable[None], record: storage_pb2.SessionRecord) -> None:
        try:
            await work
        except StoreError as error:
            log.warning("session_not_ended", session=record.id, error=str(error))

    async def _lose(self, session: Session) -> None:
        worker = session.worker
        async with self._turn(worker.session):
            if time.monotonic() - session.last_sign <= self.ttl or self._sessions.get(worker.session) is not session:
                return  # It came back meanwhile.
            runs = {(held.namespace, held.run) for held in worker.held.values()}
            failpoint("gateway.before_loss")
            last_sign = session.last_sign
            self._cut(session, errors.ProtocolViolation("no heartbeat within the session's TTL"))
            session.last_sign = last_sign
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


def _held_at(run: StoredRun, held: worker_pb2.Holding, session: str) -> int:
    """The index of the step whose current attempt this is; -1 when it is none, or another session's."""
    index = run.state.plan.index.get(held.step, -1)
    record = run.state.steps[index] if index >= 0 else None
    ours = (
        record is not None
        and record.state == run_pb2.STEP_STATE_RUNNING
        and record.token == held.token
        and record.session == session
    )
    return index if ours else -1

"""The engine: one event at a time per run, from the core's decision to the commit to what follows from it."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from conveyor.core import errors
from conveyor.core.model import (
    Claim,
    Claimed,
    Continue,
    Decision,
    Event,
    NotReceived,
    RunCreated,
    Tick,
    Waiting,
    WorkerLost,
)
from conveyor.core.transitions import apply, next_timer
from conveyor.engine.assignments import assignment
from conveyor.engine.clock import Now
from conveyor.engine.metrics import EngineMetrics
from conveyor.engine.sessions_view import SessionsView
from conveyor.engine.tickets_port import Tickets
from conveyor.engine.timers import RunKey, Timers
from conveyor.engine.workers import Held, Pool, Waiter, Worker
from conveyor.state.ids import RandomBytes
from conveyor.state.runs import Runs, StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.store.failpoints import failpoint
from conveyor.store.port import Conflict, StoreError, Unavailable, Uncertain
from conveyor.v1 import run_pb2, worker_pb2

log = structlog.get_logger("conveyor.engine")

_RUNS_KEPT = 4096
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


@dataclass(slots=True)
class Dispatch:
    """What was reserved for a decision that is not stored yet."""

    sends: list[tuple[int, Worker, str]] = field(default_factory=list)
    tickets: list[int] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Entry:
    """A run that this process has in hand. `run` is None when it must be read again."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    run: StoredRun | None = None


class Engine:
    """Moves runs on. Any number of engines may work on one store: the guard on a run's head decides between them."""

    def __init__(
        self,
        runs: Runs,
        pool: Pool,
        now: Now,
        *,
        sessions: SessionsView | None = None,
        tickets: Tickets | None = None,
        metrics: EngineMetrics | None = None,
    ) -> None:
        self.runs = runs
        self.pool = pool
        self.now = now
        self.sessions = sessions or SessionsView()
        self.tickets = tickets
        self.timers = Timers(now)
        self.metrics = metrics or EngineMetrics()
        self.unattached: dict[str, dict[str, Held]] = {}  # by session, then token: known before their worker is back
        self.own_revisions: deque[int] = deque(maxlen=4096)
        self._entries: OrderedDict[RunKey, _Entry] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()

    # Events

    async def handle(self, namespace: str, run_id: str, event: Event) -> Decision:
        """Apply an event, store the decision, and do what follows. Returns the decision, stored for good.

        Events of one run take effect one at a time, in the order of the calls. An event that does not fit changes
        nothing. Waits while the store is away. Raises errors.NotFound for an unknown run, and TooLarge.
        """
        return await self._handle(namespace, run_id, event, None, patient=True)

    async def request(self, namespace: str, run_id: str, event: Event) -> tuple[Decision, StoredRun]:
        """As `handle`, for a caller that waits for the answer: raises the store's errors instead of waiting."""
        decision = await self._handle(namespace, run_id, event, None, patient=False)
        entry = self._entries.get((namespace, run_id))
        run = entry.run if entry is not None else None
        return decision, run if run is not None else await self.runs.load(namespace, run_id)

    async def _handle(
        self,
        namespace: str,
        run_id: str,
        event: Event,
        claimed: tuple[int, Worker, str] | None,
        *,
        patient: bool,
    ) -> Decision:
        key = (namespace, run_id)
        entry = self._entry(key)
        async with entry.lock:
            first: Decision | None = None
            pause = _FIRST_PAUSE
            while True:
                dispatch: Dispatch | None = None
                try:
                    run = entry.run
                    if run is None:
                        run = entry.run = await self.runs.load(namespace, run_id)
                    now = self.now()
                    decision = apply(run.state, event, now, random.random())
                    if decision.dirty:
                        decision, dispatch = self.dispatch(run, decision, now)
                        if claimed is not None:
                            dispatch.sends.append(claimed)
                        failpoint("engine.before_commit")
                        entry.run = await self.runs.commit(run, decision)
                        failpoint("engine.after_commit")
                        self._follow(key, entry, decision, dispatch)
                    elif isinstance(event, Tick):
                        self._set_timer(key, run)
                except Conflict:
                    entry.run = None
                    self.undo(dispatch, keep=claimed)
                    continue
                except Uncertain:
                    # It may have gone through: what is stored now says so, and names the tokens that count.
                    entry.run = None
                    if dispatch is not None:
                        await self._resolve_uncertain(key, entry, dispatch, claimed, patient=patient)
                    if not patient:
                        raise
                    continue
                except Unavailable:
                    self.undo(dispatch, keep=claimed)
                    if not patient:
                        raise
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
                    continue
                except StoreError:
                    self.undo(dispatch, keep=claimed)
                    if not patient:
                        raise
                    log.exception("commit_refused", run_id=run_id, event=type(event).__name__)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
                    continue
                except errors.NotFound:
                    self._entries.pop(key, None)
                    self.timers.forget(key)
                    raise
                first = first or decision
                if not decision.more:
                    return first
                event, claimed = Continue(), None

    def _entry(self, key: RunKey) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            if len(self._entries) > _RUNS_KEPT:
                self._evict()
        else:
            self._entries.move_to_end(key)
        return entry

    def _evict(self) -> None:
        """Forget the states that were longest unused; one that is locked is in use."""
        for key in list(self._entries)[: _RUNS_KEPT // 8]:
            if not self._entries[key].lock.locked():
                del self._entries[key]

    async def _resolve_uncertain(
        self,
        key: RunKey,
        entry: _Entry,
        dispatch: Dispatch,
        claimed: tuple[int, Worker, str] | None,
        *,
        patient: bool,
    ) -> None:
        """After a lost answer: send what the store says was claimed, and free the rest."""
        while entry.run is None:
            try:
                entry.run = await self.runs.load(*key)
            except errors.NotFound:
                break
            except StoreError:
                if not patient:
                    # Whoever comes next for this run reads it; the sweep gives out again what nobody holds.
                    self.undo(dispatch, keep=None)
                    return
                await asyncio.sleep(_FIRST_PAUSE)
        run = entry.run
        for index, worker, token in dispatch.sends:
            record = run.state.steps[index] if run is not None else None
            if run is not None and record is not None and record.token == token:
                self._send(run, index, worker, token)
            elif claimed is None or token != claimed[2]:
                self.pool.release(token)

    # Dispatch

    def dispatch(self, run: StoredRun, decision: Decision, now: int) -> tuple[Decision, Dispatch]:
        """Give what is ready to free workers, to JetStream, or into the row; to be stored with the decision."""
        dispatch = Dispatch()
        if not decision.ready:
            return decision, dispatch
        state = decision.state
        head = state.head
        claims: list[Claim] = []
        for index in decision.ready:
            step = state.plan.steps[index]
            worker = self.pool.reserve(head.namespace, step.driver, head.definition)
            if worker is not None and state.plan.broadcast and not worker.definitions:
                worker = None
            if worker is not None:
                token = new_token()
                record = state.steps[index]
                attempt = record.attempt if record is not None else 1
                self.pool.hold(worker, token, Held(head.namespace, head.id, index, step.id, attempt))
                claims.append(Claim(index, worker.session, worker.name, token, run_pb2.TRANSPORT_GRPC))
                dispatch.sends.append((index, worker, token))
                continue
            consumer, reason, message = self._consumer(head.namespace, step.driver, head.definition)
            if consumer:
                claims.append(Claim(index, consumer, consumer, new_token(), run_pb2.TRANSPORT_JETSTREAM))
                dispatch.tickets.append(index)
                continue
            if not reason:
                reason, message = self._explain(head.namespace, step.driver, head.definition)
            dispatch.waits.append(index)
            decision = decision.then(apply(decision.state, Waiting(index, reason, message), now))
        if claims:
            decision = decision.then(apply(decision.state, Claimed(tuple(claims)), now))
        return decision, dispatch

    def _consumer(self, namespace: str, driver: str, definition: str) -> tuple[str, run_pb2.StepReason.ValueType, str]:
        if self.tickets is None:
            return "", run_pb2.STEP_REASON_UNSPECIFIED, ""
        # A driver with gRPC workers gets no tickets: they take over as soon as one is free.
        if self.pool.workers(namespace, driver):
            return "", run_pb2.STEP_REASON_UNSPECIFIED, ""
        return self.tickets.consumer(namespace, driver, definition)

    def _explain(self, namespace: str, driver: str, definition: str) -> tuple[run_pb2.StepReason.ValueType, str]:
        """Why no worker takes a step now."""
        workers = self.pool.workers(namespace, driver)
        takers = sum(worker.takes(definition) for worker in workers)
        takers += self.sessions.takers(namespace, driver, definition)
        if takers:
            return run_pb2.STEP_REASON_WORKERS_BUSY, f"all workers of driver {driver} are busy ({takers} connected)"
        if workers:
            return (
                run_pb2.STEP_REASON_NO_WORKER,
                f"no connected worker of driver {driver} takes resources of definition {definition}",
            )
        return run_pb2.STEP_REASON_NO_WORKER, f"no worker of driver {driver} is connected"

    def listeners(self, namespace: str, definition: str) -> list[str]:
        """The drivers that want broadcasts of the definition, by name."""
        found = {
            worker.driver
            for worker in self.pool
            if worker.namespace == namespace and worker.outbox is not None and definition in worker.definitions
        }
        found.update(self.sessions.listeners(namespace, definition))
        if self.tickets is not None:
            found.update(self.tickets.listeners(namespace, definition))
        return sorted(found)

    def undo(self, dispatch: Dispatch | None, keep: tuple[int, Worker, str] | None = None) -> None:
        """Free what was reserved for a decision that was not stored."""
        if dispatch is not None:
            for _, _, token in dispatch.sends:
                if keep is None or token != keep[2]:
                    self.pool.release(token)

    # What follows a commit

    def adopt(self, run: StoredRun, decision: Decision, dispatch: Dispatch) -> None:
        """Take up a run that another part of this process has just stored."""
        key = (run.head.namespace, run.head.id)
        entry = self._entry(key)
        entry.run = run
        self._follow(key, entry, decision, dispatch)
        self.metrics.run_created(run.head)
        if decision.more:
            self.spawn(self.handle(*key, Continue()))

    def _follow(self, key: RunKey, entry: _Entry, decision: Decision, dispatch: Dispatch) -> None:
        """Everything that a stored decision leads to. Nothing here waits; whatever is lost, the sweep repairs."""
        run = entry.run
        if run is None:
            return
        self.own_revisions.append(run.revision)
        for index, worker, token in dispatch.sends:
            self._send(run, index, worker, token)
        relieved: set[tuple[str, str]] = set()
        told = {stop.token for stop in decision.stops if stop.grace}
        answered = bool(decision.disposition)
        if self.tickets is not None:
            for withdraw in decision.withdrawals:
                self.tickets.withdraw(*key, run.state.plan.steps[withdraw.index].driver, withdraw)
            for token in decision.freed:
                self.tickets.ended(token, answered=answered)
        for token in decision.freed:
            if token in told:
                # The worker is still at it: its place is free when it answers, at the latest after the grace time.
                continue
            holder = self.pool.release(token)
            if holder is not None:
                relieved.add((holder.namespace, holder.driver))
        for stop in decision.stops:
            self._stop(run, stop)
        if self.tickets is not None:
            if dispatch.tickets and run.state.plan.broadcast:
                self.tickets.publish_broadcast(run, dispatch.tickets)
            else:
                for index in dispatch.tickets:
                    self.tickets.publish(run, index)
        for index in dispatch.waits:
            self.wait(run, index)
        if run.state.terminal:
            self.timers.forget(key)
            self._entries.pop(key, None)
            self.metrics.run_finished(run.head)
        else:
            for time in decision.timers:
                self.timers.set(key, time)
        self.metrics.transition(run.state, decision.changed)
        for driver in relieved:
            self.pump(*driver)

    def _send(self, run: StoredRun, index: int, worker: Worker, token: str) -> None:
        record = run.state.steps[index]
        if token not in worker.held:
            return  # Its worker came back without it meanwhile: a NotReceived is under way.
        if record is None or record.token != token or record.state != run_pb2.STEP_STATE_RUNNING:
            # The claim did not fit any more: the step went elsewhere, or the run ended.
            self.pool.release(token)
            self.pump(worker.namespace, worker.driver)
            return
        if worker.outbox is None:
            self.not_received(worker, token)
            return
        worker.outbox.assign(assignment(run, index, self.now()))

    def not_received(self, worker: Worker, token: str) -> None:
        """An assignment that surely never reached its worker: queue its step again."""
        held = worker.held.get(token)
        self.pool.release(token)
        if held is not None:
            self.spawn(self.handle(held.namespace, held.run, NotReceived(held.index, token)))

    def _stop(self, run: StoredRun, stop: Any) -> None:
        head, step = run.head, run.state.plan.steps[stop.index]
        if stop.transport == run_pb2.TRANSPORT_JETSTREAM:
            if self.tickets is not None:
                self.tickets.stop(head.namespace, head.id, step.id, stop)
            return
        worker = self.pool.session(stop.session)
        if worker is None:
            return  # Another replica's: it sees `cancel_sent` in the store's watch.
        if worker.outbox is not None:
            worker.outbox.stop(cancellation(head.id, step.id, stop.attempt, stop.message, stop.grace))
        if stop.grace:
            asyncio.get_running_loop().call_later(stop.grace / 1e6, self.relieve, stop.token)

    def relieve(self, token: str) -> None:
        """The worker has no more to do with this token."""
        worker = self.pool.release(token)
        if worker is not None:
            self.pump(worker.namespace, worker.driver)

    def _set_timer(self, key: RunKey, run: StoredRun) -> None:
        time = next_timer(run.state)
        if time:
            self.timers.set(key, time)

    # Steps that wait

    def wait(self, run: StoredRun, index: int) -> None:
        """Put a queued step into the row of its driver, and have JetStream looked at for it."""
        head, step, record = run.head, run.state.plan.steps[index], run.state.steps[index]
        if record is None:
            return
        waiter = Waiter(head.namespace, step.driver, head.definition, head.id, index)
        self.pool.wait(waiter, record.ready_time)
        if self.tickets is not None and not self.pool.workers(head.namespace, step.driver):
            self.tickets.wait(waiter)
        self.pump(head.namespace, step.driver)

    def workers_came(self, namespace: str, driver: str) -> None:
        """A worker is ready: it gets what waits, and what is on the broker and not yet delivered."""
        if self.tickets is not None:
            self.tickets.workers_came(namespace, driver)
        self.pump(namespace, driver)

    def worker_left(self, namespace: str, driver: str) -> None:
        """A session is gone: without another one, what waits may go to a JetStream consumer."""
        if self.tickets is not None and not self.pool.workers(namespace, driver):
            for waiter in self.pool.waiters(namespace, driver):
                self.tickets.wait(waiter)

    def pump(self, namespace: str, driver: str) -> None:
        """Give waiting steps to free workers of a driver, as long as there are both."""
        while (match := self.pool.match(namespace, driver)) is not None:
            waiter, worker = match
            token = new_token()
            self.pool.hold(worker, token, Held(waiter.namespace, waiter.run, waiter.index, "", 0))
            self.spawn(self._claim(waiter, worker, token))

    async def _claim(self, waiter: Waiter, worker: Worker, token: str) -> None:
        """Store the claim of a step that waited, and send it; a step that needs it no more leaves the worker free."""
        claim = Claim(waiter.index, worker.session, worker.name, token, run_pb2.TRANSPORT_GRPC)
        try:
            decision = await self._handle(
                waiter.namespace, waiter.run, Claimed((claim,)), (waiter.index, worker, token), patient=True
            )
        except errors.NotFound:
            self.relieve(token)
            return
        record = decision.state.steps[waiter.index]
        if record is None or record.token != token:
            self.relieve(token)

    async def claim_ticket(self, waiter: Waiter, consumer: str) -> bool:
        """Claim a step that waits for a consumer that pulls now; the ticket follows the commit."""
        token = new_token()
        claim = Claim(waiter.index, consumer, consumer, token, run_pb2.TRANSPORT_JETSTREAM)
        decision = await self.handle(waiter.namespace, waiter.run, Claimed((claim,)))
        record = decision.state.steps[waiter.index]
        if not decision.dirty or record is None or record.token != token:
            return False
        if self.tickets is not None:
            run = await self.run(waiter.namespace, waiter.run)
            self.tickets.publish(run, waiter.index)
        return True

    def outdated(self, namespace: str, run_id: str, revision: int) -> None:
        """Another replica has changed the run: read it again when it is needed next."""
        entry = self._entries.get((namespace, run_id))
        if entry is not None and entry.run is not None and entry.run.revision < revision and not entry.lock.locked():
            entry.run = None

    async def run(self, namespace: str, run_id: str) -> StoredRun:
        """The run as it is in hand, else as it is stored. Raises errors.NotFound and the store's errors."""
        entry = self._entries.get((namespace, run_id))
        if entry is not None and entry.run is not None:
            return entry.run
        return await self.runs.load(namespace, run_id)

    async def tick(self, key: RunKey) -> None:
        """Let what is due take effect."""
        try:
            await self.handle(*key, Tick())
        except errors.NotFound:
            return
        entry = self._entries.get(key)
        if entry is not None and entry.run is not None:
            self._set_timer(key, entry.run)

    def resume(self, run: StoredRun) -> None:
        """Take up a run that was found unfinished: its timers, and steps that are queued and belong to nobody."""
        key = (run.head.namespace, run.head.id)
        self._set_timer(key, run)
        if run.head.state == run_pb2.RUN_STATE_PENDING:
            self.spawn(self.handle(*key, RunCreated()))
        tickets: list[int] = []
        broadcast: list[int] = []
        for index, record in enumerate(run.state.steps):
            if record is None:
                continue
            if record.state == run_pb2.STEP_STATE_QUEUED and not record.token:
                self.wait(run, index)
            elif record.token and record.transport == run_pb2.TRANSPORT_JETSTREAM:
                if not run.state.plan.broadcast:
                    tickets.append(index)
                elif not record.HasField("ticket"):
                    broadcast.append(index)
            elif record.state == run_pb2.STEP_STATE_RUNNING:
                self._check_holder(run, index, record)
        if self.tickets is not None:
            for index in tickets:
                self.tickets.publish(run, index)
            if broadcast:
                self.tickets.publish_broadcast(run, broadcast)

    def _check_holder(self, run: StoredRun, index: int, record: storage_pb2.StepRecord) -> None:
        """A running step whose worker is here and doesn't have it was never received; one nobody has is lost."""
        head = run.head
        held = Held(head.namespace, head.id, index, record.step, record.attempt)
        worker = self.pool.session(record.session)
        if worker is not None:
            if record.token not in worker.held:
                self.spawn(self.handle(head.namespace, head.id, NotReceived(index, record.token)))
        elif self.sessions.has(head.namespace, run.state.plan.steps[index].driver, record.session):
            self.unattached.setdefault(record.session, {})[record.token] = held
        elif self.sessions.complete:
            message = f"worker {record.worker} was lost"
            self.spawn(self.handle(head.namespace, head.id, WorkerLost(record.session, message)))

    # Tasks

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something to its end, whoever asked for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, errors.NotFound):
            log.error("engine_task_failed", exc_info=error)

    async def close(self) -> None:
        """Let what is under way come to its end within a second, then stop it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


_RANDOM = RandomBytes()


def new_token() -> str:
    """Opaque, and not to be guessed."""
    return _RANDOM.token()


def cancellation(run: str, step: str, attempt: int, message: str, grace: int) -> worker_pb2.Cancellation:
    """What a worker is told when it should stop; `grace` in microseconds."""
    told = worker_pb2.Cancellation(run=run, step=step, attempt=attempt, message=message)
    told.grace.FromMicroseconds(grace)
    return told

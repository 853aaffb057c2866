"""The engine: one event at a time per run, from the core's decision to the commit to what follows from it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from conveyor.core import errors
from conveyor.core.model import Claim, Claimed, Continue, Decision, Event, NotReceived, Stop, Tick
from conveyor.core.transitions import apply, next_timer
from conveyor.engine import repair
from conveyor.engine.assignments import assignment
from conveyor.engine.clock import Now
from conveyor.engine.dispatch import Dispatch, Dispatcher, Send, new_token
from conveyor.engine.metrics import EngineMetrics
from conveyor.engine.own import OwnRevisions
from conveyor.engine.sessions_view import SessionsView
from conveyor.engine.tickets_port import Tickets
from conveyor.engine.timers import RunKey, Timers
from conveyor.engine.workers import Held, Pool, Waiter, Worker
from conveyor.state.runs import Runs, StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.store.failpoints import failpoint
from conveyor.store.port import Conflict, StoreError, TooLarge, Unavailable, Uncertain
from conveyor.v1 import run_pb2, worker_pb2

log = structlog.get_logger("conveyor.engine")

_RUNS_KEPT = 4096
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


@dataclass(slots=True)
class _Entry:
    """A run that this process has in hand. `run` is None when it must be read again; `users` are at it or wait."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    run: StoredRun | None = None
    users: int = 0


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
        self.dispatcher = Dispatcher(pool, self.sessions, tickets)
        self.timers = Timers(now)
        self.metrics = metrics or EngineMetrics()
        self.unattached: dict[str, dict[str, Held]] = {}  # by session, then token: known before their worker is back
        self.own_revisions = OwnRevisions()
        self._entries: OrderedDict[RunKey, _Entry] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def tickets(self) -> Tickets | None:
        """Drivers that take part over JetStream, if there is a broker."""
        return self.dispatcher.tickets

    @tickets.setter
    def tickets(self, tickets: Tickets | None) -> None:
        self.dispatcher.tickets = tickets

    # Events

    async def handle(self, namespace: str, run_id: str, event: Event) -> Decision:
        """Apply an event, store the decision, and do what follows. Returns the decision, stored for good.

        Events of one run take effect one at a time, in the order of the calls. An event that does not fit changes
        nothing. Waits while the store is away or full. Raises errors.NotFound for an unknown run, Unreadable, and
        the store's TooLarge.
        """
        return (await self._handle(namespace, run_id, event))[0]

    async def request(self, namespace: str, run_id: str, event: Event) -> tuple[Decision, StoredRun]:
        """As `handle`, for a caller that waits for the answer: raises the store's errors instead of waiting.

        What has begun comes to its end even when the caller is gone by then. Returns the run as it is afterwards.
        """
        return await asyncio.shield(self.spawn(self._handle(namespace, run_id, event, patient=False), heard=True))

    async def _handle(
        self, namespace: str, run_id: str, event: Event, claimed: Send | None = None, *, patient: bool = True
    ) -> tuple[Decision, StoredRun]:
        key = (namespace, run_id)
        entry = self._entry(key)
        entry.users += 1
        try:
            async with entry.lock:
                return await self._settle(key, entry, event, claimed, patient=patient)
        finally:
            entry.users -= 1
            self._drop_if_done(key, entry)

    async def _settle(
        self, key: RunKey, entry: _Entry, event: Event, claimed: Send | None, *, patient: bool
    ) -> tuple[Decision, StoredRun]:
        """Bring an event to its end, with all commits that it takes; the caller has the entry's lock."""
        first: Decision | None = None
        pause = _FIRST_PAUSE
        current = doubtful = False
        while True:
            dispatch: Dispatch | None = None
            try:
                run = entry.run
                if run is None:
                    run = entry.run = await self.runs.load(*key)
                    current = True
                now = self.now()
                decision = apply(run.state, event, now, random.random())
                if decision.dirty:
                    decision, dispatch = self.dispatcher.dispatch(run, decision, now)
                    if claimed is not None:
                        dispatch.sends.append(claimed)
                    failpoint("engine.before_commit")
                    run = entry.run = await self._commit(run, decision, patient=patient)
                    failpoint("engine.after_commit")
                    current = True
                    self._follow(key, run, decision, dispatch)
                elif not current and not await self.runs.is_current(run):
                    # What doesn't fit what is in hand may fit what another replica has stored since.
                    entry.run = None
                    continue
                elif decision.withdrawals and self.tickets is not None:
                    for withdraw in decision.withdrawals:
                        self.tickets.withdraw(*key, run.state.plan.steps[withdraw.index].driver, withdraw)
            except Conflict as conflict:
                entry.run = None
                doubtful = doubtful or isinstance(conflict, _Doubtful)
                self.undo(dispatch, keep=claimed)
                continue
            except (errors.DomainError, TooLarge, Uncertain, asyncio.CancelledError):
                entry.run = None
                self.undo(dispatch, keep=claimed)
                raise
            except StoreError as error:
                self.undo(dispatch, keep=claimed)
                if not patient:
                    raise
                if not isinstance(error, Unavailable):
                    log.warning("commit_refused", run_id=key[1], event=type(event).__name__, error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            first = first or decision
            if not decision.more:
                break
            # Half of it is stored: the rest has to follow, even if the store goes away now.
            event, claimed, patient = decision.rest or Continue(), None, True
        if doubtful:
            self.resume(run)
        return first, run

    async def _commit(self, run: StoredRun, decision: Decision, *, patient: bool) -> StoredRun:
        """Store a decision. When the answer is lost, see whether it is there; raises Conflict when something else is.

        Raises Uncertain only for those who don't wait: it may still take effect.
        """
        try:
            return await self.runs.commit(run, decision)
        except Uncertain:
            stored = await self._load_uncertain(run.head, patient=patient)
        if stored.state == decision.state:
            return run.moved(decision.state, stored.revision)
        if not patient:
            raise Uncertain
        raise _Doubtful(run.head.id, None)

    async def _load_uncertain(self, head: storage_pb2.RunHead, *, patient: bool) -> StoredRun:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self.runs.load(head.namespace, head.id)
            except StoreError:
                if not patient:
                    raise Uncertain from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

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
        """Forget the states that were longest unused.

        Not those that somebody has or waits for: with two locks of one run, its events would overtake each other.
        """
        for key in list(itertools.islice(self._entries, _RUNS_KEPT // 8)):
            if not self._entries[key].users:
                del self._entries[key]

    def _drop_if_done(self, key: RunKey, entry: _Entry) -> None:
        """Forget a run that has ended or is not there, once nobody waits for it."""
        if not entry.users and (entry.run is None or entry.run.state.terminal) and self._entries.get(key) is entry:
            del self._entries[key]

    # What follows a commit

    def undo(self, dispatch: Dispatch | None, keep: Send | None = None) -> None:
        """Free what was reserved for a decision that was not stored."""
        if dispatch is not None:
            for _, _, token in dispatch.sends:
                if keep is None or token != keep[2]:
                    self.relieve(token)

    def adopt(self, run: StoredRun, decision: Decision, dispatch: Dispatch) -> None:
        """Take up a run that another part of this process has just stored."""
        key = (run.head.namespace, run.head.id)
        entry = self._entry(key)
        if entry.run is None or entry.run.revision < run.revision:
            entry.run = run
        self._follow(key, run, decision, dispatch)
        self._drop_if_done(key, entry)
        self.metrics.run_created(run.head)
        if decision.more:
            self.spawn(self.handle(*key, decision.rest or Continue()))

    def _follow(self, key: RunKey, run: StoredRun, decision: Decision, dispatch: Dispatch) -> None:
        """Everything that a stored decision leads to. Nothing here waits; whatever is lost, the sweep repairs."""
        self.own_revisions.add(run.revision)
        for index, worker, token in dispatch.sends:
            self._send(run, index, worker, token)
        told = {stop.token for stop in decision.stops if stop.grace}
        tickets = self.tickets
        if tickets is not None:
            for withdraw in decision.withdrawals:
                tickets.withdraw(*key, run.state.plan.steps[withdraw.index].driver, withdraw)
            answered = bool(decision.disposition)
            for token in decision.freed:
                tickets.ended(token, answered=answered)
        for token in decision.freed:
            # One that was told to stop is still at it: its place is free when it answers, at the latest after the
            # grace time.
            if token not in told:
                self.relieve(token)
        for stop in decision.stops:
            self._stop(run, stop)
        if tickets is not None and dispatch.tickets:
            if run.state.plan.broadcast:
                tickets.publish_broadcast(run, dispatch.tickets)
            else:
                for index in dispatch.tickets:
                    tickets.publish(run, index)
        self._stop_waiting(run, decision)
        for index in dispatch.waits:
            self.wait(run, index)
        if run.state.terminal:
            self.timers.forget(key)
            self.metrics.run_finished(run.head)
        else:
            for time in decision.timers:
                self.timers.set(key, time)
        self.metrics.transition(run.state, decision.changed)

    def _send(self, run: StoredRun, index: int, worker: Worker, token: str) -> None:
        record = run.state.steps[index]
        if record is None or record.token != token or record.state != run_pb2.STEP_STATE_RUNNING:
            # The claim did not fit any more: the step went elsewhere, or the run ended.
            self.relieve(token)
        elif token not in worker.held or worker.outbox is None or worker.draining:
            # Its worker came back without it, moved, left or drains.
            self.not_received(token, run, index)
        else:
            worker.outbox.assign(assignment(run, index, self.now()))

    def not_received(self, token: str, run: StoredRun | None = None, index: int = 0) -> None:
        """An assignment that surely never reached its worker: queue its step again."""
        worker = self.pool.holder(token)
        held = worker.held[token] if worker is not None else None
        self.relieve(token)
        if run is not None:
            self.spawn(self.handle(run.head.namespace, run.head.id, NotReceived(index, token)))
        elif held is not None:
            self.spawn(self.handle(held.namespace, held.run, NotReceived(held.index, token)))

    def _stop(self, run: StoredRun, stop: Stop) -> None:
        head, step = run.head, run.state.plan.steps[stop.index]
        if stop.transport == run_pb2.TRANSPORT_JETSTREAM:
            if self.tickets is not None:
                self.tickets.stop(head.namespace, head.id, step.id, stop)
            return
        worker = self.pool.session(stop.session)
        if worker is None:
            return  # Another replica's, which sees it in the store's watch.
        self.tell_to_stop(worker, cancellation(head.id, step.id, stop.attempt, stop.message, stop.grace))
        if stop.grace:
            self.relieve_later(stop.token, stop.grace)

    def tell_to_stop(self, worker: Worker, told: worker_pb2.Cancellation) -> None:
        """Have a worker told to stop; one that is away is told when it comes back."""
        if worker.outbox is not None:
            worker.outbox.stop(told)

    def relieve(self, token: str) -> None:
        """The worker has no more to do with this token."""
        worker = self.pool.release(token)
        if worker is not None:
            self.pump(worker.namespace, worker.driver)

    def relieve_later(self, token: str, grace: int) -> None:
        """The same after `grace` microseconds, if it has not answered by then."""
        if self.pool.holder(token) is not None:
            asyncio.get_running_loop().call_later(grace / 1e6, self.relieve, token)

    # Steps that wait

    def wait(self, run: StoredRun, index: int) -> None:
        """Put a queued step into the row of its driver, and have JetStream looked at for it."""
        head, step, record = run.head, run.state.plan.steps[index], run.state.steps[index]
        if record is None:
            return
        waiter = Waiter(head.namespace, step.driver, head.definition, head.id, index, run.state.plan.broadcast)
        self.pool.wait(waiter, record.ready_time)
        if self.tickets is not None and not self.pool.workers(head.namespace, step.driver):
            self.tickets.wait(waiter)
        self.pump(head.namespace, step.driver)

    def _stop_waiting(self, run: StoredRun, decision: Decision) -> None:
        """Take steps out of their rows that wait no more: claimed, or ended by another way."""
        waiting = self.pool.waiting_steps(run.head.id)
        if waiting:
            for index in decision.changed:
                if index in waiting and not repair.waits(run.state.steps[index]):
                    self.leave_row(run.head.id, index)

    def leave_row(self, run_id: str, index: int) -> None:
        """The step waits no more."""
        waiter = self.pool.leave(run_id, index)
        if waiter is not None and self.tickets is not None:
            self.tickets.leave(waiter)

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
            self.pool.hold(worker, token, Held(waiter.namespace, waiter.run, waiter.index))
            self.spawn(self._claim(waiter, worker, token))

    async def _claim(self, waiter: Waiter, worker: Worker, token: str) -> None:
        """Store the claim of a step that waited, and send it; a step that needs it no more leaves the worker free."""
        claim = Claim(waiter.index, worker.session, worker.name, token, run_pb2.TRANSPORT_GRPC)
        stored = False
        try:
            _, run = await self._handle(waiter.namespace, waiter.run, Claimed((claim,)), (waiter.index, worker, token))
            record = run.state.steps[waiter.index]
            stored = record is not None and record.token == token
        finally:
            if not stored:
                self.relieve(token)

    async def claim_ticket(self, waiter: Waiter, consumer: str) -> bool:
        """Claim a step that waits for a consumer that pulls now; the ticket follows the commit."""
        token = new_token()
        claim = Claim(waiter.index, consumer, consumer, token, run_pb2.TRANSPORT_JETSTREAM)
        _, run = await self._handle(waiter.namespace, waiter.run, Claimed((claim,)))
        record = run.state.steps[waiter.index]
        if record is None or record.token != token:
            return False
        if self.tickets is not None:
            self.tickets.publish(run, waiter.index)
        return True

    # Runs in hand

    def outdated(self, namespace: str, run_id: str, revision: int) -> None:
        """Another replica has changed the run: read it again when it is needed next."""
        entry = self._entries.get((namespace, run_id))
        if entry is not None and entry.run is not None and entry.run.revision < revision and not entry.lock.locked():
            entry.run = None
            self._drop_if_done((namespace, run_id), entry)

    async def run(self, namespace: str, run_id: str) -> StoredRun:
        """The run as it is in hand, else as it is stored. Raises errors.NotFound and the store's errors."""
        key = (namespace, run_id)
        in_hand = self._in_hand(key)
        if in_hand is not None:
            return in_hand
        stored = await self.runs.load(namespace, run_id)
        in_hand = self._in_hand(key)
        return in_hand if in_hand is not None and in_hand.revision > stored.revision else stored

    def _in_hand(self, key: RunKey) -> StoredRun | None:
        entry = self._entries.get(key)
        return entry.run if entry is not None else None

    async def tick(self, key: RunKey) -> None:
        """Let what is due take effect."""
        try:
            _, run = await self._handle(*key, Tick())
        except errors.NotFound:
            return
        self.set_timer(key, run)

    def set_timer(self, key: RunKey, run: StoredRun) -> None:
        """Have the run ticked when something is due next."""
        time = next_timer(run.state)
        if time:
            self.timers.set(key, time)

    def resume(self, run: StoredRun) -> None:
        """Take up a run that was found unfinished, with whatever was left undone."""
        repair.resume(self, run)

    # Tasks

    def spawn(self, work: Coroutine[Any, Any, Any], *, heard: bool = False) -> asyncio.Task[Any]:
        """Run something to its end, whoever asked for it. `heard`: the caller takes its error."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done_heard if heard else self._done)
        return task

    def _done_heard(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when the caller is gone

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


class _Doubtful(Conflict):
    """After a lost answer the store holds something else than what was to be stored; that may still come or have been.

    Whoever tells so to its workers afterwards must look at what the run says of them.
    """


def cancellation(run: str, step: str, attempt: int, message: str, grace: int) -> worker_pb2.Cancellation:
    """What a worker is told when it should stop; `grace` in microseconds."""
    told = worker_pb2.Cancellation(run=run, step=step, attempt=attempt, message=message)
    told.grace.FromMicroseconds(grace)
    return told

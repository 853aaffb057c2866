"""The engine: one event at a time per run, from the core's decision to the commit to what follows from it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import structlog

from conveyor.core import errors
from conveyor.core.events import Continue, Event, Tick
from conveyor.core.model import Decision, Stop, waits_for_runs
from conveyor.core.transitions import apply, next_timer
from conveyor.engine import repair
from conveyor.engine.calls import CallKeeper
from conveyor.engine.clock import Now
from conveyor.engine.dispatch import Dispatch, Dispatcher, Send
from conveyor.engine.handover import Handover, cancellation
from conveyor.engine.lanes import LaneKeeper
from conveyor.engine.locks import LockKeeper
from conveyor.engine.metrics import EngineMetrics
from conveyor.engine.own import OwnRevisions
from conveyor.engine.sessions_view import SessionsView
from conveyor.engine.tickets_port import Tickets
from conveyor.engine.timers import RunKey, Timers
from conveyor.engine.workers import Held, Pool
from conveyor.state.runs import Runs, StoredRun, Unreadable
from conveyor.storage.v1 import storage_pb2
from conveyor.store.failpoints import failpoint
from conveyor.store.port import Conflict, StoreError, TooLarge, Unavailable, Uncertain

__all__ = ["Engine", "cancellation"]

log = structlog.get_logger("conveyor.engine")

_RUNS_KEPT = 16_384
"""States in hand; a sweep over many unfinished runs would otherwise read most of them each time."""

_SPEC_BYTES_KEPT = 64 << 20
"""Snapshots of runs in hand, as they are stored; in memory they take several times that."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


@dataclass(slots=True)
class _Entry:
    """A run that this process has in hand. `run` is None when it must be read again; `users` are at it or wait."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    run: StoredRun | None = None
    users: int = 0
    weight: int = 0


class Engine(Handover):
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
        self.sessions = sessions or SessionsView()
        super().__init__(pool, Dispatcher(pool, self.sessions, tickets), now)
        self.runs = runs
        self.timers = Timers(now)
        self.metrics = metrics or EngineMetrics()
        self.unattached: dict[str, dict[str, Held]] = {}  # by session, then token: known before their worker is back
        self.own_revisions = OwnRevisions()
        self.lanes = LaneKeeper(self, runs.lanes)
        self.locks = LockKeeper(self, runs.locks)
        self.calls = CallKeeper(self)
        self._entries: OrderedDict[RunKey, _Entry] = OrderedDict()
        self._weight = 0

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
                    self._weigh(entry, run)
                    current = True
                now = self.now()
                decision = apply(run.state, event, now, random.random())
                if decision.dirty:
                    decision, dispatch = self.dispatcher.dispatch(run, decision, now)
                    if claimed is not None:
                        dispatch.sends.append(claimed)
                    lane = await self.lanes.leave(run, decision)
                    failpoint("engine.before_commit")
                    try:
                        run = await self.runs.commit(run, decision, lane)
                    except Uncertain:
                        run = await self._look_for(run, decision, patient=patient)
                    entry.run = run
                    failpoint("engine.after_commit")
                    current = True
                    self._follow(key, run, decision, dispatch)
                    if lane is not None:
                        self.lanes.look_soon(run.head)
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
                    log.warning("commit_refused", run_id=key[1], of=type(event).__name__, error=str(error))
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

    async def _look_for(self, run: StoredRun, decision: Decision, *, patient: bool) -> StoredRun:
        """After a lost answer: the run, if the decision is stored; raises Conflict when something else is.

        Raises Uncertain only for those who don't wait: it may still take effect.
        """
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
            if len(self._entries) > _RUNS_KEPT or self._weight > _SPEC_BYTES_KEPT:
                self._evict()
        else:
            self._entries.move_to_end(key)
        return entry

    def _weigh(self, entry: _Entry, run: StoredRun) -> None:
        """Count what the run's snapshot takes, once."""
        if not entry.weight:
            entry.weight = run.spec.ByteSize()
            self._weight += entry.weight

    def _evict(self) -> None:
        """Forget an eighth of the states, those that were longest unused.

        Not those that somebody has or waits for: with two locks of one run, its events would overtake each other.
        """
        for key in list(itertools.islice(self._entries, len(self._entries) // 8)):
            if not self._entries[key].users:
                self._drop(key)

    def _drop(self, key: RunKey) -> None:
        self._weight -= self._entries.pop(key).weight

    def _drop_if_done(self, key: RunKey, entry: _Entry) -> None:
        """Forget a run that has ended or is not there, once nobody waits for it."""
        if not entry.users and (entry.run is None or entry.run.state.terminal) and self._entries.get(key) is entry:
            self._drop(key)

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
            self._weigh(entry, run)
        self._follow(key, run, decision, dispatch)
        self._drop_if_done(key, entry)
        self.metrics.run_created(run.head)
        if waits_for_runs(run.head):
            self.lanes.look_soon(run.head)
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
            for position, token in enumerate(decision.freed):
                # A result ends its own attempt first; those that end with it, by fail-fast, were not answered.
                tickets.ended(token, answered=bool(decision.disposition) and position == 0)
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
        self.locks.follow(run, decision)
        self.calls.follow(run, decision)
        self._stop_waiting(run, decision)
        for index in dispatch.waits:
            self.wait(run, index)
        if run.state.terminal:
            self.timers.forget(key)
        else:
            for time in decision.timers:
                self.timers.set(key, time)
        self.metrics.transition(run.state, decision)

    async def close(self) -> None:
        """Let what is under way come to its end within a second, then stop it."""
        self.locks.close()
        await super().close()

    def stop_run(self, run: StoredRun, stop: Stop) -> None:
        """Cancel the run of a step."""
        self.calls.stop(run, stop)

    # Runs in hand

    def outdated(self, namespace: str, run_id: str, revision: int) -> None:
        """Another replica has changed the run: read it again when it is needed next."""
        entry = self._entries.get((namespace, run_id))
        if entry is not None and entry.run is not None and entry.run.revision < revision and not entry.lock.locked():
            entry.run = None
            self._drop_if_done((namespace, run_id), entry)

    async def run(self, namespace: str, run_id: str) -> StoredRun:
        """The run as it is in hand, else as it is stored. Raises errors.NotFound, Unreadable and the store's errors."""
        key = (namespace, run_id)
        in_hand = self._in_hand(key)
        return in_hand if in_hand is not None else self._newest(key, await self.runs.load(namespace, run_id))

    async def take_in_hand(
        self, keys: Sequence[RunKey]
    ) -> AsyncGenerator[tuple[RunKey, StoredRun | errors.NotFound | Unreadable], None]:
        """Runs as they are in hand, else as they are stored and then in hand. Raises the store's errors."""
        unknown: list[RunKey] = []
        for key in keys:
            in_hand = self._in_hand(key)
            if in_hand is not None:
                yield key, in_hand
            else:
                unknown.append(key)
        async for key, found in self.runs.load_many(unknown):
            if not isinstance(found, StoredRun):
                yield key, found
                continue
            run = self._newest(key, found)
            if not run.state.terminal and key not in self._entries:
                entry = self._entry(key)
                entry.run = run
                self._weigh(entry, run)
            yield key, run

    def _newest(self, key: RunKey, stored: StoredRun) -> StoredRun:
        """What was read, or what came in hand meanwhile."""
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


class _Doubtful(Conflict):
    """After a lost answer the store holds something else than what was to be stored; that may still come or have been.

    Whoever tells so to its workers afterwards must look at what the run says of them.
    """

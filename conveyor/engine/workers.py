"""The pool: which workers are connected here, what they have, and which steps wait for them."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from conveyor.core.selectors import ANY, Selector, fulfils
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import worker_pb2

DriverKey = tuple[str, str]
"""Namespace and driver name."""

_RowKey = tuple[str, bool, Selector]
"""What workers must take: definition, whether it is a broadcast, and labels."""


class Outbox(Protocol):
    """Where a worker's stream takes what it must send. Neither method waits or raises."""

    def assign(self, token: str, assignment: bytes) -> None:
        """Send a serialized assignment, which has this token."""
        ...

    def stop(self, cancellation: worker_pb2.Cancellation) -> None:
        """Tell the worker to stop an attempt."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt that a worker has."""

    namespace: str
    run: str
    index: int


@dataclass(slots=True, eq=False)
class Worker:
    """One session: a worker as this process sees it; it survives a reconnect, with another outbox.

    `outbox` is None while no stream is open. `held` maps tokens to attempts, a claim that is being stored included.
    `reconciling`: it came back with more than `held` says so far; what it really has is being looked up. `listed` and
    `fresh` are the pool's: whether it is in the lists of the same names.
    """

    namespace: str
    driver: str
    session: str
    name: str
    slots: int
    definitions: frozenset[str] = frozenset()
    labels: dict[str, str] = field(default_factory=dict)
    sdk: str = ""
    connect_time: int = 0
    outbox: Outbox | None = None
    draining: bool = False
    held: dict[str, Held] = field(default_factory=dict)
    reconciling: bool = False
    listed: bool = False
    fresh: bool = False

    @property
    def connected(self) -> bool:
        """Whether it is there for more work, now or once it has a slot: its stream is open, and it does not drain."""
        return self.outbox is not None and not self.draining

    @property
    def free(self) -> bool:
        """Whether it may be given another attempt now."""
        return self.outbox is not None and not self.draining and len(self.held) < self.slots

    def takes(self, definition: str, broadcast: bool = False, selector: Selector = ANY) -> bool:
        """Whether it wants steps for resources of this definition, and they want it.

        Broadcasts only if it names the definition.
        """
        return takes(self, definition, broadcast, selector)


def takes(worker: Worker | storage_pb2.SessionRecord, definition: str, broadcast: bool, selector: Selector) -> bool:
    """The same of any replica's worker."""
    if (worker.definitions or broadcast) and definition not in worker.definitions:
        return False
    return not selector or fulfils(worker.labels, selector)


@dataclass(frozen=True, slots=True)
class Waiter:
    """A queued step that waits for a worker."""

    namespace: str
    driver: str
    definition: str
    run: str
    index: int
    broadcast: bool = False
    selector: Selector = ANY

    @property
    def row(self) -> _RowKey:
        """Those with the same can go to the same workers."""
        return self.definition, self.broadcast, self.selector


class _Row:
    """Steps that the same workers can take, in the order in which they became ready.

    A step that leaves from the middle only leaves a mark: its place is dropped when it comes to the front, or when
    half of all places are such.
    """

    __slots__ = ("_left", "_places")

    def __init__(self) -> None:
        self._places: list[tuple[int, int, Waiter]] = []
        self._left: set[int] = set()

    def __len__(self) -> int:
        return len(self._places) - len(self._left)

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for *_, waiter in self.places())

    def places(self) -> Iterator[tuple[int, int, Waiter]]:
        """All places, in no particular order; the smaller goes first."""
        return (place for place in self._places if place[1] not in self._left)

    def push(self, ready_time: int, order: int, waiter: Waiter) -> None:
        heapq.heappush(self._places, (ready_time, order, waiter))

    def first(self) -> tuple[int, int, Waiter]:
        """The place at the front; the row must not be empty."""
        while self._places[0][1] in self._left:
            self._left.discard(heapq.heappop(self._places)[1])
        return self._places[0]

    def leave(self, order: int) -> None:
        self._left.add(order)
        if len(self._left) * 2 > len(self._places):
            self._places = [place for place in self._places if place[1] not in self._left]
            heapq.heapify(self._places)
            self._left.clear()


@dataclass(slots=True)
class _Belt:
    """All workers of one driver, and all steps that wait for it.

    `free` are those with a free slot. `fresh` are those among them that may find something in the rows: the others
    have looked since they became free, and since the rows were there, so that idle workers and steps that are not for
    them cost nothing. Both may hold workers that are not free any more.
    """

    workers: dict[str, Worker] = field(default_factory=dict)
    free: deque[Worker] = field(default_factory=deque)
    fresh: deque[Worker] = field(default_factory=deque)
    rows: dict[_RowKey, _Row] = field(default_factory=dict)

    def refresh(self, worker: Worker) -> None:
        """The worker may find something in the rows."""
        if not worker.fresh:
            worker.fresh = True
            self.fresh.append(worker)

    def oldest(self, worker: Worker) -> Waiter | None:
        """The step that has waited longest among those that the worker takes."""
        first = min((row.first() for key, row in self.rows.items() if worker.takes(*key)), default=None)
        return first[2] if first is not None else None


class Pool:
    """All workers that are connected to this process. Nothing here waits, so nothing interleaves."""

    def __init__(self) -> None:
        self._belts: dict[DriverKey, _Belt] = {}
        self._by_session: dict[str, Worker] = {}
        self._by_token: dict[str, Worker] = {}
        self._waiting: dict[str, dict[int, tuple[Waiter, int, int]]] = {}  # by run, then step
        self._order = itertools.count()

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._by_session.values())

    # Workers

    def add(self, worker: Worker) -> None:
        """Know a session."""
        belt = self._belts.setdefault((worker.namespace, worker.driver), _Belt())
        belt.workers[worker.session] = worker
        self._by_session[worker.session] = worker
        for token in worker.held:
            self._by_token[token] = worker
        self.freed(worker)

    def remove(self, worker: Worker) -> None:
        """Forget a session with all that it holds."""
        belt = self._belts.get((worker.namespace, worker.driver))
        if belt is not None and belt.workers.pop(worker.session, None) is not None:
            if worker.listed:
                belt.free.remove(worker)
                worker.listed = False
            if worker.fresh:
                belt.fresh.remove(worker)
                worker.fresh = False
            self._drop_if_idle((worker.namespace, worker.driver), belt)
        self._by_session.pop(worker.session, None)
        for token in worker.held:
            self._by_token.pop(token, None)
        worker.held.clear()

    def _drop_if_idle(self, key: DriverKey, belt: _Belt) -> None:
        if not belt.workers and not belt.rows:
            self._belts.pop(key, None)

    def session(self, session: str) -> Worker | None:
        """The worker of a session, if it belongs to this process."""
        return self._by_session.get(session)

    def holder(self, token: str) -> Worker | None:
        """The worker that has the attempt of this token."""
        return self._by_token.get(token)

    def workers(self, namespace: str, driver: str) -> list[Worker]:
        """The driver's sessions, those without an open stream included."""
        belt = self._belts.get((namespace, driver))
        return list(belt.workers.values()) if belt is not None else []

    def freed(self, worker: Worker) -> None:
        """The worker may have a free slot now: connected, resized or relieved."""
        if not worker.free or worker.session not in self._by_session:
            return
        belt = self._belts[(worker.namespace, worker.driver)]
        if not worker.listed:
            belt.free.append(worker)
            worker.listed = True
        if belt.rows:
            belt.refresh(worker)

    # Attempts

    def reserve(
        self, namespace: str, driver: str, definition: str, broadcast: bool = False, selector: Selector = ANY
    ) -> Worker | None:
        """A worker with a free slot that takes such a step, unless others like it wait for one already.

        The one that has been free for longest; it goes to the end of the row.
        """
        belt = self._belts.get((namespace, driver))
        if belt is None or (belt.rows and (definition, broadcast, selector) in belt.rows):
            return None
        for _ in range(len(belt.free)):
            worker = belt.free.popleft()
            if not worker.free:
                worker.listed = False
                continue
            belt.free.append(worker)
            if worker.takes(definition, broadcast, selector):
                return worker
        return None

    def hold(self, worker: Worker, token: str, held: Held) -> None:
        """The worker has this attempt, or will when its claim is stored."""
        worker.held[token] = held
        self._by_token[token] = worker

    def release(self, token: str) -> Worker | None:
        """The attempt has ended, or its claim was not stored. Returns the worker that had it."""
        worker = self._by_token.pop(token, None)
        if worker is not None:
            worker.held.pop(token, None)
            self.freed(worker)
        return worker

    # Steps that wait

    def wait(self, waiter: Waiter, ready_time: int, revision: int = 0) -> None:
        """Put a step into the row of its driver, by the time since which it waits; once.

        `revision` is that of the state in which it waits.
        """
        steps = self._waiting.setdefault(waiter.run, {})
        known = steps.get(waiter.index)
        if known is not None:
            steps[waiter.index] = (known[0], known[1], max(revision, known[2]))
            return
        order = next(self._order)
        steps[waiter.index] = (waiter, order, revision)
        belt = self._belts.setdefault((waiter.namespace, waiter.driver), _Belt())
        row = belt.rows.get(waiter.row)
        if row is None:
            row = belt.rows[waiter.row] = _Row()
            for worker in belt.free:
                if worker.takes(*waiter.row):
                    belt.refresh(worker)
        row.push(ready_time, order, waiter)

    def leave(self, run: str, index: int) -> Waiter | None:
        """The step waits no more. Returns its waiter, if it was in a row."""
        steps = self._waiting.get(run)
        found = steps.pop(index, None) if steps is not None else None
        if steps is None or found is None:
            return None
        if not steps:
            del self._waiting[run]
        waiter, order, _ = found
        key = (waiter.namespace, waiter.driver)
        belt = self._belts[key]
        row = belt.rows[waiter.row]
        row.leave(order)
        if not row:
            del belt.rows[waiter.row]
            self._drop_if_idle(key, belt)
        return waiter

    def match(self, namespace: str, driver: str) -> tuple[Waiter, Worker] | None:
        """A free worker, and the step that has waited longest among those that it takes."""
        belt = self._belts.get((namespace, driver))
        if belt is None:
            return None
        while belt.fresh:
            worker = belt.fresh.popleft()
            worker.fresh = False
            waiter = belt.oldest(worker) if worker.free else None
            if waiter is not None:
                belt.refresh(worker)
                self.leave(waiter.run, waiter.index)
                return waiter, worker
        return None

    def waiting(self, namespace: str, driver: str) -> int:
        """How many steps wait for the driver."""
        belt = self._belts.get((namespace, driver))
        return sum(len(row) for row in belt.rows.values()) if belt is not None else 0

    def waiters(self, namespace: str, driver: str) -> list[Waiter]:
        """The steps that wait for the driver."""
        belt = self._belts.get((namespace, driver))
        return [waiter for row in belt.rows.values() for waiter in row] if belt is not None else []

    def ahead(self, namespace: str, driver: str, run: str) -> dict[int, int]:
        """Of each step of the run that waits for the driver: how many others go first, by the step's index.

        Those that want other workers than it are not counted, as far as it is known who they are.
        """
        belt = self._belts.get((namespace, driver))
        if belt is None or run not in self._waiting:
            return {}
        found: dict[int, int] = {}
        for key in {waiter.row for waiter, *_ in self._waiting[run].values() if waiter.driver == driver}:
            takers = [worker for worker in belt.workers.values() if worker.connected and worker.takes(*key)]
            rivals = [row for name, row in belt.rows.items() if not takers or any(w.takes(*name) for w in takers)]
            places = sorted(place for row in rivals for place in row.places())
            for before, (*_, waiter) in enumerate(places):
                if waiter.run == run and waiter.row == key:
                    found[waiter.index] = before
        return found

    def waiting_runs(self) -> set[tuple[str, str]]:
        """Namespace and id of the runs that have steps in a row."""
        return {(waiter.namespace, run) for run, steps in self._waiting.items() for waiter, *_ in steps.values()}

    def waiting_steps(self, run: str) -> Collection[int]:
        """The run's steps that are in a row."""
        return self._waiting.get(run, ())

    def waited_before(self, run: str, revision: int) -> list[int]:
        """The run's steps that are in a row because of a state older than the revision."""
        return [index for index, (_, _, since) in self._waiting.get(run, {}).items() if since < revision]

"""The store's changes of runs, revision by revision, to everybody in this process who follows them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain

import structlog
from google.protobuf.message import DecodeError

from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Changes, Reset, Store, StoreError
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.watch")

RunKey = tuple[str, str]
"""Namespace and run id."""

_HISTORY = 4096  # revisions


@dataclass(slots=True)
class RunDelta:
    """What one revision did to one run. `head` is None when only steps were written, which no transition does."""

    namespace: str
    run: str
    revision: int
    head: storage_pb2.RunHead | None = None
    deleted: storage_pb2.RunHead | None = None
    steps: list[storage_pb2.StepRecord] = field(default_factory=list)
    expanded: set[str] = field(default_factory=set)
    """The steps whose matrix was expanded: their instances are new, also those that have no record yet."""
    view: run_pb2.RunChange | None = None
    """The same for subscribers, made once for all of them."""


@dataclass(frozen=True, slots=True)
class Revision:
    """All runs that one revision changed."""

    revision: int
    runs: Mapping[RunKey, RunDelta]


Follower = Callable[[Revision | Reset], None]
"""Takes each revision in order; must not wait or raise."""


def run_of(key: str) -> RunKey:
    """Namespace and id of the run that a key below keys.RUNS belongs to."""
    namespace, _, rest = key[len(keys.RUNS) :].partition("/")
    return namespace, rest.partition("/")[0]


def decode(changes: Changes) -> Revision:
    """The runs that a revision changed. A record that cannot be read is left out and logged."""
    runs: dict[RunKey, RunDelta] = {}
    for change in changes.changes:
        try:
            namespace, run, step = keys.parse_run_key(change.key)
            delta = runs.get((namespace, run))
            if delta is None:
                delta = runs[(namespace, run)] = RunDelta(namespace, run, changes.revision)
            if change.value is None:
                if not step:
                    delta.deleted = storage_pb2.RunHead.FromString(change.prior or b"")
            elif step:
                record = storage_pb2.StepRecord.FromString(change.value)
                delta.steps.append(record)
                # It is written when its matrix is expanded, and when it ends, which may be at once.
                if record.instances and record.end_time in (0, record.queue_time):
                    delta.expanded.add(record.step)
            else:
                delta.head = storage_pb2.RunHead.FromString(change.value)
        except (DecodeError, ValueError) as error:
            log.error("record_not_readable", key=change.key, error=str(error))
    return Revision(changes.revision, runs)


class Feed:
    """One watch on the store for the whole process, with a short history for those who resume."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._followers: set[Follower] = set()
        self._run_followers: dict[RunKey, set[Follower]] = {}
        self._raw_followers: set[Callable[[Changes], None]] = set()
        self._history: deque[Changes] = deque(maxlen=_HISTORY)
        self._start = 0
        self.revision = 0
        self._advanced = asyncio.Event()

    @property
    def epoch(self) -> str:
        """The store's epoch: revisions of another one mean nothing."""
        return self._store.epoch

    async def start(self) -> None:
        """Find where to begin. Raises the store's errors."""
        self._start = self.revision = (await self._store.list(keys.ACTIVE, limit=1, keys_only=True)).revision

    async def run(self) -> None:
        """Follow the store for ever."""
        while True:
            try:
                async with aclosing(self._store.watch(keys.RUNS, self.revision)) as items:
                    async for item in items:
                        self._take(item)
            except StoreError as error:
                log.warning("watch_interrupted", error=str(error))
                await asyncio.sleep(0.5)

    def _take(self, item: Changes | Reset) -> None:
        self.revision = max(self.revision, item.revision)
        if isinstance(item, Reset):
            self._history.clear()
            self._start = item.revision
            for follower in [*self._followers, *chain.from_iterable(self._run_followers.values())]:
                follower(item)
        else:
            self._history.append(item)
            for raw in self._raw_followers:
                raw(item)
            # Decoding is for those who look at it: without subscribers a revision costs next to nothing.
            if self._followers or self._followed(item):
                revision = decode(item)
                for follower in list(self._followers):
                    follower(revision)
                for key in revision.runs:
                    for follower in list(self._run_followers.get(key, ())):
                        follower(revision)
        self._advanced.set()

    def _followed(self, changes: Changes) -> bool:
        """Whether anybody follows one of the runs that changed."""
        return bool(self._run_followers) and any(
            run_of(change.key) in self._run_followers for change in changes.changes
        )

    def follow(self, follower: Follower, run: RunKey | None = None) -> None:
        """From now on `follower` gets every revision, or those that concern one run, whatever else they concern."""
        (self._followers if run is None else self._run_followers.setdefault(run, set())).add(follower)

    def leave(self, follower: Follower, run: RunKey | None = None) -> None:
        """`follower` gets no more."""
        if run is None:
            self._followers.discard(follower)
        elif (followers := self._run_followers.get(run)) is not None:
            followers.discard(follower)
            if not followers:
                del self._run_followers[run]

    def follow_raw(self, follower: Callable[[Changes], None]) -> None:
        """As `follow`, before decoding."""
        self._raw_followers.add(follower)

    def reaches_back_to(self, revision: int) -> bool:
        """Whether the history holds everything after that revision."""
        full = len(self._history) == self._history.maxlen
        return revision >= (self._history[0].revision if full else self._start)

    def since(self, revision: int) -> list[Revision]:
        """All revisions after that one up to now, of what the history holds."""
        return [decode(changes) for changes in self._history if changes.revision > revision]

    async def reached(self, revision: int) -> None:
        """Wait until the feed has seen this revision."""
        while self.revision < revision:
            self._advanced.clear()
            await self._advanced.wait()

"""WatchRun and WatchRuns: a snapshot, then every change in order, or an explicit reset or skip."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from conveyor.core import errors
from conveyor.core.model import TERMINAL_RUN
from conveyor.state.runs import Runs
from conveyor.state.views import basic_run, full_run
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Reset
from conveyor.v1 import run_pb2, run_service_pb2
from conveyor.watch import cursor as cursors
from conveyor.watch.feed import Feed, RunDelta, RunKey
from conveyor.watch.steps import step_runs
from conveyor.watch.subscription import Subscription

HEARTBEAT = 15.0
"""Seconds of silence after which a subscriber hears that the stream lives."""

_SNAPSHOT_BYTES = 1 << 20
_HEADS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a subscriber wants; empty fields want all."""

    namespace: str
    pipeline: str = ""
    definition: str = ""
    resource: str = ""
    states: Collection[int] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    def wants(self, head: storage_pb2.RunHead) -> bool:
        """Whether the run matches, its state included."""
        return (not self.states or head.state in self.states) and self.wants_apart_from_state(head)

    def wants_apart_from_state(self, head: storage_pb2.RunHead) -> bool:
        """Whether the run matches in what never changes."""
        return (
            head.namespace == self.namespace
            and (not self.pipeline or head.pipeline == self.pipeline)
            and (not self.definition or head.definition == self.definition)
            and (not self.resource or head.resource == self.resource)
            and all(head.labels.get(key) == value for key, value in self.labels.items())
        )


class Hub:
    """Serves subscribers from one feed."""

    def __init__(self, feed: Feed, runs: Runs, now: Callable[[], int]) -> None:
        self._feed = feed
        self._runs = runs
        self._now = now
        self._open: set[Subscription] = set()

    @property
    def subscribers(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def close(self) -> None:
        """End all streams: each raises errors.ShuttingDown."""
        for subscription in self._open:
            subscription.close()

    # One run

    async def watch_run(
        self, namespace: str, run_id: str, cursor: str = ""
    ) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
        """One run as it is, then every change, its terminal state last.

        Raises errors.NotFound, errors.InvalidCursor and the store's errors.
        """
        position = cursors.parse(cursor) if cursor else None
        key = (namespace, run_id)
        with self._subscribed(lambda delta: (delta.namespace, delta.run) == key, key) as subscription:
            run = await self._runs.load(namespace, run_id)
            seen = self._resumable(position, run.revision)
            if seen < 0:
                if position is not None:
                    yield run_service_pb2.WatchRunResponse(reset=_reset_message())
                seen = run.revision
                snapshot = run_pb2.RunSnapshot(runs=[full_run(run.head, seen, run.spec, run.state.steps)])
                yield run_service_pb2.WatchRunResponse(snapshot=snapshot)
                yield run_service_pb2.WatchRunResponse(snapshot_end=run_pb2.SnapshotEnd(), cursor=self._cursor(seen))
                if run.state.terminal:
                    return
            elif run.state.terminal and run.revision <= seen:
                return
            else:
                self._replay(subscription, seen)
            async for response, terminal in self._follow_run(subscription, namespace, run_id, seen):
                yield response
                if terminal:
                    return

    async def _follow_run(
        self, subscription: Subscription, namespace: str, run_id: str, seen: int
    ) -> AsyncIterator[tuple[run_service_pb2.WatchRunResponse, bool]]:
        while True:
            item = await subscription.next(HEARTBEAT)
            if item is None:
                seen = max(seen, self._feed.revision)
                yield run_service_pb2.WatchRunResponse(heartbeat=self._heartbeat(), cursor=self._cursor(seen)), False
                continue
            if isinstance(item, Reset):
                run = await self._runs.load(namespace, run_id)
                seen = run.revision
                snapshot = run_pb2.RunSnapshot(runs=[full_run(run.head, seen, run.spec, run.state.steps)])
                end = run_pb2.SnapshotEnd()
                yield run_service_pb2.WatchRunResponse(reset=_reset_message()), False
                yield run_service_pb2.WatchRunResponse(snapshot=snapshot), False
                yield (
                    run_service_pb2.WatchRunResponse(snapshot_end=end, cursor=self._cursor(seen)),
                    run.state.terminal,
                )
                continue
            revision, deltas = item
            if revision <= seen:
                continue
            seen = revision
            position = self._cursor(seen)
            for delta, skipped in deltas:
                if delta.deleted is not None:
                    gone = run_pb2.RunsDeleted(runs=[basic_run(delta.deleted, revision)])
                    yield run_service_pb2.WatchRunResponse(deleted=gone, cursor=position), True
                elif delta.head is not None:
                    changes = run_pb2.RunChanges(changes=[await self._change(delta, skipped)])
                    yield (
                        run_service_pb2.WatchRunResponse(changes=changes, cursor=position),
                        delta.head.state in TERMINAL_RUN,
                    )

    # Many runs

    async def watch_runs(self, wanted: RunFilter, cursor: str = "") -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        """The matching unfinished runs as they are, then every change of every matching run, without end.

        A run that leaves the filter by its state is shown a last time. Raises errors.InvalidCursor and the store's
        errors.
        """
        position = cursors.parse(cursor) if cursor else None

        def wants(delta: RunDelta) -> bool:
            head = delta.head or delta.deleted
            return head is not None and wanted.wants_apart_from_state(head)

        with self._subscribed(wants) as subscription:
            current = self._feed.revision
            if position is not None and position[1] > current:
                # The feed hears of runs alone, and may lag: whether this is in the future the store knows.
                current = await self._runs.revision()
            seen = self._resumable(position, current)
            shown: set[str] = set()
            known: dict[str, int] = {}
            if seen >= 0:
                self._replay(subscription, seen)
            else:
                if position is not None:
                    yield run_service_pb2.WatchRunsResponse(reset=_reset_message())
                active, seen = await self._active(wanted)
                async for response in self._snapshot(wanted, active, seen, known):
                    yield response
                shown.update(known)
            newest_known = max(known.values(), default=0)
            while True:
                item = await subscription.next(HEARTBEAT)
                if item is None:
                    # Nothing waits: all that the feed has seen was of no interest. Who resumes need not go through it.
                    seen = max(seen, self._feed.revision)
                    told = self._cursor(seen) if seen >= newest_known else ""
                    yield run_service_pb2.WatchRunsResponse(heartbeat=self._heartbeat(), cursor=told)
                    continue
                if isinstance(item, Reset):
                    yield run_service_pb2.WatchRunsResponse(reset=_reset_message())
                    known.clear()
                    active, seen = await self._active(wanted)
                    async for response in self._snapshot(wanted, active, seen, known):
                        yield response
                    shown = set(known)
                    newest_known = max(known.values(), default=0)
                    continue
                revision, deltas = item
                # Each by its own revision: merged ones may be older than what the snapshot has shown of their runs.
                fresh = [pair for pair in deltas if pair[0].revision > max(seen, known.get(pair[0].run, 0))]
                if revision <= seen:
                    continue
                seen = revision
                if revision >= newest_known:
                    known.clear()
                messages = await self._many(wanted, fresh, shown)
                if messages and seen >= newest_known:
                    messages[-1].cursor = self._cursor(seen)
                for message in messages:
                    yield message

    async def _many(
        self, wanted: RunFilter, deltas: list[tuple[RunDelta, int]], shown: set[str]
    ) -> list[run_service_pb2.WatchRunsResponse]:
        """What is wanted of one revision: all its changes in one message, what it deleted in another."""
        changes: list[run_pb2.RunChange] = []
        deleted: list[run_pb2.Run] = []
        for delta, skipped in deltas:
            if delta.deleted is not None:
                if wanted.wants(delta.deleted) or delta.run in shown:
                    deleted.append(basic_run(delta.deleted, delta.revision))
                shown.discard(delta.run)
            elif delta.head is not None:
                wants = wanted.wants(delta.head)
                if wants or delta.run in shown:
                    changes.append(await self._change(delta, skipped))
                if wants and wanted.states and delta.head.state not in TERMINAL_RUN:
                    shown.add(delta.run)
                else:
                    shown.discard(delta.run)
        messages = []
        if changes:
            messages.append(run_service_pb2.WatchRunsResponse(changes=run_pb2.RunChanges(changes=changes)))
        if deleted:
            messages.append(run_service_pb2.WatchRunsResponse(deleted=run_pb2.RunsDeleted(runs=deleted)))
        return messages

    async def _active(self, wanted: RunFilter) -> tuple[list[str], int]:
        """The unfinished runs of the namespace, and the revision at which they were: changes go on from there.

        A feed that lags behind it has older ones to tell, also of runs that have ended by then: nobody is shown them.
        """
        active, revision = await self._runs.active_at()
        return [run for namespace, run in active if namespace == wanted.namespace], revision

    async def _snapshot(
        self, wanted: RunFilter, active: Sequence[str], revision: int, known: dict[str, int]
    ) -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        """Those of the runs that match; `known` gets the revision at which each was read.

        Some may be newer than the revision. Until the feed has told of all of that there is no position to go on from
        later: another stream would not know which changes the snapshot has shown already.
        """
        part: list[run_pb2.Run] = []
        size = 0
        for start in range(0, len(active), _HEADS_AT_ONCE):
            for found in await self._runs.heads(wanted.namespace, active[start : start + _HEADS_AT_ONCE]):
                if found is None or not wanted.wants(found[0]):
                    continue
                view = basic_run(*found)
                known[view.id] = found[1]
                size += view.ByteSize()
                if part and size > _SNAPSHOT_BYTES:
                    yield run_service_pb2.WatchRunsResponse(snapshot=run_pb2.RunSnapshot(runs=part))
                    part, size = [], view.ByteSize()
                part.append(view)
        if part:
            yield run_service_pb2.WatchRunsResponse(snapshot=run_pb2.RunSnapshot(runs=part))
        position = self._cursor(revision) if revision >= max(known.values(), default=0) else ""
        yield run_service_pb2.WatchRunsResponse(snapshot_end=run_pb2.SnapshotEnd(), cursor=position)

    # Common

    @contextlib.contextmanager
    def _subscribed(self, wanted: Callable[[RunDelta], bool], run: RunKey | None = None) -> Iterator[Subscription]:
        """A subscription that the feed serves from before anything is read."""
        subscription = Subscription(wanted)
        take = subscription.take
        self._feed.follow(take, run)
        self._open.add(subscription)
        try:
            yield subscription
        finally:
            self._open.discard(subscription)
            self._feed.leave(take, run)

    def _resumable(self, position: tuple[str, int] | None, current: int) -> int:
        """The revision to go on from, or -1 when it takes a snapshot."""
        if position is None or position[0] != self._feed.epoch:
            return -1
        revision = position[1]
        reachable = revision <= max(current, self._feed.revision) and self._feed.reaches_back_to(revision)
        return revision if reachable else -1

    def _replay(self, subscription: Subscription, seen: int) -> None:
        """Have the subscription begin after a position; what it took meanwhile is part of the history."""
        subscription.clear()
        for revision in self._feed.since(seen):
            subscription.take(revision)

    async def _change(self, delta: RunDelta, skipped: int) -> run_pb2.RunChange:
        if delta.view is None and delta.head is not None:
            head = delta.head
            view = run_pb2.RunChange(run=basic_run(head, delta.revision))
            if delta.steps:
                with contextlib.suppress(errors.NotFound):  # deleted since: the run's states are in its head
                    pipeline = (await self._runs.spec(delta.namespace, delta.run)).pipeline
                    view.steps.extend(step_runs(pipeline, head, delta.steps, delta.expanded))
            delta.view = view
        change = delta.view or run_pb2.RunChange()
        if skipped:
            copy = run_pb2.RunChange()
            copy.CopyFrom(change)
            copy.skipped = skipped
            return copy
        return change

    def _cursor(self, revision: int) -> str:
        return cursors.encode(self._feed.epoch, revision)

    def _heartbeat(self) -> run_pb2.WatchHeartbeat:
        heartbeat = run_pb2.WatchHeartbeat()
        heartbeat.time.FromMicroseconds(self._now())
        return heartbeat


def _reset_message() -> run_pb2.WatchReset:
    return run_pb2.WatchReset(message="the history since the cursor is not here any more; a snapshot follows")

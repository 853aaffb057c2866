"""The repository of resource definitions, pipelines, resources and schedules.

Every change is one commit: the object, its generation in the history, the record of the request, and the run that
it starts. What a change rests on (the definition, the pipeline) comes from a cache and is guarded by its revision, so
that the usual change reads nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple

from google.protobuf.message import Message

from conveyor.core import errors, limits
from conveyor.state import keys, views
from conveyor.state.admission import Admission, Admitted
from conveyor.state.cache import Versioned
from conveyor.state.commits import Committer, Draft, Stale
from conveyor.state.kinds import DEFINITION, Kind, M
from conveyor.state.lookup import Lookup, missing, title
from conveyor.state.requests import Remembered, Slip
from conveyor.state.runs import Runs
from conveyor.state.schedule_changes import ScheduleChanges
from conveyor.store.port import Conflict, Guard, Put, Store, StoreError, Uncertain
from conveyor.v1 import apply_pb2, resource_definition_pb2, resource_pb2, run_pb2, schedule_pb2

_LIST_CHUNK = 64
_MOST_SCANNED = 2000
_DELETE_TRIES = 8


class Mode(Enum):
    """What a write expects to find."""

    CREATE = "create"
    UPDATE = "update"
    APPLY = "apply"


@dataclass(frozen=True, slots=True)
class Written(Generic[M]):
    """What a write came to. `run` is the run that it started."""

    item: Versioned[M]
    outcome: apply_pb2.ApplyOutcome.ValueType
    run: run_pb2.Run | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[M]):
    """Part of a list. `after` is the key to go on after; empty at the end."""

    items: list[Versioned[M]]
    after: str


class _Beside(NamedTuple):
    """What must hold for an object, what its commit stores beside it, and the run that it starts."""

    guards: Sequence[Guard] = ()
    puts: Sequence[Put] = ()
    admitted: Admitted | None = None


def now_micros() -> int:
    """The server's time in microseconds since 1970."""
    return time.time_ns() // 1000


class Objects:
    """The repository. All methods raise the store's errors besides those that they name."""

    def __init__(
        self,
        store: Store,
        lookup: Lookup,
        admission: Admission,
        committer: Committer,
        runs: Runs,
        now: Callable[[], int] = now_micros,
    ) -> None:
        self._store = store
        self._lookup = lookup
        self._admission = admission
        self._schedule_changes = ScheduleChanges(store, lookup, admission)
        self._committer = committer
        self._runs = runs
        self._now = now

    # Reading

    async def get(self, kind: Kind[M], key: str, generation: int = 0) -> Versioned[M]:
        """The object as it is, or as it was in a generation that is kept. Raises errors.NotFound."""
        if not generation:
            current = await self._lookup.read(kind, key, fresh=True)
            if current is None:
                raise missing(kind, key)
            return current
        kv = await self._store.get(keys.generation(key, generation))
        if kv is None:
            raise errors.NotFound(f"{title(kind, key)} has no generation {generation}, or no longer")
        return Versioned(kind.decode(kv.value), kv.mod_revision)

    async def page(
        self, kind: Kind[M], prefix: str, after: str, size: int, labels: Mapping[str, str] | None = None
    ) -> Page[M]:
        """Up to `size` objects below the prefix, after the key `after`, that have all of the labels.

        Bounded in bytes and in work: a page may be short, even empty, and yet not the last.
        """
        items: list[Versioned[M]] = []
        taken = scanned = 0
        while True:
            # With a filter most of what is read may be passed over: read on in large steps.
            chunk = _LIST_CHUNK if labels else min(_LIST_CHUNK, size - len(items))
            listing = await self._store.list(prefix, after, chunk)
            for kv in listing.items:
                item = kind.decode(kv.value)
                if not labels or all(item.labels.get(key) == value for key, value in labels.items()):
                    taken += len(kv.value)
                    if items and (taken > limits.PAGE_BYTES or len(items) == size):
                        return Page(items, after)
                    items.append(Versioned(item, kv.mod_revision))
                after = kv.key
            scanned += len(listing.items)
            if not listing.more:
                return Page(items, "")
            if len(items) == size or scanned >= _MOST_SCANNED:
                return Page(items, after)

    # Writing

    async def write(
        self, kind: Kind[M], item: M, mode: Mode, slip: Slip | None = None, *, validate_only: bool = False
    ) -> Written[M]:
        """Create, update or apply a validated object.

        Raises errors.AlreadyExists (create), errors.NotFound (update), errors.EtagMismatch (when the object has an
        etag that is not the current one), errors.InvalidSchema, what `Admission.change` and `Committer.run` raise.
        """
        written = kind.written(item)
        key = kind.key(written)
        etag = "" if mode is Mode.CREATE else item.etag
        if isinstance(written, resource_definition_pb2.ResourceDefinition):
            await self._admission.schemas.check_schema(written.schema, "resource_definition.schema")

        async def draft(fresh: bool, slip: Slip | None) -> Draft[Written[M]]:
            if mode is Mode.CREATE:
                if fresh and await self._lookup.read(kind, key, fresh=True) is not None:
                    raise _taken(kind, key)
                return await self._change(kind, key, None, written, slip, fresh=fresh, create=True)
            current = await self._lookup.read(kind, key, fresh=fresh)
            if current is None:
                if mode is Mode.UPDATE:
                    raise missing(kind, key)
                if etag:
                    raise errors.EtagMismatch(f"{title(kind, key)} does not exist any more")
            elif etag and etag != views.etag(current.mod_revision):
                raise errors.EtagMismatch(f"{title(kind, key)} has changed since")
            elif kind.written(current.object) == written:
                if not fresh:
                    raise Stale  # only the store can say that nothing has changed
                return _no_change(key, current, slip)
            return await self._change(kind, key, current, written, slip, fresh=fresh)

        async def again(before: Remembered) -> Written[M]:
            return await self._again(kind, written.namespace, before)

        return await self._committer.run(draft, slip, again, validate_only=validate_only)

    async def _change(
        self,
        kind: Kind[M],
        key: str,
        current: Versioned[M] | None,
        written: M,
        slip: Slip | None,
        *,
        fresh: bool,
        create: bool = False,
    ) -> Draft[Written[M]]:
        """The object's next generation, and the run of a resource."""
        item = kind.new()
        item.CopyFrom(written)
        now = self._now()
        if current is None:
            item.uid, item.generation = str(uuid.uuid4()), 1
            item.create_time.FromMicroseconds(now)
        else:
            item.uid, item.generation = current.object.uid, current.object.generation + 1
            item.create_time.CopyFrom(current.object.create_time)
            now = max(now, current.object.update_time.ToMicroseconds())
        item.update_time.FromMicroseconds(now)
        value = kind.encode(item)
        generation = keys.generation(key, item.generation)
        before = None if current is None else current.object
        beside: _Beside = await self._beside(item, before, now, fresh=fresh)
        admitted = beside.admitted
        guards = [Guard(key, 0 if current is None else current.mod_revision), *beside.guards]
        if slip is not None:
            guards.insert(0, slip.guard)
        puts = [Put(key, value), Put(generation, value), *beside.puts]
        if slip is not None:
            puts.append(slip.put(key, item.generation, "" if admitted is None else admitted.prepared.run_id))
        outcome = apply_pb2.APPLY_OUTCOME_CREATED if current is None else apply_pb2.APPLY_OUTCOME_CHANGED

        async def done(revision: int) -> Written[M]:
            stored = Versioned(item, revision)
            if revision:
                self._lookup.remember(key, stored, len(value))
            run = None if admitted is None else await self._admission.launched(admitted, revision)
            return Written(stored, outcome, run)

        def undo() -> None:
            if admitted is not None:
                self._admission.abandoned(admitted)

        forgotten = item.generation - limits.GENERATIONS
        return Draft(
            guards,
            puts,
            witness=(generation, value),
            done=done,
            undo=undo,
            deletes=(keys.generation(key, forgotten),) if forgotten > 0 else (),
            clash=(key, _taken(kind, key)) if create else None,
        )

    async def _beside(self, item: Message, before: Message | None, now: int, *, fresh: bool) -> _Beside:
        """What belongs to the commit of the object."""
        if isinstance(item, schedule_pb2.Schedule):
            assert before is None or isinstance(before, schedule_pb2.Schedule)
            return _Beside(*await self._schedule_changes.change(item, before, now, fresh=fresh))
        if isinstance(item, resource_pb2.Resource):
            guards, admitted = await self._admission.change(item, fresh=fresh)
            return _Beside(guards, () if admitted is None else admitted.puts, admitted)
        return _Beside()

    async def _again(self, kind: Kind[M], namespace: str, before: Remembered) -> Written[M]:
        """The answer to a request that had its effect before."""
        kv = await self._store.get(keys.generation(before.target, before.generation))
        if kv is None:
            raise errors.NotFound(f"{title(kind, before.target)}, which this request wrote, has been deleted")
        # A request that changed something wrote its record and the generation in one commit.
        if kv.mod_revision != before.revision:
            outcome = apply_pb2.APPLY_OUTCOME_UNCHANGED
        elif before.generation == 1:
            outcome = apply_pb2.APPLY_OUTCOME_CREATED
        else:
            outcome = apply_pb2.APPLY_OUTCOME_CHANGED
        run: run_pb2.Run | None = None
        if before.run and (found := (await self._runs.heads(namespace, [before.run]))[0]) is not None:
            run = views.basic_run(*found)
        return Written(Versioned(kind.decode(kv.value), kv.mod_revision), outcome, run)

    # Deleting

    async def delete(self, kind: Kind[M], key: str, etag: str = "", *, validate_only: bool = False) -> Versioned[M]:
        """Delete an object with its history; returns it as it was.

        Raises errors.NotFound, errors.EtagMismatch, errors.InUse for a definition that has resources,
        errors.Contention, errors.OutcomeUnknown.
        """
        for _ in range(_DELETE_TRIES):
            current = await self.get(kind, key)
            if etag and etag != views.etag(current.mod_revision):
                raise errors.EtagMismatch(f"{title(kind, key)} has changed since")
            item: M = current.object
            if isinstance(item, resource_definition_pb2.ResourceDefinition):
                await self._refuse_in_use(item.namespace, item.name)
            if validate_only:
                return current
            self._lookup.forget(key)
            try:
                gone = [key, *_others(item), *_past(key, item.generation)]
                await self._store.commit([Guard(key, current.mod_revision)], (), gone)
            except Conflict:
                continue
            except Uncertain as error:
                if await self._may_be_there(key):
                    raise errors.OutcomeUnknown from error
            if isinstance(item, resource_definition_pb2.ResourceDefinition):
                await self._restore_if_in_use(item)
            return current
        raise errors.Contention

    async def _refuse_in_use(self, namespace: str, definition: str) -> None:
        listing = await self._store.list(keys.resources(namespace, definition), limit=1, keys_only=True)
        if listing.items:
            name = listing.items[0].key.rpartition("/")[2]
            raise errors.InUse(f"resource definition {definition} has resources, {name} among them")

    async def _restore_if_in_use(self, item: resource_definition_pb2.ResourceDefinition) -> None:
        """A resource that was created between the check and the delete needs its definition: put it back."""
        try:
            await self._refuse_in_use(item.namespace, item.name)
        except errors.InUse:
            key, value = DEFINITION.key(item), DEFINITION.encode(item)
            puts = [Put(key, value), Put(keys.generation(key, item.generation), value)]
            try:
                await self._store.commit([Guard(key, 0)], puts)
            except Conflict:
                return  # somebody made a new one meanwhile
            raise

    async def _may_be_there(self, key: str) -> bool:
        try:
            return await self._store.get(key) is not None
        except StoreError:
            return True


def _others(item: Message) -> list[str]:
    """What is stored beside the object and goes with it."""
    return [keys.schedule_status(item.namespace, item.name)] if isinstance(item, schedule_pb2.Schedule) else []


def _past(key: str, generation: int) -> list[str]:
    """The keys of all generations that are kept."""
    return [keys.generation(key, n) for n in range(max(1, generation - limits.GENERATIONS + 1), generation + 1)]


def _no_change(key: str, current: Versioned[M], slip: Slip | None) -> Draft[Written[M]]:
    async def done(_: int) -> Written[M]:
        return Written(current, apply_pb2.APPLY_OUTCOME_UNCHANGED)

    if slip is None:
        return Draft((), (), (key, None), done)
    put = slip.put(key, current.object.generation)
    return Draft((slip.guard, Guard(key, current.mod_revision)), (put,), (slip.key, put.value), done)


def _taken(kind: Kind[M], key: str) -> errors.AlreadyExists:
    return errors.AlreadyExists(f"there is a {title(kind, key)} already")

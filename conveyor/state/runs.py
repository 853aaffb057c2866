"""Runs in the store: created, loaded, moved on by decisions, listed and deleted."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import structlog
from google.protobuf.message import DecodeError

from conveyor.core import errors, limits
from conveyor.core.calls import awaits
from conveyor.core.model import Decision, RunState, new_run
from conveyor.core.plan import compile_plan, lock_limit
from conveyor.expressions.errors import NotAnExpression, NoValue
from conveyor.expressions.program import Program, RunInputs
from conveyor.state import keys
from conveyor.state.cache import Cache, Versioned
from conveyor.state.callers import Caller, Descendants
from conveyor.state.fired import Fired
from conveyor.state.lanes import Change, Lanes
from conveyor.state.locks import Locks, joined, left
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Guard, KeyValue, Put, Store
from conveyor.v1 import pipeline_pb2, resource_pb2

log = structlog.get_logger("conveyor.state")

_PLANS_KEPT = 1024
_SPEC_BYTES_KEPT = 8 << 20
_READS_AT_ONCE = 64
_RUNS_PER_READ = 32
_DELETES_AT_ONCE = 80
_MESSAGE_CHARS = 1024


class Unreadable(errors.InternalError):
    """What is stored of the run cannot be read."""


@dataclass(slots=True)
class Inputs:
    """Serialized parts of a run's assignments: what all have in common, and the result of each step that has ended.

    `states` are the packed states of the steps when `results` were brought up to date.
    """

    common: bytes = b""
    results: list[bytes] = field(default_factory=list)
    states: bytes = b""


@dataclass(slots=True)
class StoredRun:
    """A run as the store holds it: its state, the revision of its head, and its snapshot.

    `inputs` keeps what was serialized for assignments, so that it is done once per run and once per result.
    """

    state: RunState
    revision: int
    spec: storage_pb2.RunSpec
    inputs: Inputs = field(default_factory=Inputs)

    @property
    def head(self) -> storage_pb2.RunHead:
        """The run's head."""
        return self.state.head

    def moved(self, state: RunState, revision: int) -> StoredRun:
        """The same run after a commit."""
        return StoredRun(state, revision, self.spec, self.inputs)


@dataclass(slots=True)
class NewRun:
    """A run that is about to be stored; `puts` go into the same commit as whatever caused it."""

    run: StoredRun
    puts: list[Put]
    guards: list[Guard]


class Runs:
    """The repository of runs. All methods raise the store's errors as they are."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lanes = Lanes(store)
        self._within = Descendants(store)
        self.locks = Locks(store)
        self._programs: OrderedDict[tuple[str, int], Program] = OrderedDict()
        self._specs = Cache(_SPEC_BYTES_KEPT)

    def _program(self, pipeline: pipeline_pb2.Pipeline) -> Program:
        """The compiled plan of a pipeline, with its expressions; kept, since most runs share one."""
        if not pipeline.uid:
            return Program(pipeline, compile_plan(pipeline))
        key = (pipeline.uid, pipeline.generation)
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = Program(pipeline, compile_plan(pipeline))
            if len(self._programs) > _PLANS_KEPT:
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(key)
        return program

    def new(
        self,
        run_id: str,
        now: int,
        namespace: str,
        pipeline: pipeline_pb2.Pipeline,
        resource: resource_pb2.Resource,
        *,
        labels: Mapping[str, str],
        params: bytes = b"",
        parent: str = "",
        inherited: Sequence[storage_pb2.StepRecord] = (),
        caller: Caller | None = None,
        fired: Fired | None = None,
    ) -> StoredRun:
        """A run that is not stored yet. Raises errors.InvalidRequest when its lock's key cannot be evaluated."""
        head = storage_pb2.RunHead(
            namespace=namespace,
            id=run_id,
            pipeline=pipeline.name,
            pipeline_generation=pipeline.generation,
            definition=resource.definition,
            resource=resource.name,
            resource_generation=resource.generation,
            labels=labels,
            create_time=now,
            parent_run=parent,
        )
        if fired is not None:
            head.schedule, head.schedule_time = fired.schedule, fired.time
        if caller is not None:
            head.caller_run, head.caller_step, head.depth = caller.run, caller.step, caller.depth
            head.root_run = caller.root
            head.outer_locks.extend(caller.claims)
        spec = storage_pb2.RunSpec(pipeline=pipeline, resource=resource, params=params, inherited=inherited)
        program = self._program(pipeline)
        inputs = RunInputs(program, spec) if program.plan.judged else None
        if pipeline.HasField("lock"):
            head.lock.key = _lock_key(RunInputs(program, spec), head)
            head.lock.limit = lock_limit(pipeline.lock)
        return StoredRun(new_run(program.plan, head, inherited, inputs), 0, spec)

    def creation(self, run: StoredRun, decision: Decision) -> NewRun:
        """What must be stored for a run that begins with this decision."""
        head = decision.state.head
        namespace, run_id = head.namespace, head.id
        inverted = keys.invert(run_id)
        puts = _changes(decision)
        spec_key, spec = keys.spec(namespace, run_id), run.spec.SerializeToString()
        puts.append(Put(spec_key, spec))
        # Watchers ask for it as soon as it is stored; should it never be, nobody asks.
        self._specs.put(spec_key, Versioned(run.spec, 0), len(spec))
        if not decision.state.terminal:
            active = storage_pb2.ActiveRun(create_time=head.create_time)
            puts.append(Put(keys.active(namespace, run_id), active.SerializeToString()))
        puts.append(Put(keys.index_runs(namespace) + inverted, b""))
        puts.append(Put(keys.index_resource(namespace, head.definition, head.resource) + inverted, b""))
        if head.pipeline:
            puts.append(Put(keys.index_pipeline(namespace, head.pipeline) + inverted, b""))
        if head.schedule:
            puts.append(Put(keys.index_schedule(namespace, head.schedule) + inverted, b""))
        if head.root_run:
            puts.append(Put(keys.index_within(namespace, head.root_run) + inverted, b""))
        return NewRun(run.moved(decision.state, 0), puts, [Guard(keys.head(namespace, run_id), 0)])

    async def commit(self, run: StoredRun, decision: Decision, lane: Change | None = None) -> StoredRun:
        """Store what a decision changed, if the head is still the one that it was made from (else Conflict).

        `lane` is the lane that the run leaves.
        """
        head = decision.state.head
        deletes = [keys.active(head.namespace, head.id)] if decision.state.terminal and not run.state.terminal else []
        deletes += left(decision)
        guards, puts = [Guard(keys.head(head.namespace, head.id), run.revision)], _changes(decision)
        if lane is not None:
            guards.append(lane.guard)
            puts.extend(lane.puts)
            deletes.extend(lane.deletes)
        revision = await self._store.commit(guards, puts, deletes)
        return run.moved(decision.state, revision)

    async def is_current(self, run: StoredRun) -> bool:
        """Whether the store still holds the run as it is here."""
        kv = await self._store.get(keys.head(run.head.namespace, run.head.id))
        return kv is not None and kv.mod_revision == run.revision

    async def session_exists(self, namespace: str, driver: str, session: str) -> bool:
        """Whether the worker that has a step is known, to whichever server."""
        return await self._store.get(keys.session(namespace, driver, session)) is not None

    async def load(self, namespace: str, run_id: str) -> StoredRun:
        """The run with all its steps. Raises errors.NotFound, and Unreadable."""
        ((_, found),) = [item async for item in self.load_many([(namespace, run_id)])]
        if isinstance(found, errors.DomainError):
            raise found
        return found

    async def load_many(
        self, runs: Sequence[tuple[str, str]]
    ) -> AsyncGenerator[tuple[tuple[str, str], StoredRun | errors.NotFound | Unreadable], None]:
        """Runs by namespace and id, with all their steps, each with what came of reading it; some dozens per read."""
        for start in range(0, len(runs), _RUNS_PER_READ):
            part = runs[start : start + _RUNS_PER_READ]
            prefixes = [prefix for run in part for prefix in (keys.run_prefix(*run), keys.spec(*run))]
            ranges = await self._store.ranges(prefixes)
            for run, records, specs in zip(part, ranges[::2], ranges[1::2], strict=True):
                yield run, self._read(run, records, specs)

    def _read(
        self, run: tuple[str, str], records: Sequence[KeyValue], specs: Sequence[KeyValue]
    ) -> StoredRun | errors.NotFound | Unreadable:
        head_key = keys.head(*run)
        head = next((kv for kv in records if kv.key == head_key), None)
        if head is None or not specs:
            return errors.NotFound(f"there is no run {run[1]} in namespace {run[0]}")
        try:
            return self._decode(head, specs[0].value, [kv.value for kv in records if kv is not head])
        except Unreadable as error:
            return error

    def _decode(self, head_kv: KeyValue, spec_value: bytes, step_values: Sequence[bytes]) -> StoredRun:
        try:
            spec = storage_pb2.RunSpec.FromString(spec_value)
            head = storage_pb2.RunHead.FromString(head_kv.value)
            records = [*spec.inherited, *(storage_pb2.StepRecord.FromString(value) for value in step_values)]
            program = self._program(spec.pipeline)
            inputs = RunInputs(program, spec) if program.plan.judged else None
            state = RunState.of(program.plan, head, records, inputs)
        except (DecodeError, LookupError, ValueError) as error:
            raise Unreadable(f"{head_kv.key} cannot be read: {error!r}") from error
        return StoredRun(state, head_kv.mod_revision, spec)

    async def spec(self, namespace: str, run_id: str) -> storage_pb2.RunSpec:
        """The run's snapshot; it never changes, so those of the newest runs are kept. Raises errors.NotFound."""
        key = keys.spec(namespace, run_id)
        known = self._specs.get(key)
        if known is not None:
            return cast(storage_pb2.RunSpec, known.object)
        kv = await self._store.get(key)
        if kv is None:
            raise errors.NotFound(f"there is no run {run_id} in namespace {namespace}")
        spec = storage_pb2.RunSpec.FromString(kv.value)
        self._specs.put(key, Versioned(spec, kv.mod_revision), len(kv.value))
        return spec

    async def head(self, namespace: str, run_id: str) -> tuple[storage_pb2.RunHead, int]:
        """The run's head and its revision. Raises errors.NotFound."""
        kv = await self._store.get(keys.head(namespace, run_id))
        if kv is None:
            raise errors.NotFound(f"there is no run {run_id} in namespace {namespace}")
        return storage_pb2.RunHead.FromString(kv.value), kv.mod_revision

    async def step(self, namespace: str, run_id: str, step: str) -> tuple[storage_pb2.StepRecord | None, int]:
        """The record of a step as it is stored, and its revision; None for one that never was queued."""
        kv = await self._store.get(keys.step(namespace, run_id, step))
        return (None, 0) if kv is None else (storage_pb2.StepRecord.FromString(kv.value), kv.mod_revision)

    async def caller(self, head: storage_pb2.RunHead, record: storage_pb2.StepRecord, child: str) -> Caller:
        """What there is to know of the step that a run is made for."""
        within, claims, namespace = [head], [head.lock, record.lock], head.namespace
        while (inner := within[-1]).caller_run and len(within) <= limits.RUN_DEPTH:
            above = (await self.heads(namespace, [inner.caller_run]))[0]
            step, _ = await self.step(namespace, inner.caller_run, inner.caller_step)
            if above is None or step is None:
                break
            within.append(above[0])
            claims += [above[0].lock, step.lock]
        found = Caller(child, record.step, within, claims)
        if found.depth == 1:
            return found
        return replace(found, descendants=await self._within.count(namespace, found.root))

    async def is_awaited(self, head: storage_pb2.RunHead) -> bool:
        """Whether the step that the run was made for waits for it, or has not yet taken its result."""
        if not head.caller_run or await self._store.get(keys.active(head.namespace, head.caller_run)) is None:
            return False
        record, _ = await self.step(head.namespace, head.caller_run, head.caller_step)
        return awaits(record, head.id)

    async def heads(self, namespace: str, run_ids: Sequence[str]) -> list[tuple[storage_pb2.RunHead, int] | None]:
        """The heads of several runs, in their order; None for one that is gone, or that cannot be read."""
        found: list[tuple[storage_pb2.RunHead, int] | None] = []
        for start in range(0, len(run_ids), _READS_AT_ONCE):
            part = run_ids[start : start + _READS_AT_ONCE]
            values = await asyncio.gather(*(self._store.get(keys.head(namespace, run)) for run in part))
            found += [None if kv is None else _head(kv) for kv in values]
        return found

    async def page(self, prefix: str, after: str, limit: int) -> tuple[list[str], bool]:
        """Ids of runs below an index prefix, newest first, after the id `after` (""), and whether more follow."""
        listing = await self._store.list(prefix, prefix + keys.invert(after) if after else "", limit, keys_only=True)
        return [keys.invert(kv.key[len(prefix) :]) for kv in listing.items], listing.more

    async def revision(self) -> int:
        """The store's revision now."""
        return (await self._store.list(keys.ACTIVE, limit=1, keys_only=True)).revision

    async def active(self) -> list[tuple[str, str]]:
        """Namespace and id of all runs that are not terminal."""
        return (await self.active_at())[0]

    async def active_at(self) -> tuple[list[tuple[str, str]], int]:
        """The same, and the revision at which that was so."""
        listing = await self._store.list(keys.ACTIVE, keys_only=True)
        found = []
        for kv in listing.items:
            namespace, _, run_id = kv.key[len(keys.ACTIVE) :].partition("/")
            found.append((namespace, run_id))
        return found, listing.revision

    async def delete(self, namespace: str, run_id: str, etag_revision: int = 0) -> storage_pb2.RunHead:
        """Delete a terminal run and all its keys; returns its last head.

        Raises errors.NotFound, errors.RunNotFinished, errors.EtagMismatch, errors.InUse.
        """
        run = await self.load(namespace, run_id)
        head = run.head
        if not run.state.terminal:
            raise errors.RunNotFinished(f"run {run_id} has not ended; cancel it first")
        if etag_revision and etag_revision != run.revision:
            raise errors.EtagMismatch(f"run {run_id} has changed since")
        if await self.is_awaited(head):
            raise errors.InUse(
                f"step {head.caller_step} of run {head.caller_run} has not taken the result of run {run_id} yet; "
                "try again in a moment"
            )
        inverted = keys.invert(run_id)
        steps = [keys.step(namespace, run_id, r.step) for r in run.state.steps if r is not None and not r.inherited]
        rest = [
            keys.spec(namespace, run_id),
            keys.active(namespace, run_id),
            keys.index_runs(namespace) + inverted,
            keys.index_resource(namespace, head.definition, head.resource) + inverted,
        ]
        if head.pipeline:
            rest.append(keys.index_pipeline(namespace, head.pipeline) + inverted)
        if head.schedule:
            rest.append(keys.index_schedule(namespace, head.schedule) + inverted)
        if head.root_run:
            rest.append(keys.index_within(namespace, head.root_run) + inverted)
        guard = [Guard(keys.head(namespace, run_id), run.revision)]
        # Steps first and the head last: a crash in between leaves a run that can be deleted again.
        for start in range(0, len(steps), _DELETES_AT_ONCE):
            await self._store.commit(guard, (), steps[start : start + _DELETES_AT_ONCE])
        await self._store.commit(guard, (), [keys.head(namespace, run_id), *rest])
        self._specs.drop(keys.spec(namespace, run_id))
        return head


def _lock_key(inputs: RunInputs, head: storage_pb2.RunHead) -> str:
    try:
        return inputs.run_lock(head)
    except (NoValue, NotAnExpression) as error:
        text = f"cannot be evaluated: {str(error).removeprefix('lock.key: ')[:_MESSAGE_CHARS]}"
        raise errors.InvalidRequest(violations=[errors.Violation("pipeline.lock.key", text)]) from None


def _head(kv: KeyValue) -> tuple[storage_pb2.RunHead, int] | None:
    try:
        return storage_pb2.RunHead.FromString(kv.value), kv.mod_revision
    except DecodeError as error:
        log.error("record_not_readable", key=kv.key, error=str(error))
        return None


def _changes(decision: Decision) -> list[Put]:
    """The head and the step records that a decision changed, and the claims on locks that it made."""
    state = decision.state
    head = state.head
    namespace, run_id = head.namespace, head.id
    puts = [Put(keys.head(namespace, run_id), head.SerializeToString())]
    for index in decision.changed:
        record = state.steps[index]
        if record is not None:
            puts.append(Put(keys.step(namespace, run_id, record.step), record.SerializeToString()))
    return puts + joined(decision)

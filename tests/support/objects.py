"""The repositories of a store, with a launcher that only stores heads; and the messages that tests write."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from conveyor.core.plan import compile_plan
from conveyor.state import keys
from conveyor.state.fired import Fired
from conveyor.state.ids import RunIds
from conveyor.state.kinds import DEFINITION, PIPELINE
from conveyor.state.objects import Mode, now_micros
from conveyor.state.repositories import Repositories
from conveyor.state.requests import Slip
from conveyor.state.runs import Runs
from conveyor.state.views import basic_run
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Changes, Guard, KeyValue, Lease, Listing, Put, Reset, Store, StoreError
from conveyor.v1 import pipeline_pb2, resource_definition_pb2, resource_pb2, run_pb2


@dataclass
class HeadOnly:
    """A run as the launcher of these tests prepares it."""

    head: storage_pb2.RunHead
    puts: Sequence[Put]
    guards: Sequence[Guard]

    @property
    def run_id(self) -> str:
        return self.head.id

    @property
    def state(self) -> HeadOnly:
        return self


@dataclass
class HeadLauncher:
    """Stores a head and a snapshot for each run, and remembers what it was told."""

    ids: RunIds = field(default_factory=RunIds)
    prepared: int = 0
    launched_runs: list[str] = field(default_factory=list)
    abandoned_runs: list[str] = field(default_factory=list)

    def prepare(
        self,
        namespace: str,
        resource: resource_pb2.Resource,
        pipeline: pipeline_pb2.Pipeline | None,
        *,
        labels: Mapping[str, str],
        params: Struct | None = None,
        parent: str = "",
        inherited: Sequence[storage_pb2.StepRecord] = (),
        waits: bool = False,
        fired: Fired | None = None,
    ) -> HeadOnly:
        self.prepared += 1
        now = now_micros()
        pipeline = pipeline if pipeline is not None else pipeline_pb2.Pipeline()
        steps = len(compile_plan(pipeline).steps)
        head = storage_pb2.RunHead(
            namespace=namespace,
            id=self.ids.new(now),
            pipeline=pipeline.name,
            pipeline_generation=pipeline.generation,
            definition=resource.definition,
            resource=resource.name,
            resource_generation=resource.generation,
            state=run_pb2.RUN_STATE_PENDING,
            labels=labels,
            create_time=now,
            update_time=now,
            parent_run=parent,
            schedule=fired.schedule if fired is not None else "",
            step_states=bytes([run_pb2.STEP_STATE_PENDING]) * steps,
            step_reasons=bytes(steps),
        )
        spec = storage_pb2.RunSpec(pipeline=pipeline, resource=resource, inherited=inherited)
        key = keys.head(namespace, head.id)
        puts = [Put(key, head.SerializeToString()), Put(keys.spec(namespace, head.id), spec.SerializeToString())]
        return HeadOnly(head, puts, [Guard(key, 0)])

    async def launched(self, prepared: HeadOnly, revision: int) -> run_pb2.Run:
        self.launched_runs.append(prepared.run_id)
        return basic_run(prepared.head, revision)

    def abandoned(self, prepared: HeadOnly) -> None:
        self.abandoned_runs.append(prepared.run_id)


class Counting:
    """Another store, whose reads and commits are counted and whose next commits may fail before or after."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reads = 0
        self.commits = 0
        self.fail_before: list[StoreError] = []
        self.fail_after: list[StoreError] = []
        self.fail_reads = 0
        """Reads that fail, from the next one on."""

    @property
    def epoch(self) -> str:
        return self._store.epoch

    async def get(self, key: str) -> KeyValue | None:
        self.reads += 1
        if self.fail_reads:
            self.fail_reads -= 1
            raise StoreError("away")
        return await self._store.get(key)

    async def list(self, prefix: str, after: str = "", limit: int = 0, *, keys_only: bool = False) -> Listing:
        self.reads += 1
        return await self._store.list(prefix, after, limit, keys_only=keys_only)

    async def ranges(self, prefixes: Sequence[str]) -> Sequence[Sequence[KeyValue]]:
        self.reads += 1
        return await self._store.ranges(prefixes)

    async def commit(self, guards: Sequence[Guard] = (), puts: Sequence[Put] = (), deletes: Sequence[str] = ()) -> int:
        self.commits += 1
        if self.fail_before:
            raise self.fail_before.pop()
        revision = await self._store.commit(guards, puts, deletes)
        if self.fail_after:
            raise self.fail_after.pop()
        return revision

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Changes | Reset, None]:
        return self._store.watch(prefix, after_revision)

    async def lease(self, ttl: float) -> Lease:
        return await self._store.lease(ttl)

    async def close(self) -> None:
        await self._store.close()


class World:
    """The repositories of one process on a store, and the objects of one namespace."""

    def __init__(self, store: Store, namespace: str, now: Callable[[], int] = now_micros) -> None:
        self.namespace = namespace
        self.store = Counting(store)
        self.launcher = HeadLauncher()
        self.runs = Runs(self.store)
        repositories = Repositories(self.store, self.runs, self.launcher, now)
        self.objects, self.starts, self.requests = repositories.objects, repositories.starts, repositories.requests

    async def setup(self, **definition: Any) -> None:
        """The definition `app` and the pipeline `main`."""
        await self.objects.write(DEFINITION, self.definition(**definition), Mode.CREATE)
        await self.objects.write(PIPELINE, self.pipeline(), Mode.CREATE)

    def definition(
        self, name: str = "app", schema: Mapping[str, Any] | None = None
    ) -> resource_definition_pb2.ResourceDefinition:
        item = resource_definition_pb2.ResourceDefinition(namespace=self.namespace, name=name)
        item.schema.update(schema or {})
        return item

    def pipeline(self, name: str = "main", *drivers: str, **fields: Any) -> pipeline_pb2.Pipeline:
        """A pipeline with a step per driver: s0, s1 …"""
        item = pipeline_pb2.Pipeline(namespace=self.namespace, name=name, **fields)
        for i, driver in enumerate(drivers or ("build",)):
            item.steps.add(id=f"s{i}", driver=driver)
        return item

    def resource(
        self, name: str = "web", spec: Mapping[str, Any] | None = None, **fields: Any
    ) -> resource_pb2.Resource:
        """A resource of `app` on `main`."""
        item = resource_pb2.Resource(**{"definition": "app", "pipeline": "main", **fields})
        item.namespace, item.name = self.namespace, name
        item.spec.update(spec or {})
        return item

    def key(self, name: str = "web") -> str:
        """The key of a resource of `app`."""
        return keys.resource(self.namespace, "app", name)

    async def slip(self, request_id: str, request: Message) -> Slip:
        """The slip of a request with this id."""
        slip = await self.requests.slip(self.namespace, "Test", request_id, request)
        assert slip is not None
        return slip

    async def run_ids(self) -> list[str]:
        """All runs of the namespace, by their heads."""
        listing = await self.store.list(f"{keys.RUNS}{self.namespace}/", keys_only=True)
        return [keys.parse_run_key(kv.key)[1] for kv in listing.items]

"""The API on a real socket, over a real store and engine, in the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from conveyor.api.health import Health
from conveyor.api.interceptors import Observe, ServerInterceptor
from conveyor.api.ports import Logs
from conveyor.api.services import Services, add_services
from conveyor.core import errors, limits
from conveyor.engine.clock import anchored_clock
from conveyor.engine.launch import Launcher
from conveyor.engine.loop import Engine
from conveyor.engine.waits import Waits
from conveyor.engine.workers import Pool
from conveyor.logs.errors import LogsUnavailable
from conveyor.state.repositories import Repositories
from conveyor.state.runs import Runs
from conveyor.state.sessions import SessionStore
from conveyor.store import open_sqlite
from conveyor.store.port import Store
from conveyor.v1 import (
    driver_pb2,
    driver_service_pb2_grpc,
    log_pb2,
    log_service_pb2_grpc,
    pipeline_pb2,
    pipeline_service_pb2,
    pipeline_service_pb2_grpc,
    resource_definition_service_pb2,
    resource_definition_service_pb2_grpc,
    resource_pb2,
    resource_service_pb2,
    resource_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    server_pb2,
    server_service_pb2_grpc,
)
from conveyor.watch.feed import Feed
from conveyor.watch.hub import Hub


class BrokerAway:
    """Logs while the broker is away."""

    async def append(self, namespace: str, lines: Sequence[log_pb2.LogLine], driver: str) -> list[log_pb2.LogAck]:
        raise LogsUnavailable("the broker is away")

    async def read(self, namespace: str, run: str, **query: Any) -> AsyncGenerator[list[log_pb2.LogLine], None]:
        raise LogsUnavailable("the broker is away")
        yield []

    def follow(
        self, namespace: str, run: str, finished: asyncio.Event, **query: Any
    ) -> AsyncGenerator[list[log_pb2.LogLine], None]:
        return self.read(namespace, run)

    async def purge(self, namespace: str, run: str) -> None:
        raise LogsUnavailable("the broker is away")


@dataclass
class KnownDrivers:
    """Drivers that a test makes up: the engine's need a broker."""

    drivers: dict[str, driver_pb2.Driver] = field(default_factory=dict)

    async def get(self, namespace: str, name: str) -> driver_pb2.Driver:
        if name not in self.drivers:
            raise errors.NotFound(f"there is no driver {name}")
        return self.drivers[name]

    async def list(self, namespace: str, after: str, limit: int) -> tuple[Sequence[driver_pb2.Driver], bool]:
        names = [name for name in sorted(self.drivers) if name > after]
        return [self.drivers[name] for name in names[:limit]], len(names) > limit

    async def delete(self, namespace: str, name: str) -> driver_pb2.Driver:
        driver = await self.get(namespace, name)
        if driver.workers:
            raise errors.InUse(f"driver {name} has connected workers")
        return self.drivers.pop(name)


@dataclass
class Api:
    """A server, and a client of each of its services."""

    address: str
    channel: grpc.aio.Channel
    store: Store
    engine: Engine
    hub: Hub
    health: Health
    interceptor: ServerInterceptor
    drivers: KnownDrivers

    def __post_init__(self) -> None:
        channel = self.channel
        self.definitions = resource_definition_service_pb2_grpc.ResourceDefinitionServiceStub(channel)
        self.pipelines = pipeline_service_pb2_grpc.PipelineServiceStub(channel)
        self.resources = resource_service_pb2_grpc.ResourceServiceStub(channel)
        self.runs = run_service_pb2_grpc.RunServiceStub(channel)
        self.logs = log_service_pb2_grpc.LogServiceStub(channel)
        self.driver_calls = driver_service_pb2_grpc.DriverServiceStub(channel)
        self.server = server_service_pb2_grpc.ServerServiceStub(channel)

    async def setup(self, schema: dict[str, Any] | None = None) -> None:
        """The definition `app` and the pipeline `main` of two steps."""
        request = resource_definition_service_pb2.CreateResourceDefinitionRequest()
        request.resource_definition.name = "app"
        request.resource_definition.schema.update(schema or {})
        await self.definitions.CreateResourceDefinition(request)
        await self.pipelines.CreatePipeline(pipeline_service_pb2.CreatePipelineRequest(pipeline=pipeline("main")))

    async def create(self, name: str = "web", **fields: Any) -> resource_service_pb2.CreateResourceResponse:
        """Create a resource."""
        request = resource_service_pb2.CreateResourceRequest(resource=resource(name, **fields))
        return await self.resources.CreateResource(request)

    async def cancelled(self, run: str) -> run_pb2.Run:
        """The run, after it was cancelled: nobody works here, so that it has ended."""
        return (await self.runs.CancelRun(run_service_pb2.CancelRunRequest(id=run))).run


@contextlib.asynccontextmanager
async def served(
    directory: Path, *, store: Store | None = None, logs: Logs | None = None, observe: Observe | None = None
) -> AsyncIterator[Api]:
    """A server on a free port, and a channel to it."""
    opened = store if store is not None else await open_sqlite(directory)
    now = anchored_clock()
    runs = Runs(opened)
    engine = Engine(runs, Pool(), now)
    feed = Feed(opened)
    await feed.start()
    feeding = asyncio.create_task(feed.run())
    hub = Hub(feed, runs, now)
    interceptor = ServerInterceptor(observe)
    server = grpc.aio.server(
        interceptors=[interceptor], options=[("grpc.max_receive_message_length", limits.MESSAGE_BYTES)]
    )
    drivers = KnownDrivers()
    repositories = Repositories(opened, runs, Launcher(engine), now)
    info = server_pb2.ServerInfo(version="1.2.3", replica="r1", store="sqlite")
    waits = Waits(engine, SessionStore(opened))
    services = Services(
        repositories, engine, hub, logs if logs is not None else BrokerAway(), waits, drivers, lambda: info
    )
    health = add_services(server, services)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Api(address, channel, opened, engine, hub, health, interceptor, drivers)
    await server.stop(0)
    feeding.cancel()
    await asyncio.wait({feeding})
    await engine.close()
    await opened.close()


def pipeline(name: str, *drivers: str, **fields: Any) -> pipeline_pb2.Pipeline:
    """A pipeline with a step per driver: s0, s1 …"""
    item = pipeline_pb2.Pipeline(name=name, **fields)
    for i, driver in enumerate(drivers or ("build", "test")):
        item.steps.add(id=f"s{i}", driver=driver)
    return item


def resource(name: str = "web", spec: dict[str, Any] | None = None, **fields: Any) -> resource_pb2.Resource:
    """A resource of `app` on `main`."""
    item = resource_pb2.Resource(**{"definition": "app", "pipeline": "main", **fields})
    item.name = name
    item.spec.update(spec or {})
    return item


@dataclass
class Refusal:
    """How a call was refused."""

    code: str
    reason: str
    message: str
    violations: list[tuple[str, str]]
    metadata: dict[str, str]

    @property
    def kind(self) -> tuple[str, str]:
        """What programs go by: the code and the reason."""
        return self.code, self.reason

    @property
    def fields(self) -> list[str]:
        """The paths at fault."""
        return [path for path, _ in self.violations]


async def refused(call: Any) -> Refusal:
    """How the call is refused; an answer is a failure of the test."""
    try:
        answer = await call if isinstance(call, Awaitable) else [item async for item in call]
    except grpc.aio.AioRpcError as error:
        return refusal(error)
    raise AssertionError(f"not refused: {answer}")


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """What the error says."""
    found = Refusal(error.code().name, "", error.details() or "", [], {})
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
        assert status.code == error.code().value[0]
        assert status.message == error.details()
        for detail in status.details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                assert info.domain == "conveyor"
                found.reason, found.metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                found.violations = [(each.field, each.description) for each in bad.field_violations]
    return found

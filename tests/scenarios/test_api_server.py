"""What holds for the server as a whole: its info, reflection, health, statuses of calls, and how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2 as v1alpha
from grpc_reflection.v1alpha import reflection_pb2_grpc as v1alpha_grpc

from conveyor.api.services import SERVICES
from conveyor.core import limits
from conveyor.reflection.v1 import reflection_pb2 as v1
from conveyor.reflection.v1 import reflection_pb2_grpc as v1_grpc
from conveyor.v1 import pipeline_service_pb2, pipeline_service_pb2_grpc, run_service_pb2, server_service_pb2
from tests.support.api import Api, pipeline, refused, served
from tests.support.wait import until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Observed(list[tuple[str, str, float]]):
    """What the server counts."""

    def __call__(self, method: str, status: grpc.StatusCode, seconds: float) -> None:
        self.append((method.rpartition("/")[2], status.name, seconds))

    async def statuses(self, count: int) -> list[tuple[str, str]]:
        """Methods and statuses of all calls, once so many were counted: an error is already told by then."""
        await until(lambda: len(self) >= count, f"{count} calls to be counted")
        return sorted((method, status) for method, status, _ in self)


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest_asyncio.fixture
async def api(tmp_path: Path, observed: Observed) -> AsyncIterator[Api]:
    async with served(tmp_path, observe=observed) as started:
        yield started


async def test_info(api: Api) -> None:
    info = (await api.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())).server_info
    assert (info.version, info.replica, info.store) == ("1.2.3", "r1", "sqlite")
    assert info.limits.message_bytes == limits.MESSAGE_BYTES
    assert info.limits.nesting == limits.STRUCT_NESTING
    assert info.time.seconds > 0


@pytest.mark.parametrize(("messages", "stubs"), [(v1, v1_grpc), (v1alpha, v1alpha_grpc)], ids=["v1", "v1alpha"])
async def test_reflection(api: Api, messages: Any, stubs: Any) -> None:
    stub = stubs.ServerReflectionStub(api.channel)

    async def ask(**question: str) -> Any:
        (answer,) = [
            one async for one in stub.ServerReflectionInfo(iter([messages.ServerReflectionRequest(**question)]))
        ]
        return answer

    listed = await ask(list_services="")
    names = [service.name for service in listed.list_services_response.service]
    assert set(SERVICES) < set(names)
    assert {"grpc.reflection.v1.ServerReflection", "grpc.health.v1.Health"} < set(names)
    # A client that knows nothing can build every message from what it is told.
    pool = descriptor_pool.DescriptorPool()
    known: set[str] = set()
    for name in names:
        answer = await ask(file_containing_symbol=name)
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(data)
            for data in answer.file_descriptor_response.file_descriptor_proto
        ]
        waiting = {file.name: file for file in files if file.name not in known}
        while waiting:
            ready = [file for file in waiting.values() if not waiting.keys() & set(file.dependency)]
            for file in ready:
                pool.Add(file)  # type: ignore[no-untyped-call]
                known.add(waiting.pop(file.name).name)
        assert pool.FindServiceByName(name).methods
    method = await ask(file_containing_symbol="conveyor.v1.RunService.StartRun")
    assert (
        method.file_descriptor_response
        == (await ask(file_containing_symbol="conveyor.v1.RunService")).file_descriptor_response
    )
    for name in ("conveyor.v1.Nope", "conveyor.v1.RunService.Nope", ""):
        missing = await ask(file_containing_symbol=name)
        assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_health(api: Api) -> None:
    stub = health_pb2_grpc.HealthStub(api.channel)

    async def check(service: str) -> int:
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status  # type: ignore[no-any-return]

    await api.health.set(store=True, broker=True)
    assert {await check(name) for name in ("", *SERVICES)} == {SERVING}
    await api.health.set(store=True, broker=False)
    assert {name for name in ("", *SERVICES) if await check(name) == NOT_SERVING} == {"conveyor.v1.LogService"}
    await api.health.set(store=False, broker=True)
    assert {name for name in ("", *SERVICES) if await check(name) == SERVING} == {"conveyor.v1.ServerService"}
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await check("conveyor.v1.Nope")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_can_be_watched(api: Api) -> None:
    await api.health.set(store=True, broker=True)
    watch = aiter(health_pb2_grpc.HealthStub(api.channel).Watch(health_pb2.HealthCheckRequest(service="")))
    assert (await anext(watch)).status == SERVING
    await api.health.set(store=False, broker=True)
    assert (await anext(watch)).status == NOT_SERVING


async def test_an_unknown_method(api: Api, observed: Observed) -> None:
    for name in ("/conveyor.v1.RunService/Nope", "/nope.Nope/Nope"):
        found = await refused(api.channel.unary_unary(name)(b""))
        assert found.code == "UNIMPLEMENTED"
    assert observed == []


async def test_every_call_is_counted_with_its_status(api: Api, observed: Observed) -> None:
    await api.setup()
    run = (await api.create()).run.id
    await refused(api.create())
    watch = aiter(api.runs.WatchRun(run_service_pb2.WatchRunRequest(id=run)))
    await anext(watch)
    await api.cancelled(run)
    assert [response async for response in watch]
    await refused(api.runs.WatchRun(run_service_pb2.WatchRunRequest(id="x")))
    assert await observed.statuses(7) == [
        ("CancelRun", "OK"),
        ("CreatePipeline", "OK"),
        ("CreateResource", "ALREADY_EXISTS"),
        ("CreateResource", "OK"),
        ("CreateResourceDefinition", "OK"),
        ("WatchRun", "INVALID_ARGUMENT"),
        ("WatchRun", "OK"),
    ]
    assert all(seconds >= 0 for _, _, seconds in observed)


async def test_a_cancelled_call_is_no_error(api: Api, observed: Observed) -> None:
    watch = api.runs.WatchRuns(run_service_pb2.WatchRunsRequest())
    await anext(aiter(watch))
    with structlog.testing.capture_logs() as logs:
        watch.cancel()
        assert await observed.statuses(1) == [("WatchRuns", "CANCELLED")]
    assert logs == []


async def test_an_unforeseen_error_says_nothing_but_its_id(api: Api, observed: Observed) -> None:
    async def get(_: str) -> None:
        raise ZeroDivisionError("a secret")

    real = api.store.get
    api.store.get = get  # type: ignore[method-assign, assignment]
    get_one = pipeline_service_pb2.GetPipelineRequest(name="main")
    with structlog.testing.capture_logs() as logs:
        found = await refused(api.pipelines.GetPipeline(get_one))
    assert found.kind == ("INTERNAL", "INTERNAL")
    assert "secret" not in found.message
    assert found.metadata["id"] in found.message
    assert [entry["error_id"] for entry in logs if entry["event"] == "rpc_failed"] == [found.metadata["id"]]
    assert await observed.statuses(1) == [("GetPipeline", "INTERNAL")]
    api.store.get = real  # type: ignore[method-assign]
    assert (await refused(api.pipelines.GetPipeline(get_one))).code == "NOT_FOUND"


async def test_a_server_that_stops_takes_no_new_calls_but_says_how_it_is(api: Api) -> None:
    watch = aiter(api.runs.WatchRuns(run_service_pb2.WatchRunsRequest()))
    await anext(watch)
    api.interceptor.stop()
    stopping = ("UNAVAILABLE", "SHUTTING_DOWN")
    request = pipeline_service_pb2.CreatePipelineRequest(pipeline=pipeline("main"))
    assert (await refused(api.pipelines.CreatePipeline(request))).kind == stopping
    assert (await refused(api.runs.WatchRuns(run_service_pb2.WatchRunsRequest()))).kind == stopping
    await api.health.stop()
    stub = health_pb2_grpc.HealthStub(api.channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING


async def test_a_synchronous_client(api: Api) -> None:
    """Other gRPC stacks, and threads, see the same reasons."""

    def call() -> tuple[str, bytes]:
        with grpc.insecure_channel(api.address) as channel:
            stub = pipeline_service_pb2_grpc.PipelineServiceStub(channel)
            try:
                stub.GetPipeline(pipeline_service_pb2.GetPipelineRequest(name="nope"))
            except grpc.RpcError as error:
                details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]  # type: ignore[attr-defined]
                return error.code().name, details  # type: ignore[attr-defined]
        raise AssertionError

    code, details = await asyncio.to_thread(call)
    assert code == "NOT_FOUND"
    assert b"NOT_FOUND" in details

"""The client's calls, against small servers on real sockets."""
# ruff: noqa: N802 (servicers have the names of their rpcs)

import socket
from contextlib import AsyncExitStack

import grpc
import pytest
from google.rpc import error_details_pb2

from conveyor.sdk import (
    Aborted,
    AlreadyExists,
    ApiError,
    ClientClosed,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
)
from conveyor.sdk.status import api_error
from conveyor.v1.apply_pb2 import ApplyOutcome
from conveyor.v1.driver_pb2 import Driver
from conveyor.v1.driver_service_pb2 import ListDriversResponse
from conveyor.v1.driver_service_pb2_grpc import DriverServiceServicer, add_DriverServiceServicer_to_server
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.pipeline_service_pb2 import (
    ApplyPipelineResponse,
    CreatePipelineResponse,
    DeletePipelineResponse,
    GetPipelineResponse,
    ListPipelinesResponse,
)
from conveyor.v1.pipeline_service_pb2_grpc import PipelineServiceServicer, add_PipelineServiceServicer_to_server
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.resource_service_pb2 import (
    ApplyResourceResponse,
    CreateResourceResponse,
    ListResourceGenerationsResponse,
)
from conveyor.v1.resource_service_pb2_grpc import ResourceServiceServicer, add_ResourceServiceServicer_to_server
from conveyor.v1.run_pb2 import Run, RunState
from conveyor.v1.run_service_pb2 import CancelRunResponse, DeleteRunResponse, GetRunResponse, StartRunResponse
from conveyor.v1.run_service_pb2_grpc import RunServiceServicer, add_RunServiceServicer_to_server


class PipelinesServer(PipelineServiceServicer):
    """Holds pipelines a, b, c, … and remembers the requests."""

    def __init__(self, count=0):
        self.names = [chr(ord("a") + number) for number in range(count)]
        self.requests = []

    def register(self, server):
        add_PipelineServiceServicer_to_server(self, server)

    async def CreatePipeline(self, request, context):
        self.requests.append(request)
        return CreatePipelineResponse(pipeline=request.pipeline)

    async def GetPipeline(self, request, context):
        self.requests.append(request)
        return GetPipelineResponse(pipeline=Pipeline(name=request.name, generation=request.generation or 7))

    async def ListPipelines(self, request, context):
        self.requests.append(request)
        start = int(request.page_token or 0)
        end = start + 2
        return ListPipelinesResponse(
            pipelines=[Pipeline(name=name) for name in self.names[start:end]],
            next_page_token=str(end) if end < len(self.names) else "",
        )

    async def ApplyPipeline(self, request, context):
        self.requests.append(request)
        return ApplyPipelineResponse(pipeline=request.pipeline, outcome=ApplyOutcome.APPLY_OUTCOME_CREATED)

    async def DeletePipeline(self, request, context):
        self.requests.append(request)
        return DeletePipelineResponse(pipeline=Pipeline(name=request.name))


async def test_objects_go_out_and_come_back(serve, connect):
    server = PipelinesServer()
    async with serve(server.register) as address, connect(address, namespace="team") as client:
        assert (await client.pipelines.create(Pipeline(name="p"), validate_only=True)).name == "p"
        assert (await client.pipelines.get("p", 3)).generation == 3
        applied = await client.pipelines.apply(Pipeline(name="p"))
        assert (applied.object.name, applied.outcome) == ("p", ApplyOutcome.APPLY_OUTCOME_CREATED)
        assert (await client.pipelines.delete("p", "etag-1")).name == "p"
    create, get, _, delete = server.requests
    assert (create.namespace, create.validate_only) == ("team", True)
    assert (get.namespace, get.name, get.generation) == ("team", "p", 3)
    assert (delete.name, delete.etag) == ("p", "etag-1")


async def test_writes_carry_a_request_id_of_their_own(serve, connect):
    server = PipelinesServer()
    async with serve(server.register) as address, connect(address) as client:
        await client.pipelines.create(Pipeline(name="p"))
        await client.pipelines.create(Pipeline(name="p"))
        await client.pipelines.create(Pipeline(name="p"), request_id="mine")
    first, second, third = (request.request_id for request in server.requests)
    assert first
    assert first != second
    assert third == "mine"


@pytest.mark.parametrize("count", [0, 1, 2, 5])
async def test_lists_go_through_all_pages(serve, connect, count):
    server = PipelinesServer(count)
    async with serve(server.register) as address, connect(address) as client:
        names = [each.name async for each in client.pipelines.list(labels={"tier": "1"}, page_size=2)]
    assert names == server.names
    assert {(request.page_size, request.labels["tier"]) for request in server.requests} == {(2, "1")}


async def test_resources_answer_with_the_run_that_they_started(serve, connect):
    class Resources(ResourceServiceServicer):
        async def CreateResource(self, request, context):
            return CreateResourceResponse(resource=request.resource, run=Run(id="r1"))

        async def ApplyResource(self, request, context):
            return ApplyResourceResponse(resource=request.resource, outcome=ApplyOutcome.APPLY_OUTCOME_UNCHANGED)

        async def ListResourceGenerations(self, request, context):
            return ListResourceGenerationsResponse(
                resources=[Resource(name=request.name, definition=request.definition, generation=n) for n in (2, 1)]
            )

    register = lambda server: add_ResourceServiceServicer_to_server(Resources(), server)  # noqa: E731
    async with serve(register) as address, connect(address) as client:
        resource, run = await client.resources.create(Resource(name="shop", definition="app"))
        assert (resource.name, run.id) == ("shop", "r1")
        applied = await client.resources.apply(Resource(name="shop", definition="app"))
        assert applied.run is None
        assert applied.outcome == ApplyOutcome.APPLY_OUTCOME_UNCHANGED
        generations = [each.generation async for each in client.resources.generations("app", "shop")]
        assert generations == [2, 1]


async def test_drivers_are_listed_over_pages(serve, connect):
    class Drivers(DriverServiceServicer):
        async def ListDrivers(self, request, context):
            page = int(request.page_token or 0)
            return ListDriversResponse(drivers=[Driver(name=f"d{page}")], next_page_token="1" if page == 0 else "")

    register = lambda server: add_DriverServiceServicer_to_server(Drivers(), server)  # noqa: E731
    async with serve(register) as address, connect(address) as client:
        assert [driver.name async for driver in client.drivers.list()] == ["d0", "d1"]


class FlakyRuns(RunServiceServicer):
    """Answers UNAVAILABLE, or with another code, so many times, then well."""

    def __init__(self, failures, code=grpc.StatusCode.UNAVAILABLE):
        self.failures = failures
        self.code = code
        self.requests = []

    def register(self, server):
        add_RunServiceServicer_to_server(self, server)

    async def _fail(self, request, context):
        self.requests.append(request)
        if self.failures:
            self.failures -= 1
            await context.abort(self.code, "away for a moment")

    async def StartRun(self, request, context):
        await self._fail(request, context)
        return StartRunResponse(run=Run(id="r1"))

    async def GetRun(self, request, context):
        await self._fail(request, context)
        return GetRunResponse(run=Run(id=request.id, state=RunState.RUN_STATE_RUNNING))

    async def CancelRun(self, request, context):
        await self._fail(request, context)
        return CancelRunResponse(run=Run(id=request.id))

    async def DeleteRun(self, request, context):
        await self._fail(request, context)
        return DeleteRunResponse(run=Run(id=request.id))


async def test_what_is_safe_is_repeated_under_the_same_request_id(serve, connect):
    server = FlakyRuns(2)
    async with serve(server.register) as address, connect(address) as client:
        assert (await client.runs.start("app", "shop", params={"n": 1})).id == "r1"
    assert len(server.requests) == 3
    assert len({request.request_id for request in server.requests}) == 1
    assert server.requests[0].request_id


async def test_a_call_that_a_server_drops_as_it_goes_is_repeated(serve, connect):
    server = FlakyRuns(1, grpc.StatusCode.CANCELLED)
    async with serve(server.register) as address, connect(address) as client:
        assert (await client.runs.start("app", "shop")).id == "r1"
    assert len(server.requests) == 2


async def test_reads_are_repeated(serve, connect):
    server = FlakyRuns(1)
    async with serve(server.register) as address, connect(address) as client:
        assert (await client.runs.get("r1")).id == "r1"
    assert len(server.requests) == 2


async def test_what_is_not_safe_is_not_repeated(serve, connect):
    server = FlakyRuns(1)
    async with serve(server.register) as address, connect(address) as client:
        with pytest.raises(Unavailable, match="away for a moment"):
            await client.runs.delete("r1")
    assert len(server.requests) == 1


async def test_a_cancel_says_how_long_to_wait(serve, connect):
    server = FlakyRuns(0)
    async with serve(server.register) as address, connect(address) as client:
        await client.runs.cancel("r1", "enough", force=True, grace=1.5)
        await client.runs.cancel("r1")
    first, second = server.requests
    assert (first.message, first.force, first.grace.ToMilliseconds()) == ("enough", True, 1500)
    assert not second.HasField("grace")


def unused_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def test_the_next_address_is_taken_when_one_does_not_answer(serve, connect):
    server = FlakyRuns(0)
    async with serve(server.register) as address, connect([unused_address(), address]) as client:
        assert (await client.runs.get("r1")).id == "r1"
        assert client.address == address
        assert (await client.runs.get("r1")).id == "r1"


async def test_a_server_that_goes_away_is_left_for_another(serve, connect):
    first, second = FlakyRuns(0), FlakyRuns(0)
    async with AsyncExitStack() as stack:
        running = serve(first.register)
        address = await running.__aenter__()
        other = await stack.enter_async_context(serve(second.register))
        client = await stack.enter_async_context(connect(f"{address},{other}"))
        await client.runs.get("r1")
        await running.__aexit__(None, None, None)
        await client.runs.get("r1")
    assert (len(first.requests), len(second.requests)) == (1, 1)


async def test_what_never_left_goes_to_the_next_address_whatever_it_is(serve, connect):
    server = FlakyRuns(0)
    async with serve(server.register) as address, connect([unused_address(), address]) as client:
        assert (await client.runs.delete("r1")).id == "r1"
    assert len(server.requests) == 1


async def test_nobody_there_names_the_address_and_what_to_do(connect):
    address = unused_address()
    async with connect(address) as client:
        with pytest.raises(Unavailable) as caught:
            await client.runs.delete("r1")
    text = str(caught.value)
    assert address in text
    assert "refused" in text.lower()
    assert "conveyor server dev" in text
    assert "CONVEYOR_ADDRESS" in text


async def test_a_closed_client_says_so(serve, connect):
    server = FlakyRuns(0)
    async with serve(server.register) as address:
        async with connect(address) as client:
            await client.runs.get("r1")
        with pytest.raises(ClientClosed):
            await client.runs.get("r1")
        with pytest.raises(ClientClosed):
            await client.runs.wait("r1")


async def test_proxy_variables_do_not_matter_on_this_machine(serve, connect, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://{unused_address()}")
    monkeypatch.delenv("no_proxy", raising=False)
    server = FlakyRuns(0)
    async with serve(server.register) as address:
        port = address.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost"):
            async with connect(f"{host}:{port}") as client:
                assert (await client.runs.get("r1")).id == "r1"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, AlreadyExists),
        (grpc.StatusCode.ABORTED, Aborted),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
        (grpc.StatusCode.UNIMPLEMENTED, Unimplemented),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.INTERNAL, Internal),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.DATA_LOSS, ApiError),
    ],
)
async def test_each_code_has_its_exception(serve, connect, refuse, code, kind):
    class Refusing(RunServiceServicer):
        async def DeleteRun(self, request, context):
            await refuse(
                context,
                code,
                "no, thanks",
                error_details_pb2.ErrorInfo(
                    reason="ERROR_REASON_CYCLE", domain="conveyor", metadata={"request_id": "id-1"}
                ),
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field="steps[0].needs", description="a > b > a")
                    ]
                ),
            )

    register = lambda server: add_RunServiceServicer_to_server(Refusing(), server)  # noqa: E731
    async with serve(register) as address, connect(address) as client:
        with pytest.raises(kind) as caught:
            await client.runs.delete("r1")
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.message, error.request_id) == (code.name, "CYCLE", "no, thanks", "id-1")
    assert error.violations == (Violation("steps[0].needs", "a > b > a"),)


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:7460: Failed to connect to remote "
            "host: connect: Connection refused (111)",
            ["cannot reach the server at build.example:7460: Connection refused", "is it running?"],
        ),
        (
            "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:7460: Custom verification "
            "check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
            ["7460: Custom verification check", "check CONVEYOR_TLS_CA, CONVEYOR_TLS_SERVER_NAME"],
        ),
        (
            "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:7460: Socket closed",
            ["Socket closed; does it want TLS"],
        ),
        ("DNS resolution failed for build.example:7460: Name not found", ["Name not found", "is it running?"]),
        ("Stream removed (recvmsg:Connection reset by peer)", ["lost the server at build.example:7460: Stream"]),
        ("", ["no answer"]),
    ],
)
def test_what_grpc_says_becomes_what_to_do(details, words):
    no_metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, no_metadata, no_metadata, details)
    message = api_error(error, "build.example:7460").message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("details", "told"),
    [
        (
            "SERVER: Received message larger than max (5000085 vs. 4194304)",
            "the request has 4.8 MiB; a message may have 4 MiB",
        ),
        ("Received message larger than max (4194305 vs. 4194304)", "the request has 4.1 MiB; a message may have 4 MiB"),
        (
            "CLIENT: Received message larger than max (70000000 vs. 67108864)",
            "the answer has 66.8 MiB; a message may have 64 MiB",
        ),
        ("no room in the store", "no room in the store"),
    ],
)
def test_a_message_that_is_too_large_is_told_in_mib(details, told):
    no_metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, no_metadata, no_metadata, details)
    assert api_error(error, "build.example:7460").message == told


def test_a_proxy_is_named(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("CONVEYOR_NO_PROXY", raising=False)
    monkeypatch.delenv("grpc_proxy", raising=False)
    no_metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, no_metadata, no_metadata, "failed to connect")
    message = api_error(error, "build.example:7460").message
    assert "through the proxy http://proxy.example:3128" in message
    assert "CONVEYOR_NO_PROXY=1" in message

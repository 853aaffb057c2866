"""What the client's tests share: they need no server, and of pytest no plugin.

`pytest` and `conveyor-client[jetstream]` are enough: coroutine tests are run here, each within a limit. With the root's
settings pytest-asyncio runs them, and pytest-timeout limits them.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NoReturn, Self

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import status_pb2

from conveyor.sdk import Client, SyncClient
from conveyor.v1.log_pb2 import LogAck, LogLine
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.result_pb2 import Disposition, ResultAck, ResultReport
from conveyor.v1.run_pb2 import RunState
from conveyor.v1.worker_pb2 import Assignment, Hello, Welcome
from conveyor.v1.worker_service_pb2 import WorkRequest, WorkResponse
from conveyor.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

# A net under tests that hang, not a limit to work against.
_PATIENCE = 30.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}), _PATIENCE))
    return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADDRESS", "NAMESPACE", "SLOTS", "TRANSPORT", "NATS", "TLS", "TLS_CA", "TLS_CERT", "TLS_KEY"):
        monkeypatch.delenv(f"CONVEYOR_{name}", raising=False)


class InThreads:
    """The synchronous client, or a part of it, as tests use the asyncio one: what it does, it does in threads."""

    def __init__(self, part: object) -> None:
        self._part = part

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._part.close)

    def __getattr__(self, name: str) -> object:
        found = getattr(self._part, name)
        if callable(found):
            return lambda *args, **options: InThread(found, args, options)
        return InThreads(found) if type(found).__module__.startswith("conveyor.sdk.sync.") else found


class InThread:
    """A call that is awaited, or a generator that is iterated."""

    def __init__(self, method: Callable[..., object], args: tuple[object, ...], options: dict[str, object]) -> None:
        self._call = lambda: method(*args, **options)

    def __await__(self) -> Generator[object, None, object]:
        return asyncio.to_thread(self._call).__await__()

    def __aiter__(self) -> Self:
        self._generator = self._call()
        assert inspect.isgenerator(self._generator)
        return self

    async def __anext__(self) -> object:
        end = object()
        found = await asyncio.to_thread(next, self._generator, end)
        if found is end:
            raise StopAsyncIteration
        return found

    async def aclose(self) -> None:
        await asyncio.to_thread(self._generator.close)


@pytest.fixture(params=["asyncio", "sync"])
def connect(request: pytest.FixtureRequest) -> Callable[..., Client]:
    """Makes clients: tests that take it run with those of both kinds."""
    return Client if request.param == "asyncio" else lambda *args, **options: InThreads(SyncClient(*args, **options))


class Stream:
    """One Work stream, as the scripted server sees it. A test says what the server says, and waits for the worker."""

    def __init__(self, context: grpc.aio.ServicerContext[WorkRequest, WorkResponse]) -> None:
        self.hello = Hello()
        self.results: list[ResultReport] = []
        self.lines: list[LogLine] = []
        self.requests: list[WorkRequest] = []
        self.heartbeats = 0
        self.drains = 0
        self.ended = asyncio.Event()
        self._context = context
        self._changed = asyncio.Condition()
        self._outbox: asyncio.Queue[WorkResponse | None] = asyncio.Queue()

    def send(self, **fields: object) -> None:
        """Send a WorkResponse."""
        self._outbox.put_nowait(WorkResponse(**fields))

    def welcome(self, session: str = "s1", heartbeat: float = 5.0, ttl: float = 15.0, **fields: object) -> None:
        """Answer the Hello."""
        beat, life = Duration(), Duration()
        beat.FromMilliseconds(int(heartbeat * 1000))
        life.FromMilliseconds(int(ttl * 1000))
        self.send(welcome=Welcome(session=session, heartbeat_interval=beat, session_ttl=life, **fields))

    def ack(self, report: ResultReport, disposition: Disposition.ValueType = Disposition.DISPOSITION_ACCEPTED) -> None:
        """Say that a result is stored."""
        ack = ResultAck(run=report.run, step=report.step, attempt=report.attempt, disposition=disposition)
        self.send(acks=[ack])

    def ack_lines(self) -> None:
        """Say that all lines that came are stored."""
        ends = {(line.run, line.step, line.attempt): line.seq + 1 for line in self.lines}
        self.send(log_acks=[LogAck(run=r, step=s, attempt=a, next_seq=end) for (r, s, a), end in ends.items()])

    def close(self) -> None:
        """End the stream with OK."""
        self._outbox.put_nowait(None)

    async def until(self, condition: Callable[["Stream"], object]) -> None:
        """Wait until a condition holds."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _receive(self, requests: AsyncIterator[WorkRequest]) -> None:
        async for request in requests:
            async with self._changed:
                self.requests.append(request)
                self.results += request.results
                self.lines += request.logs
                self.heartbeats += request.HasField("heartbeat")
                self.drains += request.HasField("drain")
                self._changed.notify_all()


class WorkServer(WorkerServiceServicer):
    """A server with nothing but Work streams that tests script."""

    def __init__(self) -> None:
        self.address = ""
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()

    async def stream(self) -> Stream:
        """The next stream that a worker opens, after its Hello."""
        return await self._streams.get()

    async def Work(  # noqa: N802
        self, request_iterator: AsyncIterator[WorkRequest], context: grpc.aio.ServicerContext[WorkRequest, WorkResponse]
    ) -> AsyncIterator[WorkResponse]:
        stream = Stream(context)
        stream.hello = (await anext(request_iterator)).hello
        receiving = asyncio.create_task(stream._receive(request_iterator))
        self._streams.put_nowait(stream)
        try:
            while (response := await stream._outbox.get()) is not None:
                yield response
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])
            stream.ended.set()

    def ReportResults(self, request_iterator: object, context: object) -> object:  # noqa: N802
        raise NotImplementedError


async def refuse(context: grpc.aio.ServicerContext, code: grpc.StatusCode, message: str, *details: Message) -> NoReturn:
    """Answer a call like the server does: with google.rpc.Status and its details."""
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


@pytest.fixture(name="refuse")
def _refuse() -> Callable[..., Awaitable[NoReturn]]:
    """Answers a call with a typed error."""
    return refuse


Serve = Callable[..., AbstractAsyncContextManager[str]]


@asynccontextmanager
async def _serve(*register: Callable[[grpc.aio.Server], None], port: int = 0) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for each in register:
        each(server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)


@pytest.fixture
def serve() -> Serve:
    """A context manager that serves what the given functions register, on a port of its own, and yields the address."""
    return _serve


@pytest.fixture
def work_server() -> Callable[[], AbstractAsyncContextManager[WorkServer]]:
    """A context manager that serves scripted Work streams."""

    @asynccontextmanager
    async def running() -> AsyncIterator[WorkServer]:
        servicer = WorkServer()
        async with _serve(lambda server: add_WorkerServiceServicer_to_server(servicer, server)) as address:
            servicer.address = address
            yield servicer

    return running


@pytest.fixture
def assignment() -> Callable[..., Assignment]:
    """Makes assignments."""

    def make(run: str = "run-1", step: str = "build", attempt: int = 1, **fields: object) -> Assignment:
        given = Assignment(
            namespace="default",
            run=run,
            step=step,
            attempt=attempt,
            token=f"{run}/{step}/{attempt}",
            driver="compile",
            pipeline="release",
            resource=Resource(name="shop", definition="app", spec={"repository": "https://example.org/shop.git"}),
            max_attempts=3,
            run_state=RunState.RUN_STATE_RUNNING,
        )
        given.MergeFrom(Assignment(**fields))
        return given

    return make

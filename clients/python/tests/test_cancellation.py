"""Cancellations that come just as a call ends.

grpc.aio then raises its status, or says that the stream has ended; nats-py raises what it knows.
"""

import asyncio
from types import SimpleNamespace

import grpc
import nats.errors
import pytest

from conveyor.sdk import Unavailable
from conveyor.sdk.connection import Connection
from conveyor.sdk.driver import WorkerOptions
from conveyor.sdk.grpc_transport import GrpcTransport
from conveyor.sdk.jetstream import JetStreamTransport
from conveyor.sdk.logs import Logs
from conveyor.sdk.runs import Runs
from conveyor.v1.run_service_pb2 import GetRunRequest

ENDS = ["status", "end"]


class Calls(Connection):
    """A server whose calls end, each in the given way, when they are cancelled; there should be only one."""

    def __init__(self, end: str) -> None:
        super().__init__("127.0.0.1:1", retry_for=30.0)
        self.count = 0
        self.waiting = asyncio.Event()
        self._end = end

    def stub(self, kind):
        return SimpleNamespace(**dict.fromkeys(("Work", "WatchRun", "WatchRuns", "ReadLogs"), self._stream))

    def _stream(self, request=None, timeout=None):
        self.count += 1
        assert self.count == 1, "it tried again after its cancellation"
        return self

    async def unary(self, request, timeout):
        self._stream()
        return await self.read()

    async def write(self, request):
        pass

    async def read(self):
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self._end == "end":
                return grpc.aio.EOF
            raise failure() from None

    def cancel(self):
        pass


def failure():
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone")


async def outcome(calls, body):
    """What a coroutine comes to that is cancelled as its call ends."""
    task = asyncio.create_task(body)
    await calls.waiting.wait()
    task.cancel()
    return (await asyncio.gather(task, return_exceptions=True))[0]


async def everything(stream):
    return [each async for each in stream]


@pytest.mark.parametrize("end", ENDS)
async def test_a_worker_that_drains_ends(end):
    calls = Calls(end)
    transport = GrpcTransport(calls, WorkerOptions("build", "default", "w1", 1), lambda job: None)
    running = asyncio.create_task(transport.run())
    await calls.waiting.wait()
    transport.drain()
    await running
    assert calls.count == 1


@pytest.mark.parametrize("end", ENDS)
async def test_what_follows_a_run_ends(end):
    for follow in (lambda calls: Runs(calls, "default").watch("r"), lambda calls: Runs(calls, "default").watch_all()):
        calls = Calls(end)
        assert isinstance(await outcome(calls, everything(follow(calls))), asyncio.CancelledError)


@pytest.mark.parametrize("end", ENDS)
async def test_what_follows_a_log_ends(end):
    calls = Calls(end)
    assert isinstance(await outcome(calls, everything(Logs(calls, "default").read("r"))), asyncio.CancelledError)


@pytest.mark.parametrize("end", ENDS)
async def test_a_call_that_is_repeated_ends(end):
    calls = Calls(end)
    body = calls.call(lambda: calls.unary, GetRunRequest())
    assert isinstance(await outcome(calls, body), asyncio.CancelledError)


class Broker:
    """A broker that nothing reaches, and that is heard of only when nobody waits any more."""

    def __init__(self):
        self.count = 0
        self.waiting = asyncio.Event()

    async def publish(self, *args, **options):
        self.count += 1
        assert self.count == 1, "it tried again after its cancellation"
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise nats.errors.TimeoutError from None

    add_consumer = publish


async def test_what_publishes_ends():
    for act in (
        lambda transport: transport._publish("logs.r.s", b"{}", None),
        lambda transport: transport._make_consumer(),
    ):
        transport = JetStreamTransport(None, WorkerOptions("build", "default", "w1", 1), lambda job: None)
        transport._js = broker = Broker()
        assert isinstance(await outcome(broker, act(transport)), asyncio.CancelledError)


async def test_what_cleans_up_after_a_cancellation_still_hears_of_failures():
    connection = Connection("127.0.0.1:1", retry_for=0)
    answers = []

    async def unary(request, timeout):
        raise failure()

    async def cleaned_up():
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await connection.call(lambda: unary, GetRunRequest())
            except Unavailable as error:
                answers.append(error)

    task = asyncio.create_task(cleaned_up())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert [type(answer) for answer in answers] == [Unavailable]

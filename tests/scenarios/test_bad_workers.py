"""What no worker should say, over real sockets: a typed refusal, and a worker beside it that works on, undisturbed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Self

import grpc
import pytest

from conveyor.sdk.errors import ApiError
from conveyor.sdk.status import api_error
from conveyor.v1.result_pb2 import ResultReport
from conveyor.v1.run_pb2 import Run
from conveyor.v1.worker_pb2 import Drain, Heartbeat, Hello
from conveyor.v1.worker_service_pb2 import WorkRequest, WorkResponse
from tests.support.behaviour import Counted
from tests.support.belt import Belt, Site, on_both_stores, state, step
from tests.support.http import Http, http_url
from tests.support.metrics import scrape
from tests.support.raw_worker import RawWorker, report
from tests.support.wait import until

INVALID = ("INVALID_ARGUMENT", "INVALID_FIELD")
VIOLATION = ("FAILED_PRECONDITION", "PROTOCOL_VIOLATION")
MISMATCH = ("FAILED_PRECONDITION", "SESSION_MISMATCH")


class Innocent:
    """A worker that takes run after run, as long as the test goes on."""

    def __init__(self, belt: Belt) -> None:
        self._belt = belt
        self._work = Counted()
        self._runs: list[Run] = []
        self._going = asyncio.create_task(self._go())

    async def _go(self) -> None:
        self._belt.drive("innocent", self._work, slots=1)
        await self._belt.pipeline(step("a", "innocent"), name="good")
        while True:
            ended = await self._belt.ended(await self._belt.start("good"))
            self._runs.append(ended)

    async def works(self, more: int = 3) -> None:
        """Wait until it has done more, all that it did at the first attempt."""
        goal = len(self._runs) + more
        await until(lambda: self._going.done() or len(self._runs) >= goal, "the innocent worker")
        if self._going.done():
            self._going.result()
        assert {(state(run), run.steps[0].attempt) for run in self._runs} == {("SUCCEEDED", 1)}

    async def stop(self) -> None:
        """Start no more. Each run was given out once."""
        self._going.cancel()
        await asyncio.wait([self._going])
        assert len({job.run for job in self._work.jobs}) == self._work.count


def log(site: Site) -> str:
    return site.server.log.read_text()


@pytest.fixture
async def innocent(belt: Belt) -> AsyncIterator[Innocent]:
    """A worker beside. In the end it still works, the server is the same process, and its log tells of no failure."""
    pid, told = belt.site.server.pid, len(log(belt.site))
    innocent = Innocent(belt)
    await innocent.works()
    yield innocent
    await innocent.works()
    await innocent.stop()
    assert (belt.site.server.running, belt.site.server.pid) == (True, pid)
    new = log(belt.site)[told:]
    assert "Traceback" not in new
    assert "[error" not in new


class Raw:
    """A Work stream, or that of another call, on a connection of its own, on which bytes are said."""

    def __init__(self, address: str, method: str = "WorkerService/Work") -> None:
        self._address = address
        self._path = f"/conveyor.v1.{method}"
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.aio.insecure_channel(address, options=options)

    async def __aenter__(self) -> Self:
        self._call = self._channel.stream_stream(
            self._path,
            request_serializer=lambda said: said if isinstance(said, bytes) else said.SerializeToString(),
            response_deserializer=WorkResponse.FromString,
        )()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def say(self, said: WorkRequest | bytes) -> None:
        """Say something, if anybody listens."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(said)

    async def refused(self, *said: WorkRequest | bytes) -> ApiError:
        """How the stream ends on which this is said."""
        for each in said:
            await self.say(each)
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012
            while await self._call.read() is not grpc.aio.EOF:
                pass
        return api_error(caught.value, self._address)


def hello(belt: Belt, driver: str = "bad", slots: int = 1, **fields: Any) -> Hello:
    return Hello(namespace=belt.namespace, driver=driver, slots=slots, **fields)


def with_slots(belt: Belt, slots: int) -> bytes:
    """A Hello with a number that no uint32 holds, as other languages may encode it."""
    said = hello(belt, slots=0).SerializeToString()
    number = slots & (1 << 64) - 1
    said += bytes([Hello.SLOTS_FIELD_NUMBER << 3])
    while number > 0x7F:
        said += bytes([number & 0x7F | 0x80])
        number >>= 7
    said += bytes([number])
    return bytes([WorkRequest.HELLO_FIELD_NUMBER << 3 | 2, len(said)]) + said


@on_both_stores
async def test_hellos_that_are_refused(belt: Belt, innocent: Innocent) -> None:
    rejected = [
        (WorkRequest(hello=hello(belt, protocol=2)), "this server speaks protocol 1, not 2"),
        (WorkRequest(hello=hello(belt, protocol=2**32 - 1)), "this server speaks protocol 1, not 4294967295"),
        (WorkRequest(hello=hello(belt, slots=0)), "must be from 1 to 10000, not 0"),
        (WorkRequest(hello=hello(belt, slots=10_001)), "must be from 1 to 10000, not 10001"),
        (with_slots(belt, -1), "must be from 1 to 10000, not 4294967295"),
        (with_slots(belt, -(2**31)), "must be from 1 to 10000, not 2147483648"),
        (WorkRequest(hello=hello(belt, driver="")), "hello.driver"),
        (WorkRequest(hello=hello(belt, session="mine")), "a session that Welcome named"),
    ]
    for said, words in rejected:
        async with Raw(belt.address) as raw:
            error = await raw.refused(said)
        assert (error.code, error.reason) == INVALID
        assert words in f"{error.message} {error.violations}"


@pytest.mark.parametrize("version", [0, 1])
async def test_the_version_that_is_spoken_is_welcome(belt: Belt, version: int) -> None:
    async with Raw(belt.address) as raw:
        await raw.say(WorkRequest(hello=hello(belt, protocol=version)))
        assert (await raw._call.read()).HasField("welcome")


async def test_what_is_out_of_turn(belt: Belt, innocent: Innocent) -> None:
    first = WorkRequest(hello=hello(belt))
    result = ResultReport(run="01a210ad-d051-7b74-ae8f-59d5d537277e", step="a", attempt=1, driver="innocent")
    conversations: list[tuple[list[WorkRequest | bytes], str]] = [
        ([first, first], "only once"),
        ([WorkRequest(results=[result])], "begins with Hello"),
        ([WorkRequest(heartbeat=Heartbeat())], "begins with Hello"),
        ([WorkRequest(drain=Drain())], "begins with Hello"),
        ([b""], "begins with Hello"),
        ([WorkRequest(hello=hello(belt), results=[result])], "Hello comes alone"),
        ([first, WorkRequest(heartbeat=Heartbeat(slots=2**32 - 1))], "slots must be from 1"),
    ]
    for said, words in conversations:
        async with Raw(belt.address) as raw:
            error = await raw.refused(*said)
        assert (error.code, error.reason) == VIOLATION
        assert words in error.message


async def test_what_is_no_message_ends_its_own_stream_alone(belt: Belt, innocent: Innocent) -> None:
    conversations: list[tuple[str, list[WorkRequest | bytes]]] = [
        ("WorkerService/Work", [b"\xff\xff"]),
        ("WorkerService/Work", [WorkRequest(hello=hello(belt)), b"\x0a\xff"]),
        ("WorkerService/ReportResults", [b"\xff\xff"]),
        ("LogService/WriteLogs", [b"\xff\xff"]),
    ]
    for method, said in conversations:
        async with Raw(belt.address, method) as raw:
            error = await raw.refused(*said)
        assert (error.code, error.reason) == INVALID
        assert "cannot be read" in error.message
    host, _, port = belt.address.rpartition(":")
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff" * 9,
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        with suppress(ConnectionError):
            await writer.drain()
            writer.write_eof()
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_session_of_another_driver(belt: Belt, innocent: Innocent) -> None:
    """Nor one of another namespace. Whose session it is keeps it, with what it holds."""
    await belt.pipeline(step("a", "owner"))
    async with RawWorker(belt.address, belt.namespace, "owner") as owner:
        run = await belt.start()
        given = await owner.assignments.get()
        session = owner.welcome.session
        for said in (
            hello(belt, driver="thief", session=session),
            Hello(namespace=f"{belt.namespace}-other", driver="owner", slots=1, session=session),
        ):
            async with Raw(belt.address) as raw:
                error = await raw.refused(WorkRequest(hello=said))
            assert (error.code, error.reason) == MISMATCH
        assert await owner.answer(report(given)) == ["ACCEPTED"]
    assert state(await belt.ended(run)) == "SUCCEEDED"


async def test_a_result_for_the_step_of_another_driver(belt: Belt, innocent: Innocent) -> None:
    """Whatever it says it is, with the right token even: the step is its driver's."""
    await belt.pipeline(step("a", "owner"))
    async with (
        RawWorker(belt.address, belt.namespace, "owner") as owner,
        RawWorker(belt.address, belt.namespace, "other") as other,
    ):
        run = await belt.start()
        given = await owner.assignments.get()
        stolen = [report(given, outcome="FAILED") for _ in range(3)]
        stolen[1].driver, stolen[2].driver = "", "other"
        assert await other.answer(*stolen) == ["INVALID"] * 3
        assert await owner.answer(report(given)) == ["ACCEPTED"]
    ended = await belt.ended(run)
    assert (state(ended), ended.steps[0].attempt) == ("SUCCEEDED", 1)


async def test_streams_on_which_nobody_says_hello(belt: Belt, innocent: Innocent) -> None:
    """They count as no workers, and end after a while."""

    def workers() -> float:
        return sum(count for name, count in scrape(belt.site.server).items() if name.startswith("conveyor_workers"))

    before = await asyncio.to_thread(workers)

    async def silent() -> ApiError:
        async with Raw(belt.address) as raw:
            return await raw.refused()

    streams = [asyncio.create_task(silent()) for _ in range(50)]
    await innocent.works()
    assert await asyncio.to_thread(workers) <= before
    for error in await asyncio.gather(*streams):
        assert (error.code, error.reason) == VIOLATION
        assert "no Hello within" in error.message


async def test_a_worker_that_never_reads(belt: Belt, innocent: Innocent) -> None:
    """After some thousand answers that nobody takes it is not listened to."""
    await belt.pipeline(step("a", "deaf"))
    said = WorkRequest(results=[ResultReport(run="x" * 1000, step="a", attempt=1, driver="deaf")] * 200)
    async with Raw(belt.address) as raw:
        await raw.say(WorkRequest(hello=hello(belt, driver="deaf", slots=100)))
        await belt.connected("deaf")
        runs = [await belt.start() for _ in range(3)]
        for run in runs:
            await belt.until_step(run, "a", "RUNNING")

        async def flood() -> None:
            while True:
                await raw.say(said)

        flooding = asyncio.create_task(flood())
        await innocent.works(20)
        flooding.cancel()
        await asyncio.wait([flooding])
    for run in runs:
        assert state(await belt.client.runs.cancel(run.id, force=True)) == "CANCELLED"


async def test_bodies_that_are_no_requests(belt: Belt, innocent: Innocent) -> None:
    bodies: list[tuple[str | bytes, str]] = [
        ("run?", "the body is no JSON"),
        ('{"id": ', "the body is no JSON"),
        (b"\xff\xfe{\0}\0", "not UTF-8"),
        ("[]", "must be an object, not a list"),
        ('{"ident": "x"}', "ident: GetRunRequest has no such field"),
        ('{"id": {"x": 1}}', "id"),
        ("[" * 100_000, "the body"),
    ]
    async with Http(http_url(belt.site.server), belt.namespace) as http:
        for body, words in bodies:
            status, code, message = await http.refused("RunService/GetRun", body)
            assert (status, code) == (400, "invalid_argument")
            assert words in message
        report = '{"results": [{"run": "x", "stepp": "a"}]}'
        for method, body in (("LogService/WriteLogs", "no"), ("WorkerService/ReportResults", report)):
            assert (await http.refused(method, body))[:2] == (400, "invalid_argument")
    where = http_url(belt.site.server).removeprefix("http://").rpartition(":")
    for garbage in (b"\0" * 4096, b"POST /conveyor.v1.RunService/GetRun HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):
        with socket.socket() as connection:
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, (where[0], int(where[2])))
            await loop.sock_sendall(connection, garbage)
            connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                assert not (await loop.sock_recv(connection, 4096)).startswith(b"HTTP/1.1 5")

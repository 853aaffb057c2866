"""A test server for the Work stream: it says what a check wants, and remembers what the driver says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.json_format import Error as JsonError
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from conveyor.v1 import log_service_pb2, worker_service_pb2
from conveyor.v1.log_pb2 import LogAck, LogLine
from conveyor.v1.log_service_pb2 import ReadLogsRequest, ReadLogsResponse, WriteLogsRequest, WriteLogsResponse
from conveyor.v1.log_service_pb2_grpc import LogServiceServicer, add_LogServiceServicer_to_server
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.result_pb2 import Disposition, Outcome, ResultAck, ResultReport
from conveyor.v1.run_pb2 import RunState
from conveyor.v1.worker_pb2 import Assignment, Cancellation, Drained, Hello, Limits, Tick, Welcome
from conveyor.v1.worker_service_pb2 import ReportResultsRequest, ReportResultsResponse, WorkRequest, WorkResponse
from conveyor.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from conveyor.verify.attempt import Answer, Attempt, Attempts, Line
from conveyor.verify.door import Door
from conveyor.verify.waiting import Changes, cancelled

HEARTBEAT_S = 0.5
SESSION_TTL_S = 15.0
LINE_BYTES = 256 * 1024

_LIMITS = Limits(
    message_bytes=4 * 1024 * 1024,
    result_data_bytes=64 * 1024,
    result_message_bytes=4 * 1024,
    log_line_bytes=LINE_BYTES,
    nesting=32,
)
_Context = grpc.aio.ServicerContext[Any, Any]


class Manners:
    """How the server behaves."""

    def __init__(self) -> None:
        self.welcomes_after = 0.0
        self.acks_after = 0.0
        self.acks = True
        """Whether results are acked at all."""
        self.reads = asyncio.Event()
        """Whether it reads what drivers say."""
        self.reads.set()


class Stream:
    """One Work stream: what the driver said on it."""

    def __init__(self, at: int) -> None:
        self.at = at
        """When it began, in the order of all that came."""
        self.hello: Hello | None = None
        """What it said first; None when that was no Hello."""
        self.hellos = 0
        self.heartbeats = 0
        self.welcome: Welcome | None = None
        self.asked_to_drain = False
        self.ended = False
        self.outbox: asyncio.Queue[WorkResponse] = asyncio.Queue()


class GrpcSite(WorkerServiceServicer):
    """See Site. All streams of all processes of the driver are in `streams`."""

    def __init__(self, namespace: str) -> None:
        self.changes = Changes()
        self.attempts = Attempts()
        self.manners = Manners()
        self.streams: list[Stream] = []
        self.namespace = namespace
        self._door = Door()
        self._server: grpc.aio.Server | None = None
        self._session = ""
        self._order = count()

    @property
    def environment(self) -> Mapping[str, str]:
        return {"CONVEYOR_ADDRESS": self._door.address, "CONVEYOR_TRANSPORT": "grpc"}

    @property
    def stream(self) -> Stream | None:
        """The newest stream, when it is welcomed and has not ended."""
        newest = self.streams[-1] if self.streams else None
        return newest if newest is not None and newest.welcome is not None and not newest.ended else None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_WorkerServiceServicer_to_server(self, self._server)
        add_LogServiceServicer_to_server(_LogService(self._take_lines), self._server)
        _enable_reflection(self._server)
        self._door.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        await self._door.open()

    async def close(self) -> None:
        await self._door.close()
        if self._server is not None:
            await self._server.stop(None)

    def abandon(self) -> None:
        """It has no processes."""

    async def forget_driver(self) -> None:
        self.streams.clear()
        self._session = ""

    def ready(self) -> str:
        if self.stream is not None:
            return ""
        return "no stream was opened" if not self.streams else f"none of {len(self.streams)} streams lasted"

    async def give(self, attempts: Sequence[Attempt]) -> None:
        self.send(WorkResponse(assignments=[self.assignment(each) for each in attempts]))

    async def cancel(self, attempt: Attempt) -> None:
        stop = Cancellation(run=attempt.run, step=attempt.step, attempt=attempt.number, message="cancelled by verify")
        stop.grace.FromTimedelta(timedelta(seconds=10))
        self.send(WorkResponse(cancellations=[stop]))

    async def go_away(self) -> None:
        await self._door.shut()

    async def come_back(self) -> None:
        await self._door.open()

    async def tidy(self) -> None:
        self.manners.reads.set()
        self.manners = Manners()

    def send(self, response: WorkResponse) -> None:
        """Say something to the driver. What is said while it is not connected is lost."""
        if self.stream is not None:
            self.stream.outbox.put_nowait(response)

    def assignment(self, attempt: Attempt) -> Assignment:
        """What gives the attempt to the driver. It is known from now on."""
        self.attempts.add(attempt)
        hello = self.streams[-1].hello if self.streams else None
        definition = hello.definitions[0] if hello is not None and hello.definitions else "verify"
        made = Assignment(
            namespace=self.namespace,
            run=attempt.run,
            step=attempt.step,
            attempt=attempt.number,
            token=attempt.token,
            driver=hello.driver if hello is not None else "",
            pipeline="verify",
            resource=Resource(
                namespace=self.namespace, definition=definition, name="verify", uid=attempt.run, generation=1
            ),
            max_attempts=3,
            run_state=RunState.RUN_STATE_RUNNING,
        )
        made.resource.spec.update(dict(attempt.spec))
        made.timeout.FromTimedelta(timedelta(hours=1))
        made.deadline.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        return made

    async def Work(  # noqa: N802 (the rpc's name)
        self, request_iterator: AsyncIterator[WorkRequest], context: _Context
    ) -> AsyncIterator[WorkResponse]:
        """One stream of a driver."""
        stream = Stream(next(self._order))
        self.streams.append(stream)
        tasks = [asyncio.create_task(self._listen(stream, request_iterator)), asyncio.create_task(self._tick(stream))]
        try:
            while True:
                yield await stream.outbox.get()
        finally:
            stream.ended = True
            self.changes.notify()
            await cancelled(*tasks)

    async def ReportResults(  # noqa: N802 (the rpc's name)
        self, request_iterator: AsyncIterator[ReportResultsRequest], context: _Context
    ) -> AsyncIterator[ReportResultsResponse]:
        """Results of a driver that answers by a call of its own."""
        async for request in request_iterator:
            acked, after = self.manners.acks, self.manners.acks_after
            acks = [self._take_result(report) for report in request.results]
            self.changes.notify()
            await asyncio.sleep(after)
            if not acked:
                # An end without an ack would say that all is well.
                await asyncio.get_running_loop().create_future()
            yield ReportResultsResponse(acks=acks)

    async def _listen(self, stream: Stream, requests: AsyncIterator[WorkRequest]) -> None:
        first = True
        while True:
            await self.manners.reads.wait()
            try:
                request = await anext(requests)
            except StopAsyncIteration:
                return
            if first:
                stream.hello = request.hello if request.HasField("hello") else None
                await self._welcome(stream)
                first = False
            await self._take(stream, request)
            self.changes.notify()

    async def _welcome(self, stream: Stream) -> None:
        await asyncio.sleep(self.manners.welcomes_after)
        hello = stream.hello if stream.hello is not None else Hello()
        if not self._session or hello.session != self._session:
            self._session = str(uuid4())
        welcome = Welcome(session=self._session, limits=_LIMITS, replica="verify")
        welcome.heartbeat_interval.FromTimedelta(timedelta(seconds=HEARTBEAT_S))
        welcome.session_ttl.FromTimedelta(timedelta(seconds=SESSION_TTL_S))
        welcome.time.FromDatetime(datetime.now(UTC))
        for held in hello.holding:
            known = self.attempts.find(held.run, held.step, held.attempt)
            if known is None or known.over:
                welcome.revoked.add().CopyFrom(held)
        stream.outbox.put_nowait(WorkResponse(welcome=welcome))
        stream.welcome = welcome

    async def _tick(self, stream: Stream) -> None:
        """Signs of life from the first Welcome on."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if stream.welcome is not None:
                tick = Tick()
                tick.time.FromDatetime(datetime.now(UTC))
                stream.outbox.put_nowait(WorkResponse(tick=tick))

    async def _take(self, stream: Stream, request: WorkRequest) -> None:
        stream.hellos += request.HasField("hello")
        stream.heartbeats += request.HasField("heartbeat")
        if request.logs:
            stream.outbox.put_nowait(WorkResponse(log_acks=self._take_lines(request.logs)))
        for report in request.results:
            ack = self._take_result(report)
            if self.manners.acks:
                put = partial(stream.outbox.put_nowait, WorkResponse(acks=[ack]))
                asyncio.get_running_loop().call_later(self.manners.acks_after, put)
        if request.HasField("drain"):
            stream.asked_to_drain = True
            stream.outbox.put_nowait(WorkResponse(drained=Drained()))

    def _take_lines(self, lines: Iterable[LogLine]) -> list[LogAck]:
        stored: dict[tuple[str, str, int], int] = {}
        for line in lines:
            attempt = self.attempts.find(line.run, line.step, line.attempt)
            if attempt is not None:
                time = line.time.ToJsonString() if line.HasField("time") else ""
                attempt.lines.append(Line(line.seq, line.text, line.partial, next(self._order), time))
            stored[line.run, line.step, line.attempt] = line.seq + 1
        self.changes.notify()
        return [LogAck(run=run, step=step, attempt=n, next_seq=end) for (run, step, n), end in stored.items()]

    def _take_result(self, report: ResultReport) -> ResultAck:
        attempt = self.attempts.find(report.run, report.step, report.attempt)
        if attempt is not None:
            answer = Answer(
                outcome=_outcome(report.result.outcome),
                message=report.result.message,
                data=_data(report.result.data),
                at=next(self._order),
                run=report.run,
                step=report.step,
                number=report.attempt,
                token=report.token,
            )
            attempt.answers.append(answer)
        known = Disposition.DISPOSITION_ACCEPTED if attempt is not None else Disposition.DISPOSITION_NOT_FOUND
        return ResultAck(run=report.run, step=report.step, attempt=report.attempt, disposition=known)


class _LogService(LogServiceServicer):
    """Takes the lines of drivers that write them by a call of their own."""

    def __init__(self, take: Callable[[Iterable[LogLine]], list[LogAck]]) -> None:
        self._take = take

    async def WriteLogs(  # noqa: N802 (the rpc's name)
        self, request_iterator: AsyncIterator[WriteLogsRequest], context: _Context
    ) -> WriteLogsResponse:
        acks = [ack async for request in request_iterator for ack in self._take(request.lines)]
        return WriteLogsResponse(log_acks=acks)

    async def ReadLogs(  # noqa: N802 (the rpc's name)
        self, request: ReadLogsRequest, context: _Context
    ) -> AsyncIterator[ReadLogsResponse]:
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        context.set_details("drivers are verified without reading logs")
        nothing: list[ReadLogsResponse] = []
        for each in nothing:
            yield each


def _enable_reflection(server: grpc.aio.Server) -> None:
    """Tell drivers without the protos, such as those with grpcurl, what there is, if the library for it is there."""
    try:
        from grpc_reflection.v1alpha import reflection
    except ImportError:
        return
    names = [
        file.services_by_name[name].full_name
        for file in (worker_service_pb2.DESCRIPTOR, log_service_pb2.DESCRIPTOR)
        for name in file.services_by_name
    ]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)


def _data(data: Struct) -> Mapping[str, Any]:
    """Data as JSON; what JSON can't say, such as NaN, is nothing."""
    try:
        found: dict[str, Any] = MessageToDict(data)
    except (JsonError, ValueError):
        return {}
    return found


def _outcome(value: "Outcome.ValueType") -> str:
    return Outcome.Name(value).removeprefix("OUTCOME_") if value in Outcome.values() else str(value)

"""Takes part over the Work stream of a server: one session that outlives its connections."""

import asyncio
import logging
from collections import deque

import grpc
from google.protobuf.duration_pb2 import Duration

from conveyor.sdk.backoff import Backoff
from conveyor.sdk.cancellation import cancellable
from conveyor.sdk.connection import Connection
from conveyor.sdk.driver import WorkerOptions
from conveyor.sdk.errors import ApiError, Unavailable
from conveyor.sdk.job import Job
from conveyor.sdk.log_buffer import AttemptKey, LogBuffer
from conveyor.sdk.runner import Handler, Runner
from conveyor.sdk.status import api_error
from conveyor.v1.result_pb2 import Disposition, DriverResult, ResultAck, ResultReport
from conveyor.v1.worker_pb2 import Hello, Holding, Welcome
from conveyor.v1.worker_service_pb2 import WorkRequest, WorkResponse
from conveyor.v1.worker_service_pb2_grpc import WorkerServiceStub

_Call = grpc.aio.StreamStreamCall[WorkRequest, WorkResponse]

_log = logging.getLogger(__name__)

_MESSAGE_BYTES = 2 * 1024 * 1024
_WELCOME_WITHIN = 20.0
# What a drained worker waits for at most: the server's answer to Drain, and after the last job that all is stored.
_DRAINED_WITHIN = 5.0
_FLUSHED_WITHIN = 30.0
_EXPECTED = frozenset({Disposition.DISPOSITION_ACCEPTED, Disposition.DISPOSITION_DUPLICATE})

_REFUSALS = frozenset({"INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"})


class GrpcTransport:
    """A worker on a Work stream. Reconnects by itself; what it holds, it keeps."""

    def __init__(self, connection: Connection, options: WorkerOptions, handler: Handler) -> None:
        """On the event loop that it will run on."""
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._options = options
        self._wake = asyncio.Event()
        self._logs = LogBuffer(self._loop, self._wake.set)
        self._runner = Runner(handler, options.slots, self._logs, self._report)
        self._session = ""
        self._welcomed = False
        self._connected = False
        # Results until they are acked, with the number of log lines that must go out before each.
        self._unacked: dict[AttemptKey, tuple[int, ResultReport]] = {}
        self._unsent: deque[tuple[int, ResultReport]] = deque()
        self._heartbeat_due = False
        self._drain = False
        self._drain_sent = False
        self._drained = False
        self._idle_since: float | None = None
        self._changed = asyncio.Event()
        self._heard = 0.0
        self._silent = False
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Take part until drained. Raises ApiError when the server refuses the worker before it ever took it."""
        worker = asyncio.create_task(self._stay_connected())
        finished = asyncio.create_task(self._until_finished())
        try:
            await asyncio.wait([worker, finished], return_when=asyncio.FIRST_COMPLETED)
            if worker.done():
                await worker
        finally:
            for task in (worker, finished):
                task.cancel()
            await asyncio.wait([worker, finished])
            await self._runner.close()
            await self._connection.close()

    def drain(self) -> None:
        """Take no more work; `run` returns when what runs has ended and is stored."""
        self._drain = True
        self._loop.call_later(_DRAINED_WITHIN, self._changed.set)
        self._wake.set()
        self._changed.set()

    async def _until_finished(self) -> None:
        asked: float | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not self._drain:
                continue
            now = self._loop.time()
            asked = now if asked is None else asked
            heard = self._drained or not self._connected or now - asked >= _DRAINED_WITHIN
            if self._runner.jobs or not heard:
                continue
            if not self._unacked and self._logs.empty:
                return
            if self._idle_since is None:
                self._idle_since = now
                self._loop.call_later(_FLUSHED_WITHIN, self._changed.set)
            elif now - self._idle_since >= _FLUSHED_WITHIN:
                _log.warning("the server did not take the last results and log lines; they are lost")
                return

    async def _stay_connected(self) -> None:
        backoff = Backoff()
        told = ""
        while True:
            address = self._connection.address
            try:
                with cancellable():
                    await self._work(backoff)
                failure: ApiError = Unavailable(f"the server at {address} closed the stream")
            except grpc.aio.AioRpcError as error:
                failure = api_error(error, address)
            finally:
                self._connected = False
                self._changed.set()
            if self._silent:
                failure = Unavailable(f"the server at {address} has been silent for too long")
            if failure.code in ("FAILED_PRECONDITION", "ABORTED"):
                # The session is not ours any more: begin a new one.
                self._session = ""
            if _is_refusal(failure) and not self._welcomed:
                raise failure
            self._connection.failed(address)
            if failure.message != told:
                _log.warning("%s; trying again", failure.message)
                told = failure.message
            await asyncio.sleep(backoff.next())

    async def _work(self, backoff: Backoff) -> None:
        """One connection, from Hello to its end."""
        self._silent = False
        self._drain_sent = self._drained = False
        call = self._connection.stub(WorkerServiceStub).Work()
        writer: asyncio.Task[None] | None = None
        try:
            self._pulse(call, _WELCOME_WITHIN, _WELCOME_WITHIN)
            await call.write(WorkRequest(hello=self._hello()))
            first = await call.read()
            if not isinstance(first, WorkResponse):
                return
            self._take_welcome(first.welcome)
            backoff.reset()
            self._pulse(
                call, _seconds(first.welcome.heartbeat_interval, 5.0), _seconds(first.welcome.session_ttl, 15.0)
            )
            writer = asyncio.create_task(self._write(call))
            self._take(first)
            while isinstance(message := await call.read(), WorkResponse):
                self._heard = self._loop.time()
                self._take(message)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling() or not self._silent:
                raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            call.cancel()
            if writer is not None:
                writer.cancel()
                await asyncio.wait([writer])

    def _pulse(self, call: _Call, interval: float, ttl: float) -> None:
        """Send a heartbeat every `interval` seconds; end the call when the server has said nothing for `ttl`."""
        if self._timer is not None:
            self._timer.cancel()
        self._heard = self._loop.time()

        def beat() -> None:
            if self._loop.time() - self._heard >= ttl:
                self._silent = True
                call.cancel()
                return
            self._heartbeat_due = True
            self._logs.check()
            self._wake.set()
            self._timer = self._loop.call_later(interval, beat)

        self._timer = self._loop.call_later(interval, beat)

    def _hello(self) -> Hello:
        options = self._options
        held = [(key, job.assignment.token) for key, job in self._runner.jobs.items()]
        held += [(key, report.token) for key, (_, report) in self._unacked.items()]
        return Hello(
            namespace=options.namespace,
            driver=options.driver,
            worker=options.worker,
            session=self._session,
            slots=options.slots,
            definitions=options.definitions,
            labels=options.labels,
            holding=[Holding(run=run, step=step, attempt=n, token=token) for (run, step, n), token in held],
            sdk=options.sdk,
            protocol=1,
        )

    def _take_welcome(self, welcome: Welcome) -> None:
        self._session = welcome.session
        self._runner.take_limits(welcome.limits)
        for each in welcome.revoked:
            self._revoke((each.run, each.step, each.attempt), "the server gave the attempt up")
        # What was sent on the old connection may not have arrived.
        self._logs.rewind()
        everything = self._logs.written
        self._unacked = {key: (everything, report) for key, (_, report) in self._unacked.items()}
        self._unsent = deque(self._unacked.values())
        self._welcomed = self._connected = True
        _log.info("connected to %s as session %s", self._connection.address, welcome.session)
        self._wake.set()
        self._changed.set()

    def _revoke(self, key: AttemptKey, message: str) -> None:
        self._runner.forget(key, message)
        pending = self._unacked.pop(key, None)
        if pending is not None and pending in self._unsent:
            self._unsent.remove(pending)
        self._logs.discard([key])

    def _take(self, message: WorkResponse) -> None:
        for assignment in message.assignments:
            key = (assignment.run, assignment.step, assignment.attempt)
            answered = self._unacked.get(key)
            if answered is not None:
                if answered[1].token == assignment.token:
                    continue
                self._revoke(key, "")
            self._runner.start(assignment)
        for ack in message.acks:
            self._take_ack(ack)
        for log_ack in message.log_acks:
            self._logs.ack((log_ack.run, log_ack.step, log_ack.attempt), log_ack.next_seq)
        for cancellation in message.cancellations:
            key = (cancellation.run, cancellation.step, cancellation.attempt)
            self._runner.cancel(key, cancellation.message, _seconds(cancellation.grace, 30.0))
        if message.HasField("drained"):
            self._drained = True
        if self._drain:
            self._changed.set()

    def _take_ack(self, ack: ResultAck) -> None:
        self._unacked.pop((ack.run, ack.step, ack.attempt), None)
        if ack.disposition not in _EXPECTED:
            _log.warning(
                "the result of %s/%s, attempt %d, does not count: %s %s",
                ack.run,
                ack.step,
                ack.attempt,
                Disposition.Name(ack.disposition).removeprefix("DISPOSITION_"),
                ack.message,
            )

    def _report(self, job: Job, result: DriverResult) -> None:
        run, step, attempt = job.key
        report = ResultReport(run=run, step=step, attempt=attempt, token=job.assignment.token, result=result)
        pending = (self._logs.written, report)
        self._unacked[job.key] = pending
        self._unsent.append(pending)
        self._wake.set()

    async def _write(self, call: _Call) -> None:
        """Send whatever has gathered, as one message after the other, until the connection ends."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while (request := self._gathered()) is not None:
                    with cancellable():
                        await call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The reader meets the same end, and says why.
            call.cancel()

    def _gathered(self) -> WorkRequest | None:
        """All that there is to say, up to the size of a message."""
        lines = self._logs.take(_MESSAGE_BYTES)
        request = WorkRequest(logs=lines)
        said = bool(lines)
        unsent, sent = self._unsent, self._logs.sent
        if unsent:
            budget = _MESSAGE_BYTES - request.ByteSize()
            while unsent and (unsent[0][0] <= sent or self._logs.stalled):
                report = unsent[0][1]
                budget -= report.ByteSize()
                # One that is larger than all that is usual goes alone.
                if budget < 0 and said:
                    break
                unsent.popleft()
                request.results.append(report)
                said = True
        if self._heartbeat_due:
            self._heartbeat_due = False
            request.heartbeat.SetInParent()
            said = True
        if self._drain and not self._drain_sent:
            self._drain_sent = True
            request.drain.SetInParent()
            said = True
        return request if said else None


def _seconds(duration: Duration, default: float) -> float:
    return duration.seconds + duration.nanos / 1e9 or default


def _is_refusal(failure: ApiError) -> bool:
    """Whether the server has something against this worker; all else may be different the next time."""
    return failure.code in _REFUSALS or failure.reason == "PROTOCOL_VIOLATION"

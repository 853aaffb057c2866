"""One worker's stream: what it says is handled, what it is given is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import structlog

from conveyor.core import errors, limits
from conveyor.core.names import is_step_id, name_fault
from conveyor.engine.loop import Engine
from conveyor.engine.results import result_event
from conveyor.engine.workers import Worker
from conveyor.gateway.logs_port import Logs
from conveyor.gateway.outbox import Outbox
from conveyor.gateway.sessions import Session, Sessions
from conveyor.logs.errors import LogsUnavailable
from conveyor.state.ids import is_run_id
from conveyor.state.runs import Unreadable
from conveyor.store.failpoints import failpoint
from conveyor.v1 import log_pb2, result_pb2, worker_pb2, worker_service_pb2

log = structlog.get_logger("conveyor.gateway")

LOGS_BEFORE_RESULT = 5.0
"""Seconds that a result waits for the lines before it; then it counts without them, and their loss is marked."""


async def answer(engine: Engine, namespace: str, report: result_pb2.ResultReport, driver: str) -> result_pb2.ResultAck:
    """Let a result count, and say what became of it; comes back when that is stored."""
    ack = result_pb2.ResultAck(run=report.run, step=report.step, attempt=report.attempt)
    try:
        event = result_event(report, driver)
    except ValueError as error:
        ack.disposition = result_pb2.DISPOSITION_INVALID
        ack.message = str(error)
        return ack
    try:
        if not is_run_id(report.run):
            raise errors.NotFound(f"{report.run[:64]!r} is not the id of a run")
        decision = await engine.handle(namespace, report.run, event)
    except (errors.NotFound, Unreadable) as error:
        # A run that cannot be read is put aside: for its workers it is gone.
        ack.disposition = result_pb2.DISPOSITION_NOT_FOUND
        ack.message = error.message
        return ack
    failpoint("gateway.before_ack")
    ack.disposition = decision.disposition
    ack.message = decision.message
    engine.metrics.result(decision.disposition)
    return ack


class WorkStream:
    """The conversation with one worker, from its Hello to the end of its stream."""

    def __init__(self, engine: Engine, sessions: Sessions, logs: Logs | None) -> None:
        self._engine = engine
        self._sessions = sessions
        self._logs = logs
        self._outbox = Outbox()
        self._logs_stored: asyncio.Task[None] | None = None
        self._under_way = 0

    async def converse(
        self,
        hello: worker_pb2.Hello,
        namespace: str,
        requests: AsyncIterator[worker_service_pb2.WorkRequest],
    ) -> AsyncIterator[bytes]:
        """What the worker is to be sent, serialized, until its stream ends. Raises why the server ends it."""
        outbox = self._outbox
        session, revoked, stops = await self._sessions.attach(hello, namespace, outbox)
        outbox.send(self._welcome(session, revoked))
        for told in stops:
            outbox.stop(told)
        self._sessions.ready(session, outbox)
        listening = asyncio.create_task(self._listen(session, requests))
        ticking = asyncio.create_task(self._tick())
        try:
            while (response := await outbox.next()) is not None:
                yield response
            if outbox.closed is not None and not isinstance(outbox.closed, _WorkerLeft):
                raise outbox.closed
        finally:
            listening.cancel()
            ticking.cancel()
            # What this stream began must come to its end even if it was cancelled itself.
            await asyncio.shield(self._engine.spawn(self._sessions.detach(session, outbox)))

    def _welcome(self, session: Session, revoked: Sequence[worker_pb2.Holding]) -> worker_service_pb2.WorkResponse:
        welcome = worker_pb2.Welcome(
            session=session.record.id, replica=session.record.replica, revoked=revoked, limits=server_limits()
        )
        welcome.heartbeat_interval.FromMicroseconds(int(self._sessions.heartbeat * 1e6))
        welcome.session_ttl.FromMicroseconds(int(self._sessions.ttl * 1e6))
        welcome.time.FromMicroseconds(self._engine.now())
        return worker_service_pb2.WorkResponse(welcome=welcome)

    async def _tick(self) -> None:
        """Show the worker that this handler lives, not just the connection."""
        while True:
            await asyncio.sleep(self._sessions.heartbeat)
            tick = worker_pb2.Tick()
            tick.time.FromMicroseconds(self._engine.now())
            self._outbox.tick(tick)

    async def _listen(self, session: Session, requests: AsyncIterator[worker_service_pb2.WorkRequest]) -> None:
        reason: errors.DomainError = _WorkerLeft()
        try:
            async for request in requests:
                self._sessions.sign_of_life(session)
                self._take(session, request)
                await self._outbox.room(self._under_way)
        except errors.DomainError as error:
            reason = error
        except grpc.RpcError as error:
            log.debug("stream_broken", session=session.record.id, error=str(error))
        except Exception as error:  # whatever it is: the stream ends, with its session in order
            log.error("stream_failed", session=session.record.id, exc_info=error)
            reason = errors.InternalError()
        finally:
            self._outbox.close(reason)

    def _take(self, session: Session, request: worker_service_pb2.WorkRequest) -> None:
        """Handle one message; what takes time goes on by itself, since the stream may end before it does."""
        if request.logs:
            check_lines(request.logs)
            self._logs_stored = self._engine.spawn(self._store_logs(session, request.logs, self._logs_stored))
        for report in request.results:
            self._under_way += 1
            self._engine.spawn(self._answer(session, report, self._logs_stored))
        if request.HasField("heartbeat") and request.heartbeat.slots not in (0, session.worker.slots):
            if request.heartbeat.slots > MAX_SLOTS:
                raise errors.ProtocolViolation(f"slots must be from 1 to {MAX_SLOTS}")
            self._sessions.resize(session, request.heartbeat.slots)
        if request.HasField("drain"):
            self._sessions.drain(session, self._outbox)
            self._outbox.send(worker_service_pb2.WorkResponse(drained=worker_pb2.Drained()))
        if request.HasField("hello"):
            raise errors.ProtocolViolation("Hello may be said only once on a stream")

    async def _answer(self, session: Session, report: result_pb2.ResultReport, logs: asyncio.Task[None] | None) -> None:
        worker = session.worker
        try:
            if logs is not None and not logs.done():
                await asyncio.wait([logs], timeout=LOGS_BEFORE_RESULT)
            ack = await self._ack(worker, report)
        finally:
            self._under_way -= 1
            # The worker has done with it, whatever became of the result.
            if self._engine.pool.holder(report.token) is worker:
                self._engine.relieve(report.token)
        # The stream that it came on may have been followed by another one.
        if session.outbox is not None:
            session.outbox.ack(ack)

    async def _ack(self, worker: Worker, report: result_pb2.ResultReport) -> result_pb2.ResultAck:
        if report.driver and report.driver != worker.driver:
            return result_pb2.ResultAck(
                run=report.run,
                step=report.step,
                attempt=report.attempt,
                disposition=result_pb2.DISPOSITION_INVALID,
                message=f"this stream is of driver {worker.driver}, the result of {report.driver}",
            )
        return await answer(self._engine, worker.namespace, report, worker.driver)

    async def _store_logs(
        self, session: Session, lines: Sequence[log_pb2.LogLine], before: asyncio.Task[None] | None
    ) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        if self._logs is None:
            return
        worker = session.worker
        try:
            acks = await self._logs.append(worker.namespace, lines, worker.driver)
        except LogsUnavailable as error:  # the worker keeps the lines and sends them again
            log.warning("log_lines_not_stored", driver=worker.driver, lines=len(lines), error=str(error))
            return
        if session.outbox is not None:
            session.outbox.ack_logs(acks)


MAX_SLOTS = 10_000


def check_lines(lines: Sequence[log_pb2.LogLine]) -> None:
    """Raises errors.ProtocolViolation for a line that cannot be one of an attempt.

    Its run and step become the subject under which it is stored: what is no name would reach other runs' lines, or
    break the broker's protocol.
    """
    known: set[tuple[str, str]] = set()
    for position, line in enumerate(lines):
        if (line.run, line.step) not in known:
            if not is_run_id(line.run):
                raise errors.ProtocolViolation(f"logs[{position}].run: {line.run[:64]!r} is not the id of a run")
            if not is_step_id(line.step):
                raise errors.ProtocolViolation(f"logs[{position}].step: {name_fault(line.step)}")
            known.add((line.run, line.step))
        if not line.attempt or not line.seq:
            raise errors.ProtocolViolation(f"logs[{position}]: attempts and lines count from 1")


class _WorkerLeft(errors.DomainError):
    """The worker ended its stream."""


def server_limits() -> worker_pb2.Limits:
    """What this server accepts, as it says in Welcome and GetServerInfo."""
    return worker_pb2.Limits(
        message_bytes=limits.MESSAGE_BYTES,
        result_data_bytes=limits.RESULT_DATA_BYTES,
        result_message_bytes=limits.RESULT_MESSAGE_BYTES,
        log_line_bytes=limits.LOG_LINE_BYTES,
        nesting=limits.STRUCT_NESTING,
    )

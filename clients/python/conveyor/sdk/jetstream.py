"""Takes part over NATS JetStream: tickets come from the driver's consumer, results and log lines are published."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from conveyor.sdk import jetstream_wire as wire
from conveyor.sdk.backoff import Backoff
from conveyor.sdk.cancellation import cancellable
from conveyor.sdk.driver import WorkerOptions
from conveyor.sdk.errors import ConfigurationError
from conveyor.sdk.jetstream_close import cancelled, closed
from conveyor.sdk.jetstream_pull import Puller
from conveyor.sdk.job import Job
from conveyor.sdk.log_buffer import AttemptKey, LogBuffer
from conveyor.sdk.runner import Handler, Runner
from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.result_pb2 import DriverResult, Outcome
from conveyor.v1.worker_pb2 import Limits

try:
    import nats.errors
    from nats.aio.client import Client as NatsClient
    from nats.js.api import ConsumerConfig
except ImportError:
    raise ConfigurationError(
        'the transport "jetstream" needs nats-py: pip install "conveyor-client[jetstream]"'
    ) from None

if TYPE_CHECKING:
    from nats.aio.msg import Msg

DEFAULT_URL = "nats://127.0.0.1:4222"

_log = logging.getLogger(__name__)

_ACK_WAIT = 30.0
_IN_PROGRESS_EVERY = 10.0
_PUBLISH_WITHIN = 5.0
# After so long a result goes out although its log lines do not: the stream of the logs may be away alone.
_LOGS_WITHIN = 10.0
# After the last job, a drained worker waits at most so long for the broker to take its results.
_FLUSHED_WITHIN = 30.0
_LOG_BYTES = 128 * 1024
_REMEMBERED = 4096


class JetStreamTransport:
    """A worker that pulls from the driver's consumer. Reconnects by itself, without end.

    A ticket is acked after its result was stored by the broker; until then the broker is told that work goes on.
    """

    def __init__(self, url: str | None, options: WorkerOptions, handler: Handler) -> None:
        """On the event loop that it will run on."""
        self._url = url or DEFAULT_URL
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._lines_waiting = asyncio.Event()
        self._logs = LogBuffer(self._loop, self._lines_waiting.set)
        self._runner = Runner(handler, options.slots, self._logs, self._report)
        self._tickets: dict[AttemptKey, tuple[wire.Ticket, Msg]] = {}
        # Tickets that were answered: the broker may deliver them once more when an ack was lost.
        self._answered: OrderedDict[tuple[AttemptKey, str], None] = OrderedDict()
        self._published_lines = 0
        self._lines_published = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self._changed = asyncio.Event()
        self._told = ""
        self._consumer = wire.consumer(options.namespace, options.driver)
        self._client = NatsClient()
        self._js = self._client.jetstream(timeout=_PUBLISH_WITHIN)
        self._puller = Puller(
            self._client,
            wire.MESSAGES_STREAM,
            self._consumer,
            free=self._free,
            deliver=self._deliver,
            make_consumer=self._make_consumer,
        )

    async def run(self) -> None:
        """Take part until drained."""
        try:
            if await self._unless_drained(self._start()):
                work = [self._puller.run(), self._publish_lines(), self._say_in_progress(), self._until_finished()]
                await _first(work)
        finally:
            await self._close()

    def drain(self) -> None:
        """Take no more work; `run` returns when what runs has ended and its results are published."""
        self._draining.set()
        self._changed.set()

    async def _unless_drained(self, body: Coroutine[Any, Any, None]) -> bool:
        """Whether it ended before a drain."""
        task = asyncio.ensure_future(body)
        drained = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait([task, drained], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
                return True
            return False
        finally:
            await cancelled(task, drained)

    async def _start(self) -> None:
        await self._client.connect(
            self._url,
            name=f"{self._options.driver} {self._options.worker}",
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            ping_interval=10,
            max_outstanding_pings=2,
        )
        self._runner.take_limits(
            Limits(
                message_bytes=self._client.max_payload,
                # Escapes make a line up to six times as long.
                log_line_bytes=min(self._logs.line_bytes, self._client.max_payload // 8),
            )
        )
        namespace = self._options.namespace
        await self._client.subscribe(wire.cancel_filter(namespace), cb=self._on_cancel)
        await self._make_consumer()
        _log.info("connected to %s as consumer %s", self._url, self._consumer)

    async def _make_consumer(self) -> None:
        """Make the driver's consumer, or make it what it should be. Waits for broker and stream without end."""
        subjects = wire.filters(self._options.namespace, self._options.driver, self._options.definitions)
        config = ConsumerConfig(
            name=self._consumer,
            filter_subject=subjects[0] if len(subjects) == 1 else None,
            filter_subjects=subjects if len(subjects) > 1 else None,
            ack_wait=_ACK_WAIT,
            # All workers of the driver share it.
            max_ack_pending=10_000,
        )
        backoff = Backoff(longest=2.0)
        told = ""
        while True:
            try:
                with cancellable():
                    await self._js.add_consumer(wire.MESSAGES_STREAM, config, timeout=_PUBLISH_WITHIN)
                return
            except (nats.errors.Error, TimeoutError) as error:
                text = str(error) or type(error).__name__
            if text != told:
                _log.warning("cannot make the consumer %s on %s: %s; trying again", self._consumer, self._url, text)
                told = text
            await asyncio.sleep(backoff.next())

    async def _until_finished(self) -> None:
        idle_since: float | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not self._draining.is_set() or self._runner.jobs:
                continue
            if not self._tickets and not self._tasks:
                return
            if idle_since is None:
                idle_since = self._loop.time()
                self._loop.call_later(_FLUSHED_WITHIN, self._changed.set)
            elif self._loop.time() - idle_since >= _FLUSHED_WITHIN:
                _log.warning("the broker did not take the last results; their tickets go to other workers")
                return

    async def _close(self) -> None:
        """End everything; tickets that were not answered go back to the broker, for other workers."""
        await self._runner.close()
        await cancelled(*self._tasks)
        if self._client.is_connected:
            with suppress(nats.errors.Error):
                for _, message in self._tickets.values():
                    await message.nak()
                await self._client.flush(2)
        # What it could not send any more to a broker that is gone is no error now.
        await closed(self._client)

    def _free(self) -> int:
        return 0 if self._draining.is_set() else self._options.slots - len(self._tickets)

    def _deliver(self, message: "Msg") -> None:
        """Begin with a ticket."""
        try:
            ticket = wire.decode_ticket(message.data, self._options.namespace, self._options.driver)
        except wire.Malformed as error:
            _log.warning("a message on %s is no ticket and is left out: %s", message.subject, error.message)
            self._later(message.term())
            return
        assignment = ticket.assignment
        if assignment.HasField("timeout") and not assignment.HasField("deadline"):
            assignment.deadline.FromDatetime(datetime.now(UTC) + assignment.timeout.ToTimedelta())
        key = (assignment.run, assignment.step, assignment.attempt)
        held = self._tickets.get(key)
        if (key, assignment.token) in self._answered:
            self._later(message.ack())
        elif held is not None and held[0].assignment.token == assignment.token:
            # Delivered again, e.g. by a restarted broker: it is this delivery that counts now.
            self._tickets[key] = (held[0], message)
        elif held is None and self._draining.is_set():
            self._later(message.nak())
        else:
            if held is not None:
                self._runner.forget(key, "the attempt was given out again")
                self._later(held[1].ack())
            self._tickets[key] = (ticket, message)
            if ticket.problem:
                failed = DriverResult(outcome=Outcome.OUTCOME_FAILED, message=ticket.problem, retryable=False)
                self._later(self._answer(key, ticket, failed, self._logs.written))
            else:
                self._runner.start(assignment, again=message.metadata.num_delivered > 1)

    def _report(self, job: Job, result: DriverResult) -> None:
        ticket, _ = self._tickets[job.key]
        self._later(self._answer(job.key, ticket, result, self._logs.written))

    async def _answer(self, key: AttemptKey, ticket: wire.Ticket, result: DriverResult, lines: int) -> None:
        """Publish a result, after the log lines that were written before it, and ack its ticket."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOGS_WITHIN), self._lines_published:
                await self._lines_published.wait_for(lambda: self._published_lines >= lines)
        token = ticket.assignment.token
        # The broker leaves out what comes again under the same id: the answer to a publish may be lost.
        headers = {"Nats-Msg-Id": f"{token}.result"} if token else None
        await self._publish(wire.result_subject(self._options.namespace), self._body(ticket, result), headers)
        self._answered[key, token] = None
        if len(self._answered) > _REMEMBERED:
            self._answered.popitem(last=False)
        held = self._tickets.get(key)
        if held is not None and held[0] is ticket:
            del self._tickets[key]
            with suppress(nats.errors.Error):
                await held[1].ack()
        self._puller.wake()

    def _body(self, ticket: wire.Ticket, result: DriverResult) -> bytes:
        body = wire.encode_result(ticket, result)
        limit = self._client.max_payload
        if len(body) <= limit:
            return body
        failed = DriverResult(
            outcome=Outcome.OUTCOME_FAILED,
            message=f"the result has {len(body)} bytes; the broker takes {limit}",
            retryable=False,
        )
        return wire.encode_result(ticket, failed)

    async def _publish_lines(self) -> None:
        """Publish log lines as they gather, those of one attempt in one message."""
        while True:
            await self._lines_waiting.wait()
            self._lines_waiting.clear()
            while lines := self._logs.take(_LOG_BYTES):
                for key, group in groupby(lines, lambda line: (line.run, line.step, line.attempt)):
                    mine = list(group)
                    await self._publish_group(key, mine, await self._earlier(key))
                    self._logs.ack(key, mine[-1].seq + 1)
                    async with self._lines_published:
                        self._published_lines += len(mine)
                        self._lines_published.notify_all()

    async def _earlier(self, key: AttemptKey) -> int:
        """How many lines an attempt has from a worker that had it before; 0 when that cannot be told."""
        log = self._logs.get(key)
        if log is None:
            return 0
        if log.earlier is None:
            run, step, attempt = key
            subject = wire.log_subject(self._options.namespace, run, step)
            log.earlier = 0
            # The broker's answer is waited for as long as that to a publish; the log is not worth more.
            with suppress(nats.errors.Error, TimeoutError), cancellable():
                last = await self._js.get_last_msg(wire.LOGS_STREAM, subject)
                log.earlier = wire.last_seq(last.data or b"", attempt)
        return log.earlier

    async def _publish_group(self, key: AttemptKey, lines: list[LogLine], earlier: int) -> None:
        run, step, _ = key
        held = self._tickets.get(key)
        pipeline = held[0].assignment.pipeline if held is not None else ""
        body = wire.encode_lines(lines, self._options.driver, pipeline, earlier)
        if len(body) > self._client.max_payload and len(lines) > 1:
            half = len(lines) // 2
            await self._publish_group(key, lines[:half], earlier)
            await self._publish_group(key, lines[half:], earlier)
            return
        await self._publish(wire.log_subject(self._options.namespace, run, step), body, None)

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str] | None) -> None:
        """Publish until the broker says that it has it."""
        backoff = Backoff(longest=2.0)
        told = False
        while True:
            try:
                with cancellable():
                    await self._js.publish(subject, body, timeout=_PUBLISH_WITHIN, headers=headers)
                return
            except nats.errors.MaxPayloadError:
                _log.error(
                    "a message of %d bytes on %s is too large for the broker and is left out", len(body), subject
                )
                return
            except (nats.errors.Error, TimeoutError) as error:
                if not told:
                    _log.warning("cannot publish on %s: %s; trying again", subject, str(error) or type(error).__name__)
                    told = True
            await asyncio.sleep(backoff.next())

    async def _say_in_progress(self) -> None:
        """Tell the broker that work goes on, so that it gives it to nobody else."""
        while True:
            await asyncio.sleep(_IN_PROGRESS_EVERY)
            if not self._client.is_connected:
                continue
            for _, message in list(self._tickets.values()):
                with suppress(nats.errors.Error):
                    await message.in_progress()

    async def _on_cancel(self, message: "Msg") -> None:
        try:
            notice = wire.decode_cancel(message.subject, message.data)
        except wire.Malformed as error:
            _log.warning("a message on %s is left out: %s", message.subject, error.message)
            return
        for key, (ticket, _) in self._tickets.items():
            assignment = ticket.assignment
            if (
                (assignment.run, assignment.step) == (notice.run, notice.step)
                and notice.attempt in (0, assignment.attempt)
                and notice.token in ("", assignment.token)
            ):
                self._runner.cancel(key, notice.message, notice.grace)

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if text != self._told:
            _log.warning("broker at %s: %s", self._url, text)
            self._told = text

    async def _on_disconnect(self) -> None:
        if not self._client.is_closed and not self._draining.is_set():
            _log.warning("the connection to the broker was lost; trying again")

    async def _on_reconnect(self) -> None:
        self._told = ""
        _log.info("connected to the broker again")
        self._puller.reconnected()

    def _later(self, body: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(body)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._changed.set()


async def _first(bodies: list[Coroutine[Any, Any, None]]) -> None:
    """Run all until one of them ends."""
    tasks = [asyncio.create_task(body) for body in bodies]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                await task
    finally:
        await cancelled(*tasks)

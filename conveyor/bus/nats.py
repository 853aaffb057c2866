"""The bus: one supervised connection to NATS, and what the rest of the server does with it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any

import structlog
from nats.aio.msg import Msg

from conveyor.bus import streams, subjects, wire
from conveyor.bus.consumers import ConsumerRegistry
from conveyor.bus.errors import BusConflict, BusError, BusUnavailable
from conveyor.bus.inbox import Handler, Inbox, Quarantine
from conveyor.bus.jetstream import JetStream
from conveyor.bus.options import BusOptions, StreamSettings
from conveyor.bus.ordered import OrderedReader
from conveyor.bus.session import Session, cancel_and_wait
from conveyor.bus.subjects import LOGS_STREAM, MESSAGES_STREAM
from conveyor.bus.tickets import Tickets

_log = structlog.get_logger("conveyor.bus")

_CHECK_S = 5.0
"""Between two looks at whether the streams are there."""
_MAX_DELAY_S = 2.0
"""Between two attempts to connect."""
_COMPLAIN_S = 30.0
"""Between two log lines about a broker that stays away."""
_OLDEST = (2, 14, 3)
"""The nats-server that all this was tried with first."""
_MAX_EVENTS = 10_000
"""Events that wait to be sent; more are dropped, the store knows it all."""
_CONSUMER_ADVISORIES = f"$JS.EVENT.ADVISORY.CONSUMER.*.{MESSAGES_STREAM}.*"
_NOTE = "Conveyor-Next"
_STREAM_ADVISORIES = "$JS.EVENT.ADVISORY.STREAM.*.*"


class Bus:
    """The connection to the broker, kept up for ever.

    `tickets` gives work to JetStream drivers, `consumers` knows who they are. Calls raise BusUnavailable while the
    broker is away, and BusConflict while a stream of somebody else stands in the way.
    """

    def __init__(self, options: BusOptions, settings: StreamSettings | None = None) -> None:
        """Connects nothing yet: `start` does."""
        options.check()
        self._options = options
        self._settings = settings or StreamSettings()
        self._jetstream: JetStream | None = None
        self._created: dict[str, str] = {}
        self._made: set[str] = set()
        self._problem: BusError = BusUnavailable("the broker was not reached yet")
        self._changed = asyncio.Event()
        self._check_now = asyncio.Event()
        self._callbacks: list[Callable[[bool], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(_MAX_EVENTS)
        self.consumers = ConsumerRegistry(self.current)
        self.tickets = Tickets(self.current, self._stream_created, self._streams_doubted)

    @classmethod
    async def start(cls, options: BusOptions, settings: StreamSettings | None = None) -> Bus:
        """Returns at once, also when the broker is away. Raises BusError for options that can never work."""
        bus = cls(options, settings)
        bus._spawn(bus._supervise())
        bus._spawn(bus._send_events())
        return bus

    async def close(self) -> None:
        """Ends everything, within a few seconds. Handlers of the inbox have two of them to come to an end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)
        await cancel_and_wait(*tasks)

    # The state of the connection.

    @property
    def available(self) -> bool:
        """Whether the broker is there, with the streams as they should be."""
        return self._jetstream is not None

    @property
    def problem(self) -> BusError | None:
        """Why the bus is not available, for people; None while it is."""
        return None if self.available else self._problem

    def on_available(self, callback: Callable[[bool], None]) -> None:
        """Calls back with True when the bus becomes available and with False when it no longer is."""
        self._callbacks.append(callback)

    def current(self) -> JetStream:
        """The session of this moment. Raises BusConflict or BusUnavailable with what `problem` says."""
        if self._jetstream is None:
            kind = BusConflict if isinstance(self._problem, BusConflict) else BusUnavailable
            raise kind(str(self._problem))
        return self._jetstream

    async def connected(self) -> JetStream:
        """Waits for as long as it takes until the bus is available."""
        while self._jetstream is None:
            self._changed.clear()
            await self._changed.wait()
        return self._jetstream

    async def ready(self, timeout: float) -> None:
        """Waits up to `timeout` seconds until the bus is available. Raises BusConflict and BusUnavailable."""
        try:
            async with asyncio.timeout(timeout):
                await self.connected()
        except TimeoutError:
            self.current()

    # Events and results.

    def publish_event(self, subject: str, body: bytes) -> None:
        """Sends an event if it can be sent now; never waits. The store is the truth, so a lost one only costs time."""
        if self.available:
            with contextlib.suppress(asyncio.QueueFull):
                self._events.put_nowait((subject, body))

    def publish_run_created(self, namespace: str, run: str) -> None:
        """Tells the other replicas of a new run, as `publish_event` does."""
        self.publish_event(subjects.run_created(namespace), wire.encode_run_created(namespace, run))

    def run_inbox(self, handler: Handler, quarantine: Quarantine) -> asyncio.Task[None]:
        """Hands every event of stream `pipeline` to `handler`, up to 64 at a time, until the task is cancelled.

        A message is acknowledged when its handler has returned. `Retry` brings it back after a second, any other
        exception after a growing while. What cannot be decoded, or has failed five times here, goes to `quarantine`.
        Events come at least once and in no order.
        """
        return self._spawn(Inbox(self.connected, handler, quarantine).run())

    async def cancel(self, namespace: str, run: str, step: str, body: bytes) -> None:
        """Tells a JetStream driver to stop, if it listens. Raises BusUnavailable."""
        await self.current().session.publish(subjects.cancel(namespace, run, step), body)

    # Logs.

    async def append_log(
        self, namespace: str, run: str, step: str, body: bytes, *, expected: int, note: str, timeout: float
    ) -> int:
        """Stores a batch of lines; returns its stream sequence.

        `expected` is the sequence of the step's last batch, 0 for none. Raises WrongSequence when it is another one.
        `note` is kept beside the body, for `last_log`.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected), _NOTE: note}
        subject = subjects.logs(namespace, run, step)
        return (await self.current().publish(subject, body, headers=headers, timeout=timeout)).sequence

    async def last_log(self, namespace: str, run: str, step: str) -> tuple[int, str]:
        """The stream sequence of the step's last batch and its note; 0 for none. Raises BusUnavailable."""
        wanted = {"last_by_subj": subjects.logs(namespace, run, step)}
        message = await self.current().message(LOGS_STREAM, wanted)
        if message is None:
            return 0, ""
        headers = base64.b64decode(message.get("hdrs") or "").decode(errors="replace")
        notes = (line.partition(":") for line in headers.split("\r\n"))
        return int(message["seq"]), next((value.strip() for key, _, value in notes if key == _NOTE), "")

    def read_logs(self, filters: list[str], *, start: int = 1) -> OrderedReader:
        """Reads the log stream from that sequence on."""
        return OrderedReader(self.connected, LOGS_STREAM, filters, start=start)

    async def purge_logs(self, namespace: str, run: str) -> None:
        """Deletes all lines of the run. Raises BusUnavailable."""
        for subject in subjects.logs_of_run(namespace, run):
            await self.current().call(f"STREAM.PURGE.{LOGS_STREAM}", {"filter": subject})

    # How it is kept up.

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _supervise(self) -> None:
        delay, complained = 0.0, 0.0
        while True:
            try:
                session = await Session.connect(self._options)
            except BusUnavailable as error:
                self._unavailable(error)
                if not complained or time.monotonic() - complained >= _COMPLAIN_S:
                    _log.warning("bus.unreachable", servers=_without_secrets(self._options.servers), error=str(error))
                    complained = time.monotonic()
                delay = min(max(0.1, 2 * delay), _MAX_DELAY_S)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                continue
            delay, complained = 0.0, 0.0
            serving = asyncio.create_task(self._serve(session))
            try:
                await session.watch()
                _log.warning("bus.lost")
            finally:
                self._unavailable(BusUnavailable("the connection to the broker was lost"))
                session_end = asyncio.create_task(session.close(flush=True))
                await cancel_and_wait(serving)
                await session_end

    async def _serve(self, session: Session) -> None:
        """Keeps the streams as they should be while the session lasts."""
        jetstream = JetStream(session)
        polling: asyncio.Task[None] | None = None
        complaint = ""
        try:
            await session.subscribe(_CONSUMER_ADVISORIES, self._consumer_advisory)
            await session.subscribe(_STREAM_ADVISORIES, self._stream_advisory)
            while not session.lost:
                self._check_now.clear()
                try:
                    self._created = await streams.ensure(jetstream, self._settings, self._made)
                    self._made.update(self._created)
                except BusError as error:
                    self._unavailable(error)
                    if str(error) != complaint:
                        complaint = str(error)
                        level = _log.error if isinstance(error, BusConflict) else _log.warning
                        level("bus.streams.failed", error=complaint)
                else:
                    complaint = ""
                    self._available(jetstream)
                    polling = polling or asyncio.create_task(self.consumers.run())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_S if self.available else 1.0):
                        await self._check_now.wait()
        except BusUnavailable as error:
            self._unavailable(error)
        finally:
            if polling is not None:
                await cancel_and_wait(polling)

    def _available(self, jetstream: JetStream) -> None:
        if self._jetstream is not None:
            return
        self._jetstream = jetstream
        version = jetstream.session.server_version
        _log.info("bus.available", version="{}.{}.{}".format(*version))
        if version < _OLDEST:
            _log.warning("bus.old_server", wanted="{}.{}.{}".format(*_OLDEST))
        self._tell(available=True)

    def _unavailable(self, problem: BusError) -> None:
        self._problem = problem
        if self._jetstream is None:
            return
        self._jetstream = None
        self.consumers.lost()
        self._tell(available=False)

    def _tell(self, *, available: bool) -> None:
        self._changed.set()
        for callback in self._callbacks:
            try:
                callback(available)
            except Exception:  # noqa: BLE001 - one listener must not take the others along
                _log.exception("bus.callback_failed")

    def _stream_created(self, stream: str) -> str:
        """When the stream was created. Raises BusUnavailable while it may just have been created anew."""
        created = self._created.get(stream)
        if created is None:
            raise BusUnavailable(f"stream {stream} is being looked at")
        return created

    def _streams_doubted(self) -> None:
        """Something made it likely that a stream is gone or new: look at once, and trust nothing until then."""
        self._created = {}
        self._check_now.set()

    async def _consumer_advisory(self, message: Msg) -> None:
        self.consumers.heard(message.subject.rpartition(".")[2])

    async def _stream_advisory(self, message: Msg) -> None:
        *_, action, stream = message.subject.split(".")
        if stream in streams.NAMES and action == "DELETED":
            self._streams_doubted()
        elif stream in streams.NAMES and action == "CREATED":
            # Our own creations are told too, so this is no reason for doubt.
            self._check_now.set()

    async def _send_events(self) -> None:
        while True:
            subject, body = await self._events.get()
            try:
                await self.current().session.publish(subject, body)
            except BusError as error:
                _log.debug("bus.event_dropped", subject=subject, error=str(error))


def _without_secrets(servers: Any) -> list[str]:
    """Addresses as they may stand in a log."""
    return [
        f"{server.partition('://')[0]}://{server.rpartition('@')[2]}" if "@" in server else server for server in servers
    ]

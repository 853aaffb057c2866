"""What arrives for the engine: each message handled, then acknowledged, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from conveyor.bus import wire
from conveyor.bus.errors import BusError, BusUnavailable, Retry, Undecodable
from conveyor.bus.events import InboxEvent, ResultArrived
from conveyor.bus.jetstream import JetStream
from conveyor.bus.pull import Delivery, Pull
from conveyor.bus.session import Session, cancel_and_wait
from conveyor.bus.subjects import ENGINE_CONSUMER, PIPELINE_STREAM

_log = structlog.get_logger("conveyor.bus")

Handler = Callable[[InboxEvent], Awaitable[None]]
Quarantine = Callable[[str, bytes, str], Awaitable[None]]
"""Keeps a message that can never be handled: where it was, its body, and why."""

BATCH = 64
"""Messages handled at a time."""
ACK_WAIT_S = 5.0
"""After so long without a sign from us the broker gives a message to another replica."""
_SIGN_S = 2.0
_EXPIRES_S = 2.0
MAX_FAILURES = 5
"""Exceptions of the handler after which a message is quarantined. `Retry` is not counted."""
_RETRY_S = 1.0
_MAX_REMEMBERED = 10_000

_Identity = tuple[int, int]


@dataclass(slots=True)
class _Running:
    """A message whose handler runs: where its newest delivery is answered, in which stream, and since when."""

    reply: str
    created: str
    since: float


class Inbox:
    """Reads stream `pipeline` through the durable consumer that all replicas share."""

    def __init__(self, connected: Callable[[], Awaitable[JetStream]], handler: Handler, quarantine: Quarantine) -> None:
        self._connected = connected
        self._handler = handler
        self._quarantine = quarantine
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[_Identity, _Running] = {}
        self._failures: OrderedDict[_Identity, int] = OrderedDict()
        self._session: Session | None = None
        self._created = ""
        """The stream, by when it was created: an answer for a former one would be taken for another message's."""
        self._unsent: OrderedDict[str, bytes] = OrderedDict()
        """Answers that could not be sent, by where they go: they are good on a later connection too."""
        self._pull: Pull | None = None

    async def run(self) -> None:
        """Until cancelled. Handlers that run then are awaited, until cancelled again."""
        try:
            while True:
                jetstream = await self._connected()
                try:
                    await self._read(jetstream)
                except BusError as error:
                    _log.info("bus.inbox.interrupted", error=str(error))
                # Not at full speed against a broker that refuses.
                await asyncio.sleep(0.1)
        finally:
            try:
                if self._tasks:
                    await asyncio.wait(self._tasks)
            finally:
                await cancel_and_wait(*self._tasks)

    async def _read(self, jetstream: JetStream) -> None:
        session = jetstream.session
        info = await jetstream.stream(PIPELINE_STREAM)
        if info is None:
            raise BusUnavailable("the stream is not there")
        if info["created"] != self._created:
            self._created = info["created"]
            self._unsent.clear()
        await jetstream.call(
            f"CONSUMER.CREATE.{PIPELINE_STREAM}.{ENGINE_CONSUMER}",
            {
                "stream_name": PIPELINE_STREAM,
                "config": {
                    "name": ENGINE_CONSUMER,
                    "durable_name": ENGINE_CONSUMER,
                    "ack_policy": "explicit",
                    "ack_wait": int(ACK_WAIT_S * 1e9),
                    "deliver_policy": "all",
                    "replay_policy": "instant",
                    "max_ack_pending": 20 * BATCH,
                    # Counted here: the broker would leave a message of which it has had enough where it is.
                    "max_deliver": -1,
                },
            },
        )
        pull = Pull(session, PIPELINE_STREAM, ENGINE_CONSUMER, expires=_EXPIRES_S)
        await pull.open()
        self._pull, self._session = pull, session
        signs = asyncio.create_task(self._give_signs(session))
        try:
            while self._unsent:
                reply, answer = next(iter(self._unsent.items()))
                await session.publish(reply, answer)
                del self._unsent[reply]
            while True:
                free = BATCH - len(self._tasks) - pull.outstanding
                if free >= BATCH // 2:
                    await pull.ask(free)
                delivery = await pull.get()
                if delivery is not None:
                    self._take(delivery)
        finally:
            self._pull = self._session = None
            await cancel_and_wait(signs)
            await pull.close()

    def _take(self, delivery: Delivery) -> None:
        running = self._running.get(delivery.identity)
        if running is not None:
            # Delivered again while its handler runs; that one acknowledges it.
            running.reply = delivery.reply
            return
        running = _Running(delivery.reply, self._created, time.monotonic())
        self._running[delivery.identity] = running
        task = asyncio.create_task(self._handle(running, delivery))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._pull is not None and self._pull.outstanding == 0:
            self._pull.wake()

    async def _handle(self, running: _Running, delivery: Delivery) -> None:
        try:
            answer = await self._judge(delivery)
        except Exception:  # noqa: BLE001 - nothing that a message causes may end the inbox
            _log.exception("bus.inbox.failed", sequence=delivery.sequence, subject=delivery.subject)
            answer = _later(_RETRY_S)
        finally:
            self._running.pop(delivery.identity, None)
        if running.created != self._created:
            return
        try:
            if self._session is not None:
                await self._session.publish(running.reply, answer)
                return
        except BusUnavailable:
            pass
        self._unsent[running.reply] = answer
        if len(self._unsent) > _MAX_REMEMBERED:
            # It will be delivered again, and handled as a duplicate.
            self._unsent.popitem(last=False)

    async def _judge(self, delivery: Delivery) -> bytes:
        """Handles the message; returns what to tell the broker."""
        try:
            event = wire.decode(delivery.subject, delivery.body)
            if event is None:
                _log.info("bus.inbox.ignored", subject=delivery.subject, why="only older servers care about it")
                return b"+ACK"
            if isinstance(event, ResultArrived):
                event = replace(event, message_id="{} {}".format(*delivery.identity).encode())
            await self._handler(event)
        except Undecodable as error:
            return await self._refuse(delivery, str(error))
        except Retry:
            return _later(_RETRY_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            failures = self._failures.pop(delivery.identity, 0) + 1
            _log.exception("bus.inbox.handler_failed", sequence=delivery.sequence, failures=failures)
            if failures >= MAX_FAILURES:
                return await self._refuse(delivery, f"{type(error).__name__}: {error}")
            self._failures[delivery.identity] = failures
            if len(self._failures) > _MAX_REMEMBERED:
                self._failures.popitem(last=False)
            return _later(min(0.1 * 4**failures, 30.0))
        self._failures.pop(delivery.identity, None)
        return b"+ACK"

    async def _refuse(self, delivery: Delivery, error: str) -> bytes:
        source = f"{PIPELINE_STREAM}/{delivery.sequence} {delivery.subject}"
        _log.warning("bus.inbox.quarantined", source=source, error=error)
        await self._quarantine(source, delivery.body, error)
        return b"+TERM"

    async def _give_signs(self, session: Session) -> None:
        """Tells the broker of handlers that take long that they live; at once of those older than the session."""
        while True:
            now = time.monotonic()
            for running in list(self._running.values()):
                if now - running.since >= _SIGN_S:
                    with contextlib.suppress(BusUnavailable):
                        await session.publish(running.reply, b"+WPI")
            await asyncio.sleep(_SIGN_S)


def _later(seconds: float) -> bytes:
    return b"-NAK " + json.dumps({"delay": int(seconds * 1e9)}).encode()

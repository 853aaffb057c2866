"""Pulls messages from a consumer, and notices when none can come any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nats.aio.msg import Msg

from conveyor.bus.errors import BusUnavailable
from conveyor.bus.jetstream import API, JsonObject
from conveyor.bus.session import Session, status

_GRACE_S = 1.5
"""How long the end of a pull may be overdue."""
_ENDED = ("Message Size Exceeds MaxBytes", "Batch Completed")
"""Statuses 409 that end one pull and nothing else."""


class PullBroken(BusUnavailable):
    """The consumer or its stream is gone, or the broker is leaving: make sure that they exist, and begin again."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as a consumer got it.

    `sequence` counts in the stream, `consumer_sequence` counts this consumer's deliveries, `deliveries` those of this
    message, `time` is when it was stored, in nanoseconds, and `pending` is how many more match now.
    """

    subject: str
    body: bytes
    reply: str
    sequence: int
    consumer_sequence: int
    deliveries: int
    time: int
    pending: int

    @property
    def identity(self) -> tuple[int, int]:
        """Tells the message from all others, also from those of a stream that was created anew."""
        return self.sequence, self.time


class Pull:
    """Open pull requests on one consumer. Ends with its session."""

    def __init__(self, session: Session, stream: str, consumer: str, *, expires: float) -> None:
        self._session = session
        self._subject = f"{API}CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._expires = expires
        self._inbox = session.new_inbox()
        self._queue: asyncio.Queue[Delivery | BusUnavailable | None] = asyncio.Queue()
        self._close: list[Callable[[], Awaitable[None]]] = []
        self._forget: Callable[[], None] | None = None
        self.outstanding = 0
        """Messages that were asked for and have neither come nor been given up."""
        self.oversized = False
        """The last request ended because the next message is larger than its `max_bytes`."""

    async def open(self) -> None:
        self._close.append(await self._session.subscribe(self._inbox, self._received))
        self._forget = self._session.on_lost(self._lost)

    async def close(self) -> None:
        if self._forget is not None:
            self._forget()
        for close in self._close:
            await close()
        self._close.clear()

    async def ask(self, count: int, *, max_bytes: int = 0) -> None:
        """Asks for so many more messages."""
        request: JsonObject = {"batch": count, "expires": int(self._expires * 1e9)}
        if max_bytes:
            request["max_bytes"] = max_bytes
        self.oversized = False
        self.outstanding += count
        await self._session.publish(self._subject, json.dumps(request).encode(), reply=self._inbox)

    def wake(self) -> None:
        """Makes `get` return None once."""
        self._queue.put_nowait(None)

    @property
    def empty(self) -> bool:
        """Whether `get` would wait."""
        return self._queue.empty()

    async def get(self) -> Delivery | None:
        """The next message; None when a request has ended or somebody called `wake`. Raises PullBroken."""
        if self.outstanding and self._queue.empty():
            try:
                async with asyncio.timeout(self._expires + _GRACE_S):
                    item = await self._queue.get()
            except TimeoutError:
                raise PullBroken("the broker does not answer pull requests") from None
        else:
            item = await self._queue.get()
        if isinstance(item, BusUnavailable):
            raise item
        return item

    def _lost(self) -> None:
        self._queue.put_nowait(BusUnavailable("the connection to the broker was lost"))

    async def _received(self, message: Msg) -> None:
        match status(message):
            case 0:
                self.outstanding = max(0, self.outstanding - 1)
                self._queue.put_nowait(_delivery(message))
            case 100:
                pass
            case code:
                headers = message.headers or {}
                description = headers.get("Description", "")
                if code in (404, 408) or description.startswith(_ENDED):
                    self.oversized = description.startswith(_ENDED[0])
                    left = headers.get("Nats-Pending-Messages", "")
                    self.outstanding = max(0, self.outstanding - int(left)) if left.isdigit() else 0
                    self._queue.put_nowait(None)
                else:
                    self._queue.put_nowait(PullBroken(description or f"status {code}"))


def _delivery(message: Msg) -> Delivery:
    """Reads the reply subject: `$JS.ACK.[domain.account.]stream.consumer.deliveries.sequence.consumer.time.pending`."""
    tokens = message.reply.split(".")
    deliveries, sequence, consumer_sequence, time, pending = tokens[4:9] if len(tokens) == 9 else tokens[6:11]
    return Delivery(
        subject=message.subject,
        body=message.data,
        reply=message.reply,
        sequence=int(sequence),
        consumer_sequence=int(consumer_sequence),
        deliveries=int(deliveries),
        time=int(time),
        pending=int(pending),
    )

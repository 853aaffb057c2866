"""Reads a part of a stream in order, live, and goes on where it was after whatever happens to the broker."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from conveyor.bus.errors import ApiError, BusError, BusUnavailable
from conveyor.bus.jetstream import JetStream
from conveyor.bus.pull import Pull, PullBroken

_BATCH = 64
_BYTES = 2 * 1024 * 1024
"""What one request may bring; a larger single message is asked for alone."""
_EXPIRES_S = 20.0
_FORGET_S = 60
"""The broker drops a reader's consumer so long after its reader."""


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A stored message. `pending` is how many more matched when it was sent."""

    sequence: int
    subject: str
    body: bytes
    pending: int


class OrderedReader:
    """Messages of `filters` in stream order, each once.

    `created` is the stream's creation as the broker says it, known once `next` has been called: when it changes, the
    stream is another one, and reading begins at its first message. Use as an asynchronous context manager.
    """

    def __init__(
        self,
        connected: Callable[[], Awaitable[JetStream]],
        stream: str,
        filters: Sequence[str],
        *,
        start: int = 1,
    ) -> None:
        self._connected = connected
        self._stream = stream
        self._filters = list(filters)
        self._next = max(1, start)
        self._jetstream: JetStream | None = None
        self._name = ""
        self._pull: Pull | None = None
        self._delivered = 0
        self.created = ""
        self.first = 0
        """The sequence of the first message that the stream still had."""
        self.pending = 0
        """How many stored messages had not been read when the broker last said."""

    async def __aenter__(self) -> OrderedReader:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close(forget=True)

    async def next(self) -> StreamMessage | None:
        """The next message, or None when there may be none now: look at `pending`, and ask again to wait longer.

        Raises BusUnavailable when the broker is away; asking again goes on where it was.
        """
        try:
            if self._pull is None:
                await self._open()
                return None
            return await self._read(self._pull)
        except BusError:
            await self._close(forget=False)
            raise

    async def at_end(self) -> bool:
        """Whether everything that is stored at this moment has been returned. Raises BusUnavailable."""
        if self._jetstream is None or self._pull is None:
            return False
        # The stream is asked, since its consumers hear of a message only after its publisher has the ack.
        for wanted in self._filters:
            last = await self._jetstream.message(self._stream, {"last_by_subj": wanted})
            if last is not None and int(last["seq"]) >= self._next:
                return False
        info = await self._jetstream.stream(self._stream)
        return info is not None and info["created"] == self.created

    async def seek(self, start: int) -> None:
        """Goes on with the message of this sequence, or the first after it."""
        self._next = max(1, start)
        await self._close(forget=True)

    def wake(self) -> None:
        """Makes a `next` that waits return None."""
        if self._pull is not None:
            self._pull.wake()

    async def _read(self, pull: Pull) -> StreamMessage | None:
        if pull.outstanding == 0 and pull.empty:
            if pull.oversized:
                await pull.ask(1)
            else:
                await pull.ask(_BATCH, max_bytes=_BYTES)
        delivery = await pull.get()
        if delivery is None:
            return None
        if delivery.consumer_sequence != self._delivered + 1:
            raise PullBroken("a message was lost on the way")
        self._delivered += 1
        self._next = delivery.sequence + 1
        self.pending = delivery.pending
        return StreamMessage(delivery.sequence, delivery.subject, delivery.body, delivery.pending)

    async def _open(self) -> None:
        jetstream = await self._connected()
        info = await jetstream.stream(self._stream)
        if info is None:
            raise BusUnavailable(f"stream {self._stream} is not there")
        if self.created and info["created"] != self.created:
            self._next = 1
        self.created = info["created"]
        self.first = int(info["state"]["first_seq"])
        self._name = f"reader-{secrets.token_hex(8)}"
        consumer = await jetstream.call(
            f"CONSUMER.CREATE.{self._stream}.{self._name}",
            {
                "stream_name": self._stream,
                "config": {
                    "name": self._name,
                    "deliver_policy": "by_start_sequence",
                    "opt_start_seq": self._next,
                    "ack_policy": "none",
                    "replay_policy": "instant",
                    "filter_subjects": self._filters,
                    "inactive_threshold": _FORGET_S * 1_000_000_000,
                    "mem_storage": True,
                    "num_replicas": 1,
                },
            },
        )
        self._jetstream = jetstream
        self._delivered = 0
        self.pending = int(consumer["num_pending"])
        self._pull = Pull(jetstream.session, self._stream, self._name, expires=_EXPIRES_S)
        await self._pull.open()

    async def _close(self, *, forget: bool) -> None:
        pull, self._pull = self._pull, None
        if pull is None:
            return
        await pull.close()
        if forget and self._jetstream is not None:
            with contextlib.suppress(BusUnavailable, ApiError):
                await self._jetstream.call(f"CONSUMER.DELETE.{self._stream}.{self._name}", timeout=1.0)

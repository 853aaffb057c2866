"""One connection to the broker, from the handshake to its loss; never revived.

nats-py can reconnect by itself, but then requests in flight wait for answers that never come, pull requests are
forgotten in silence, and a client that the server has closed for good stays closed. A fresh client per connection has
none of these states: whoever uses a session ends with it and takes the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from conveyor.bus.errors import BusUnavailable, TooLarge
from conveyor.bus.options import BusOptions

_log = structlog.get_logger("conveyor.bus")

PROBE_S = 3.0
"""Between two signs of life asked of the broker."""
PROBE_WAITS = 4
"""Seconds without an answer after which the connection counts as lost, in turns of the loop of a second each."""
REQUEST_S = 5.0
"""How long a request may take unless its caller says otherwise."""
_WRITE_S = 2.0
_PENDING_BYTES = 16 * 1024 * 1024

_AWAY = (OSError, TimeoutError, nats.errors.Error, RuntimeError)
"""How a client fails whose connection is broken. Of a closed socket uvloop says RuntimeError."""

Headers = Mapping[str, str]


class NoResponders(BusUnavailable):
    """Nobody listens on the subject: no such stream or consumer, or JetStream is off."""


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancels the tasks and waits for their end. nats-py swallows a cancellation now and then, so it is repeated."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.2)


class Session:
    """A connected client. All its calls are bounded in time and raise BusUnavailable once the connection is lost."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = f"_INBOX.{secrets.token_hex(12)}"
        self._numbers = itertools.count(1)
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        self._on_lost: set[Callable[[], None]] = set()
        self._lost = asyncio.Event()
        self._failure: Exception | None = None

    @classmethod
    async def connect(cls, options: BusOptions) -> Session:
        """Connects to the first server that answers. Raises BusUnavailable when none does."""
        client = Client()
        session = cls(client)
        try:
            async with asyncio.timeout(options.connect_timeout * (len(options.servers) + 1)):
                await client.connect(
                    servers=list(options.servers),
                    name=options.name,
                    allow_reconnect=False,
                    # Each server is tried once more at most; what comes after that is the caller's to decide.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=options.connect_timeout,  # type: ignore[arg-type]
                    ping_interval=10,
                    pending_size=_PENDING_BYTES,
                    flush_timeout=_WRITE_S,
                    error_cb=session._failed,
                    disconnected_cb=session._closed,
                    closed_cb=session._closed,
                    **options.arguments(),
                )
                await client.subscribe(f"{session._inbox}.*", cb=session._answered)
        except (*_AWAY, ValueError) as error:
            await session._dispose()
            # "No servers available" says less than what went wrong with the last of them.
            cause = session._failure or error
            raise BusUnavailable(str(cause) or type(cause).__name__) from error
        except BaseException:
            await session._dispose()
            raise
        return session

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    @property
    def max_payload(self) -> int:
        """Bytes of headers and body that the broker takes."""
        return self._client.max_payload

    @property
    def server_version(self) -> tuple[int, int, int]:
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    def new_inbox(self) -> str:
        """A subject that only this session listens on, if it does."""
        return f"{self._inbox}.in.{next(self._numbers)}"

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back once the connection is lost; returns what takes the callback away again."""
        if self.lost:
            callback()
        self._on_lost.add(callback)
        return lambda: self._on_lost.discard(callback)

    async def publish(self, subject: str, body: bytes, *, reply: str = "", headers: Headers | None = None) -> None:
        """Sends without an answer. Raises BusUnavailable and TooLarge."""
        size = len(body) + (sum(len(k) + len(v.encode()) + 4 for k, v in headers.items()) + 12 if headers else 0)
        if size > self.max_payload:
            raise TooLarge(size, self.max_payload)
        if self.lost:
            raise BusUnavailable("the broker is away")
        try:
            async with asyncio.timeout(_WRITE_S):
                await self._client.publish(subject, body, reply, dict(headers) if headers else None)
        except _AWAY as error:
            raise BusUnavailable(f"the broker is away: {error}") from error

    async def request(
        self, subject: str, body: bytes = b"", *, headers: Headers | None = None, timeout: float = REQUEST_S
    ) -> Msg:
        """Sends and returns the answer. Raises BusUnavailable, also when none comes within `timeout` seconds."""
        number = f"{next(self._numbers)}"
        answer = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            await self.publish(subject, body, reply=f"{self._inbox}.{number}", headers=headers)
            async with asyncio.timeout(timeout):
                message: Msg = await answer
        except TimeoutError:
            raise BusUnavailable(f"the broker did not answer within {timeout:g} s") from None
        finally:
            self._answers.pop(number, None)
        if status(message) == 503:
            raise NoResponders(f"nobody answers on {subject}")
        return message

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Listens by core NATS; returns what ends it. Raises BusUnavailable."""
        try:
            async with asyncio.timeout(_WRITE_S):
                subscription = await self._client.subscribe(subject, cb=callback)
        except _AWAY as error:
            raise BusUnavailable(f"the broker is away: {error}") from error

        async def unsubscribe() -> None:
            with contextlib.suppress(*_AWAY):
                async with asyncio.timeout(_WRITE_S):
                    await subscription.unsubscribe()

        return unsubscribe

    async def watch(self) -> None:
        """Returns when the connection is lost, which it also is when the broker stops answering."""
        while not self.lost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    await self._lost.wait()
                return
            # `flush` is satisfied with less when the reading task has died; `rtt` is not.
            probe = asyncio.create_task(self._client.rtt(timeout=60))
            try:
                for _ in range(PROBE_WAITS):
                    # A loop that was held up has several expired timers and unread answers at once: give it turns.
                    done, _ = await asyncio.wait({probe}, timeout=1.0)
                    if done or self.lost:
                        break
                if not probe.done() or probe.exception() is not None:
                    self._lose()
            finally:
                await cancel_and_wait(probe)

    async def close(self, *, flush: bool = False) -> None:
        """Ends the connection, within three seconds. With `flush`, what was published before has reached the broker."""
        if flush and not self.lost:
            with contextlib.suppress(*_AWAY):
                await self._client.flush(timeout=1)
        self._lose()
        await self._dispose()

    def _lose(self) -> None:
        if self.lost:
            return
        self._lost.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(BusUnavailable("the connection to the broker was lost"))
        for callback in list(self._on_lost):
            callback()

    async def _answered(self, message: Msg) -> None:
        answer = self._answers.get(message.subject.rpartition(".")[2])
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def _failed(self, error: Exception) -> None:
        self._failure = error
        _log.debug("bus.client_error", error=str(error) or type(error).__name__)

    async def _closed(self) -> None:
        self._lose()

    async def _dispose(self) -> None:
        """Closes the socket whatever state the client is in: it would wait for a broker that reads nothing."""
        client = self._client
        # Its own end stops where it fails to write, with its subscriptions still going on.
        listening = [subscription._wait_for_msgs_task for subscription in client._subs.values()]
        tasks = [
            task
            for task in (client._reading_task, client._ping_interval_task, client._flusher_task, *listening)
            if task is not None and task is not asyncio.current_task()
        ]
        writer = getattr(client._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_WRITE_S):
                await client.close()
        await cancel_and_wait(*tasks)


def status(message: Msg) -> int:
    """The status that the broker put in place of a body; 0 for a real message."""
    headers = message.headers
    if not headers or message.data:
        return 0
    text = headers.get("Status", "")
    return int(text) if text.isdigit() else 0

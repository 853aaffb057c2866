"""Answers of many messages: newline-delimited JSON, or server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from conveyor.api.errors import translate
from conveyor.http.answers import ErrorResponse, timed_out
from conveyor.http.failures import CallFailed, refused
from conveyor.http.writer import to_line, write
from conveyor.v1 import log_service_pb2

HEADERS_WITHIN = 1.0
"""Seconds after which the answer begins though there is no message yet. Until then an error has its own status."""

ALIVE_EVERY = 15.0
"""Seconds of silence after which something without meaning is sent, so that no proxy takes the stream for dead."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a stream is written. `end` makes the last part of a stream, from its error if it has one."""

    media_type: str
    message: Callable[[bytes, str], bytes]
    alive: bytes
    end: Callable[[CallFailed | None], bytes]


def _ndjson_end(failure: CallFailed | None) -> bytes:
    return to_line({"error": failure.to_json()}) + b"\n" if failure is not None else b""


def _event(line: bytes, cursor: str) -> bytes:
    # A browser that reconnects says the last id.
    return (f"id: {cursor}\n".encode() if cursor else b"") + b"data: " + line + b"\n\n"


def _event_end(failure: CallFailed | None) -> bytes:
    return b"event: end\ndata: " + to_line({"error": failure.to_json()} if failure is not None else {}) + b"\n\n"


NDJSON = Form("application/x-ndjson", lambda line, _: line + b"\n", b"\n", _ndjson_end)
EVENTS = Form("text/event-stream", _event, b":\n\n", _event_end)


def form_of(accept: str) -> Form:
    """The form that a client wants, by its Accept header."""
    return EVENTS if "text/event-stream" in accept.lower() else NDJSON


class StreamResponse(Response):
    """Writes responses as they come, no faster than the client reads, and ends the call when the client is gone."""

    def __init__(self, responses: AsyncGenerator[Message, None], form: Form, timeout: float | None) -> None:
        super().__init__(media_type=form.media_type)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        # nginx would gather what is to be seen at once.
        self.headers["x-accel-buffering"] = "no"
        self._responses = responses
        self._form = form
        self._timeout = timeout
        self._queue: asyncio.Queue[Message | CallFailed | None] = asyncio.Queue(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI wants it."""
        writing = asyncio.create_task(self._write(scope, receive, send))
        tasks = [writing, asyncio.create_task(self._run(scope["path"])), asyncio.create_task(_gone(receive))]
        try:
            await asyncio.wait([writing, tasks[-1]], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not writing.cancelled():
            writing.result()

    async def _run(self, path: str) -> None:
        """Make the call; its end, good or bad, is the last that comes into the queue."""
        end: CallFailed | None = None
        try:
            async with asyncio.timeout(self._timeout), aclosing(self._responses):
                async for response in self._responses:
                    await self._queue.put(response)
        except CallFailed as failure:
            end = failure
        except TimeoutError:
            end = timed_out()
        except Exception as error:  # noqa: BLE001  # without an end in the queue the stream would have none
            end = refused(translate(error, path))
        await self._queue.put(end)

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = await self._next(HEADERS_WITHIN)
        if isinstance(first, CallFailed):
            await ErrorResponse(first)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        item: Message | CallFailed | bytes | None = first
        while item is not None and not isinstance(item, CallFailed):
            body = item if isinstance(item, bytes) else self._form.message(await write(item), _cursor(item))
            await send({"type": "http.response.body", "body": body, "more_body": True})
            item = await self._next(ALIVE_EVERY)
        await send({"type": "http.response.body", "body": self._form.end(item), "more_body": False})

    async def _next(self, within: float) -> Message | CallFailed | bytes | None:
        """What comes next; the sign of life when nothing comes."""
        try:
            async with asyncio.timeout(within):
                return await self._queue.get()
        except TimeoutError:
            return self._form.alive


def _cursor(message: Any) -> str:
    """Where one may go on after a message."""
    if isinstance(message, log_service_pb2.ReadLogsResponse):
        return message.lines[-1].cursor if message.lines else ""
    cursor: str = getattr(message, "cursor", "")
    return cursor


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass

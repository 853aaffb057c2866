"""Answers of one message, and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc
from google.protobuf.message import Message
from starlette.responses import Response

from conveyor.http.failures import CallFailed, failed
from conveyor.http.writer import to_line, write


class ErrorResponse(Response):
    """A failure as Connect answers it.

    `unread`: the body was not looked at, or not to its end, which may never come; so the connection ends.
    """

    media_type = "application/json"

    def __init__(self, failure: CallFailed, *, unread: bool = False) -> None:
        super().__init__(to_line(failure.to_json()) + b"\n", failure.http_status, failure.headers)
        if unread:
            self.headers["connection"] = "close"


async def answer(responses: AsyncGenerator[Message, None], timeout: float | None) -> Response:
    """The answer of a call that has one response."""
    try:
        async with asyncio.timeout(timeout), aclosing(responses):
            response = await anext(responses)
    except CallFailed as failure:
        return ErrorResponse(failure)
    except TimeoutError:
        return ErrorResponse(timed_out())
    return Response(await write(response) + b"\n", media_type="application/json")


def timed_out() -> CallFailed:
    """The failure of a call whose client gave it less time than it takes."""
    return failed(grpc.StatusCode.DEADLINE_EXCEEDED, "the call took longer than Connect-Timeout-Ms allows")

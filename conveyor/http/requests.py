"""What a request over HTTP says: how it may be answered, in which time, and its body."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import grpc
from google.protobuf.message import Message
from starlette.requests import Request

from conveyor.core import errors, limits
from conveyor.http.failures import CallFailed, failed, refused
from conveyor.http.methods import Method
from conveyor.http.reader import read, read_all

_UNARY_TYPES = ("application/json",)
_STREAM_TYPES = ("application/json", "application/x-ndjson")

BODY_WITHIN = 60.0
"""Seconds in which a body must come."""

_DISCARDED_BYTES = 64 << 20
"""So much of a body that is too large is read nevertheless: most clients see no answer before they have sent all."""

_ON_THE_LOOP_BYTES = 16 << 10
"""Larger bodies are read in a thread."""


def check_headers(request: Request, method: Method) -> None:
    """Raises CallFailed for what this server does not speak."""
    version = request.headers.get("connect-protocol-version", "1")
    if version != "1":
        raise refused(errors.InvalidRequest(f"Connect-Protocol-Version must be 1, not {version}"))
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise failed(grpc.StatusCode.UNIMPLEMENTED, f"send the body as it is, without Content-Encoding: {encoding}")
    if method.converses:
        text = "a worker and the server converse, which plain HTTP cannot: use gRPC, or JetStream, see docs/workers.md"
        raise failed(grpc.StatusCode.UNIMPLEMENTED, text)
    if request.method == "POST":
        _check_type(request.headers.get("content-type", ""), _STREAM_TYPES if method.client_streams else _UNARY_TYPES)


def _check_type(given: str, taken: tuple[str, ...]) -> None:
    kind, _, parameters = given.partition(";")
    charset = parameters.strip().lower()
    if kind.strip().lower() not in taken or charset not in ("", "charset=utf-8"):
        text = f"the body must be JSON: send Content-Type: {taken[0]}, not {given or 'none'}"
        raise refused(errors.InvalidRequest(text), http_status=415, headers={"Accept-Post": ", ".join(taken)})


def timeout_of(request: Request) -> float | None:
    """The seconds that the client gives the call; None: all. Raises CallFailed."""
    text = request.headers.get("connect-timeout-ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise refused(
            errors.InvalidRequest(f"Connect-Timeout-Ms must be milliseconds in at most 10 digits, not {text}")
        )
    return int(text) / 1000


async def message_of(request: Request, method: Method) -> Any:
    """What the handler takes: a message, an iterator of messages, or the error that answers the request.

    Raises CallFailed when the body is too large to be looked at, and Starlette's ClientDisconnect.
    """
    body = await _body(request)
    if method.client_streams:
        return _each(method.request, body)
    try:
        if len(body) <= _ON_THE_LOOP_BYTES:
            message = read(method.request, body)
        else:
            message = await asyncio.to_thread(read, method.request, body)
    except errors.InvalidRequest as error:
        return error
    _resume(message, request.headers.get("last-event-id", ""))
    return message


def _resume(message: Any, last: str) -> None:
    """Go on where a browser was whose connection broke."""
    if last and "cursor" in message.DESCRIPTOR.fields_by_name:
        message.cursor = last


async def _each(kind: type[Message], body: bytes) -> AsyncIterator[Message]:
    messages = read_all(kind, body)
    while (message := await asyncio.to_thread(next, messages, None)) is not None:
        yield message


def _query_message(request: Request) -> bytes:
    """The message in the address, as Connect's clients write it there. Raises CallFailed."""
    query: str = request.scope["query_string"].decode(errors="surrogateescape")
    given = dict(parse_qsl(query, keep_blank_values=True, errors="surrogateescape"))
    version, encoding = given.get("connect", "v1"), given.get("encoding", "json")
    compression = given.get("compression") or "identity"
    if version != "v1":
        raise refused(errors.InvalidRequest(f"connect must be v1, not {_shown(version)}"))
    if encoding != "json":
        text = f"the message must be JSON: say encoding=json, not {_shown(encoding)}"
        raise refused(errors.InvalidRequest(text), http_status=415)
    if compression != "identity":
        text = f"send the message as it is, without compression={_shown(compression)}"
        raise failed(grpc.StatusCode.UNIMPLEMENTED, text)
    message = given.get("message", "").encode(errors="surrogateescape")
    if given.get("base64") != "1":
        return message
    bare = message.rstrip(b"=")
    try:
        return base64.b64decode(bare + b"=" * (-len(bare) % 4), b"-_", validate=True)
    except binascii.Error:
        raise refused(errors.InvalidRequest("with base64=1 the message must be base64 for addresses")) from None


def _shown(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


async def _body(request: Request) -> bytes:
    if request.method in ("GET", "HEAD"):
        return _query_message(request)
    declared = request.headers.get("content-length", "")
    if "expect" in request.headers and declared.isdigit() and int(declared) > limits.MESSAGE_BYTES:
        raise _too_large()  # the client waits for a word before it sends the body
    parts, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_WITHIN):
            async for part in request.stream():
                size += len(part)
                if size <= limits.MESSAGE_BYTES:
                    parts += part
                elif size > limits.MESSAGE_BYTES + _DISCARDED_BYTES:
                    break
    except TimeoutError:
        text = f"the body did not come within {BODY_WITHIN:g} s"
        raise failed(grpc.StatusCode.DEADLINE_EXCEEDED, text, http_status=408) from None
    if size > limits.MESSAGE_BYTES:
        raise _too_large()
    return bytes(parts)


def _too_large() -> CallFailed:
    return refused(errors.TooLarge(f"the body has more than {limits.MESSAGE_BYTES} bytes"), http_status=413)

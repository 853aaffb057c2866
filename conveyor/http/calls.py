"""Calls of the server's gRPC handlers: the same servicers behind the same interceptor, with no connection between."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Never

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from conveyor.api.errors import DETAILS_KEY
from conveyor.api.interceptors import ServerInterceptor
from conveyor.http.failures import CallFailed

Find = Callable[[Any], Any]
"""Finds the handler of a call by its details, as grpc.GenericRpcHandler.service does."""


@dataclass(frozen=True, slots=True)
class _Details:
    """What finds the handler of a call."""

    method: str
    invocation_metadata: tuple[()] = ()


class _Context:
    """As much of a call's context as interceptor and servicers use."""

    def __init__(self) -> None:
        self.status = status_pb2.Status()
        self._code = grpc.StatusCode.OK

    def code(self) -> grpc.StatusCode:
        return self._code

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, bytes]] = ()
    ) -> Never:
        self._code = code
        whole = dict(trailing_metadata).get(DETAILS_KEY)
        if whole is not None:
            self.status.ParseFromString(whole)
        else:
            self.status.code, self.status.message = code.value[0], details
        raise grpc.aio.AbortError


class Calls:
    """All calls of a server, by their path."""

    def __init__(self, find: Find, interceptor: ServerInterceptor) -> None:
        self._find = find
        self._interceptor = interceptor

    async def call(self, path: str, request: Any) -> AsyncGenerator[Message, None]:
        """The responses of a call, of which a unary one has one. Raises CallFailed.

        The request is a message, or an asynchronous iterator of messages where the client streams.
        """

        async def find(details: Any) -> Any:
            return self._find(details)

        handler: Any = await self._interceptor.intercept_service(find, _Details(path))  # type: ignore[arg-type]
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        context = _Context()
        answer = behaviour(request, context)
        try:
            if isinstance(answer, AsyncGenerator):
                async with aclosing(answer):
                    async for response in answer:
                        yield response
            elif (response := await answer) is not None:
                yield response
        except grpc.aio.AbortError:
            raise CallFailed(context.status) from None

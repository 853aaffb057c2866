"""Single calls by grpc.aio: all that the asyncio client does otherwise than the other one."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar, cast

import grpc

from conveyor.sdk.cancellation import cancellable

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")

Method: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[RequestT, AnswerT]
"""What takes a request and answers it."""

Messages: TypeAlias = grpc.aio.UnaryStreamCall[Any, AnswerT]
"""A server stream that is open."""

sleep = asyncio.sleep


async def unary(method: Method[RequestT, AnswerT], request: RequestT, timeout: float) -> AnswerT:
    """The answer to a request. Raises grpc.aio.AioRpcError."""
    with cancellable():
        return await method(request, timeout=timeout)


class Stream(Generic[AnswerT]):
    """What a server stream sends."""

    def __init__(self, start: Callable[[], Messages[AnswerT]], silence: float | None) -> None:
        self._call = start()
        self._silence = silence

    async def read(self) -> AnswerT | None:
        """The next message, or None when the stream has ended with OK.

        Raises grpc.aio.AioRpcError, and TimeoutError when nothing came for `silence` seconds.
        """
        async with asyncio.timeout(self._silence):
            with cancellable():
                answer = await self._call.read()
        return None if answer is grpc.aio.EOF else cast(AnswerT, answer)

    def cancel(self) -> None:
        """End it, if it has not ended."""
        self._call.cancel()

"""What holds for every call: errors become statuses, calls are counted, and none begins while the server stops."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Never, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from conveyor.api import errors as api_errors
from conveyor.core import errors

Observe = Callable[[str, grpc.StatusCode, float], None]
"""Takes the method ("/conveyor.v1.RunService/GetRun"), the status, and the seconds that the call took."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# Health answers until the end: it is how one learns that the server stops.
_ALWAYS_SERVED = "/grpc.health."


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server, once per method.

    A request that could not be read comes as the error that answers it.
    """

    def __init__(self, observe: Observe | None = None) -> None:
        self._observe = observe
        self._stopping = False
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    def stop(self) -> None:
        """Refuse every call that begins from now on."""
        self._stopping = True

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The wrapped handler of the method; None for a method that nobody serves."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def _wrap(self, method: str, handler: Any) -> Handler:
        parse, serialize = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._call(method, handler.unary_unary), _tolerant(parse), serialize
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(method, handler.unary_stream), _tolerant(parse), serialize
            )
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                self._call(method, handler.stream_unary), _refusing(parse), serialize
            )
        return grpc.stream_stream_rpc_method_handler(
            self._streaming(method, handler.stream_stream), _refusing(parse), serialize
        )

    def _streaming(self, method: str, call: Any) -> Any:
        # A handler of a streaming response may be a generator, or a coroutine that writes to the context.
        return self._generate(method, call) if inspect.isasyncgenfunction(call) else self._call(method, call)

    def _call(self, method: str, call: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        served = method.startswith(_ALWAYS_SERVED)

        async def behaviour(request: Any, context: Context) -> Any:
            began = time.perf_counter()
            status = grpc.StatusCode.CANCELLED
            structlog.contextvars.bind_contextvars(rpc=method)
            try:
                self._admit(request, served)
                response = await call(request, context)
                status = grpc.StatusCode.OK
                return response
            except grpc.aio.BaseError:
                status = context.code()
                raise
            except Exception as error:  # noqa: BLE001  # the last resort for all calls
                failure = api_errors.translate(error, method)
                status = api_errors.code_of(failure)
                await _abort(context, failure)
            finally:
                if self._observe is not None:
                    self._observe(method, status, time.perf_counter() - began)

        return behaviour

    def _generate(self, method: str, call: Callable[[Any, Context], AsyncGenerator[Any, None]]) -> Any:
        served = method.startswith(_ALWAYS_SERVED)

        async def behaviour(request: Any, context: Context) -> AsyncIterator[Any]:
            began = time.perf_counter()
            status = grpc.StatusCode.CANCELLED
            structlog.contextvars.bind_contextvars(rpc=method)
            try:
                self._admit(request, served)
                async with aclosing(call(request, context)) as responses:
                    async for response in responses:
                        yield response
                status = grpc.StatusCode.OK
            except grpc.aio.BaseError:
                status = context.code()
                raise
            except Exception as error:  # noqa: BLE001  # the last resort for all calls
                failure = api_errors.translate(error, method)
                status = api_errors.code_of(failure)
                await _abort(context, failure)
            finally:
                if self._observe is not None:
                    self._observe(method, status, time.perf_counter() - began)

        return behaviour

    def _admit(self, request: Any, served: bool) -> None:
        if self._stopping and not served:
            raise errors.ShuttingDown
        if isinstance(request, errors.DomainError):
            raise request


async def _abort(context: Context, failure: errors.DomainError) -> Never:
    status = api_errors.status_of(failure)
    await context.abort(
        api_errors.code_of(failure), status.message, ((api_errors.DETAILS_KEY, status.SerializeToString()),)
    )


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A parser that returns the error for what it cannot read; gRPC itself would answer without a reason."""
    refusing = _refusing(parse)

    def parse_or_refuse(data: bytes) -> Any:
        try:
            return refusing(data)
        except errors.InvalidRequest as error:
            return error

    return parse_or_refuse


def _refusing(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A parser that raises the error for what it cannot read, which a handler gets that reads a client's stream."""

    def parse_or_raise(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            raise errors.InvalidRequest("the request cannot be read: it is malformed, or nested too deeply") from None

    return parse_or_raise

"""Services that come after the port: until then every call is told that the server is not ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conveyor.core import errors


class LateHandlers(grpc.GenericRpcHandler):
    """Takes what is added to a server, and serves it from the moment when `ready` is called.

    Health answers before: a probe is told the truth instead of an error.
    """

    def __init__(self) -> None:
        self._handlers: list[Any] = []
        self._ready = False
        health_pb2_grpc.add_HealthServicer_to_server(_Starting(), self)
        self._early, self._handlers = self._handlers, []

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """As a server does."""
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """The generic handlers serve the same methods."""

    def ready(self) -> None:
        """Serve."""
        self._ready = True

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method."""
        for handler in self._handlers if self._ready else self._early:
            found = handler.service(handler_call_details)
            if found is not None:
                return found
        return None if self._ready else grpc.stream_stream_rpc_method_handler(_not_ready)


class _Starting(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library leaves it untyped
    """The health of a server that starts; who watches it is sent away to ask again."""

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)

    async def Watch(self, request: Any, context: Any) -> None:
        await context.write(await self.Check(request, context))
        await _not_ready(request, context)


async def _not_ready(requests: Any, context: Any) -> None:
    raise errors.StoreUnavailable("the server is starting: its store does not answer yet")

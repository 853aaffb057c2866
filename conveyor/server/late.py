"""Services that come after the port: until then every call is told that the server is not ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from conveyor.core import errors


class LateHandlers(grpc.GenericRpcHandler):
    """Takes what is added to a server, and serves it from the moment when `ready` is called."""

    def __init__(self) -> None:
        self._handlers: list[Any] = []
        self._ready = False

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
        if not self._ready:
            return grpc.stream_stream_rpc_method_handler(_not_ready)
        for handler in self._handlers:
            found = handler.service(handler_call_details)
            if found is not None:
                return found
        return None


async def _not_ready(requests: Any, context: Any) -> None:
    raise errors.StoreUnavailable("the server is starting: its store does not answer yet")

"""The API over HTTP, as the settings want it."""

from __future__ import annotations

import grpc

from conveyor.api.interceptors import ServerInterceptor
from conveyor.http.app import make_app
from conveyor.http.browsers import for_browsers
from conveyor.http.calls import Calls
from conveyor.http.listener import HttpListener, Tls
from conveyor.server.config import Config, is_loopback, split_address


class HttpServer:
    """Serves the calls of the gRPC server on a port of its own."""

    def __init__(self, config: Config, handlers: grpc.GenericRpcHandler, interceptor: ServerInterceptor) -> None:
        """Raises OSError when the address is taken."""
        host, port = split_address(config.http_listen)
        tls = None
        if config.tls_cert is not None and config.tls_key is not None:
            tls = Tls(config.tls_cert, config.tls_key, config.tls_client_ca)
        app = for_browsers(
            make_app(Calls(handlers.service, interceptor)), config.http_allow_origin, loopback=is_loopback(host)
        )
        self._listener = HttpListener(app, host, port, tls, config.drain_timeout)
        self.address = f"{config.http_listen.rpartition(':')[0]}:{self._listener.port}"
        self._listener.start()

    async def stop(self) -> None:
        """End it; calls that are under way may end."""
        await self._listener.stop()

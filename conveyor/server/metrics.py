"""Prometheus metrics on a port of their own."""

from __future__ import annotations

from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from conveyor.server.config import split_address


class MetricsServer:
    """Answers GET /metrics in a thread."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        """Raises OSError when the address is taken."""
        host, port = split_address(address)
        server, _ = start_http_server(port, host, registry)
        self._server: WSGIServer = server
        self.address = f"{host}:{server.server_port}"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def gauge(registry: CollectorRegistry, name: str, text: str, read: Callable[[], float]) -> None:
    """A number that is read when it is asked for."""
    Gauge(name, text, registry=registry).set_function(read)

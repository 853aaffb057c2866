"""Prometheus metrics on a port of their own."""

from __future__ import annotations

from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

import grpc
from prometheus_client import CollectorRegistry, Gauge, Histogram, start_http_server

from conveyor.server.config import split_address

_CALL_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60)


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


class CallMetrics:
    """Counts calls and their time, by method and status code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "conveyor_call_seconds", "Time of calls.", ["method", "code"], buckets=_CALL_BUCKETS, registry=registry
        )
        self._known: dict[tuple[str, grpc.StatusCode], Histogram] = {}

    def observe(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """A call has ended; `method` as "/conveyor.v1.RunService/GetRun"."""
        labelled = self._known.get((method, code))
        if labelled is None:
            labelled = self._known[(method, code)] = self._seconds.labels(method.lstrip("/"), code.name)
        labelled.observe(seconds)


def gauge(registry: CollectorRegistry, name: str, text: str, read: Callable[[], float]) -> None:
    """A number that is read when it is asked for."""
    Gauge(name, text, registry=registry).set_function(read)

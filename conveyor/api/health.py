"""Health per service, for load balancers and people: what a service needs to be of use is there, or not."""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

NAME: str = health.SERVICE_NAME

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_WITHOUT_STORE = frozenset({"conveyor.v1.ServerService"})
_WITH_BROKER = frozenset({"conveyor.v1.LogService"})


class Health:
    """The state of every service and, under "", of the server: the store must be there.

    Without the broker only the log service is degraded: runs of gRPC drivers go on.
    """

    def __init__(self, services: list[str]) -> None:
        self._services = services
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: Any) -> None:
        """Serve it."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, *, store: bool, broker: bool) -> None:
        """Say what is there now."""
        for service in ("", *self._services):
            serving = store or service in _WITHOUT_STORE
            if service in _WITH_BROKER:
                serving = store and broker
            await self._servicer.set(service, _SERVING if serving else _NOT_SERVING)

    async def stop(self) -> None:
        """Nothing is served any more, for good."""
        await self._servicer.enter_graceful_shutdown()

"""The composition root: makes all parts, starts them in order, and stops them in the reverse one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics

from conveyor.api.interceptors import ServerInterceptor
from conveyor.bus.errors import BusError
from conveyor.bus.nats import Bus
from conveyor.core import limits
from conveyor.engine.clock import anchored_clock
from conveyor.logs.store import LogStore
from conveyor.server.buses import open_bus
from conveyor.server.config import Config, ConfigError, is_loopback, split_address, without_secrets
from conveyor.server.late import LateHandlers
from conveyor.server.listening import expand
from conveyor.server.measured import MeasuredStore
from conveyor.server.metrics import CallMetrics, MetricsServer
from conveyor.server.nats_child import NatsChild, NatsChildError
from conveyor.server.parts import Parts
from conveyor.server.stores import StoreProblem, open_store
from conveyor.server.tls import server_credentials
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Store
from conveyor.version import VERSION

if TYPE_CHECKING:
    from conveyor.server.http import HttpServer

log = structlog.get_logger("conveyor.server")

_MAX_STREAMS = 100_000
"""Streams that one connection may have open: a proxy brings many watchers over one."""


class StartupError(Exception):
    """The server cannot start; the message says what to do."""


class App:
    """One server process."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.replica = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self.addresses: list[str] = []
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self.registry = CollectorRegistry()
        self._now = anchored_clock()
        self._interceptor = ServerInterceptor(CallMetrics(self.registry).observe)
        self._late = LateHandlers()
        self._server: grpc.aio.Server | None = None
        self._store: Store | None = None
        self._nats: NatsChild | None = None
        self._bus: Bus | None = None
        self._logs: LogStore | None = None
        self._parts: Parts | None = None
        self._metrics: MetricsServer | None = None
        self._http: HttpServer | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """Bind the ports, open the store, then serve. Raises StartupError.

        A store that is away at the start is waited for; calls get UNAVAILABLE meanwhile. So is a broker, without
        which steps of gRPC drivers go on.
        """
        config = self._config
        try:
            await self._listen()
            if config.http_listen:
                self._http = self._listen_for_http()
            if config.metrics_listen:
                self._metrics = self._listen_for_metrics()
            self._store = await open_store(config)
            if not config.nats and config.data_dir is not None:
                self._nats = NatsChild(config.data_dir, port=config.nats_port)
                await self._nats.start()
            self._bus = await open_bus(config, self._nats.url if self._nats is not None else None)
        except (StoreProblem, NatsChildError, BusError, ConfigError) as error:
            raise StartupError(str(error)) from error
        self._logs = LogStore(self._bus)
        record = storage_pb2.ReplicaRecord(
            id=self.replica, start_time=self._now(), address=self.addresses[0], version=VERSION
        )
        store = MeasuredStore(self._store, self.registry)
        self._parts = Parts(config, record, store, self._bus, self._logs, self._now, self.registry)
        await self._parts.start(self._spawn)
        self._parts.serve(self._late)
        self._parts.measure(self.registry)
        self._late.ready()
        log.info(
            "serving",
            addresses=self.addresses,
            http=self._http.address if self._http is not None else None,
            metrics=self._metrics.address if self._metrics is not None else None,
            store="etcd" if config.etcd else "sqlite",
            nats=",".join(map(without_secrets, config.nats)) or (self._nats.url if self._nats is not None else None),
            replica=self.replica,
        )

    async def _listen(self) -> None:
        config = self._config
        server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=[
                # Otherwise two servers share a port without a word.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limits.MESSAGE_BYTES),
                ("grpc.max_send_message_length", limits.MESSAGE_BYTES),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                # What lies on the way may cut connections on which nothing has passed for half a minute.
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ],
        )
        server.add_generic_rpc_handlers((self._late,))
        credentials = server_credentials(config)
        for address in config.listen:
            if credentials is None:
                _warn_if_open(address)
            self.addresses.append(await self._bind(server, address, credentials))
        await server.start()
        self._server = server
        log.info("listening", addresses=self.addresses)

    async def _bind(self, server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
        """Have the server take connections there; the address, with its port."""
        port = 0
        try:
            for each in await asyncio.to_thread(expand, address):
                port = (
                    server.add_secure_port(each, credentials)
                    if credentials is not None
                    else server.add_insecure_port(each)
                )
        except (RuntimeError, OSError):
            raise StartupError(
                f"cannot listen on {address}: the port is taken or the address is not this machine's"
            ) from None
        return f"{address.rpartition(':')[0]}:{port}"

    def _listen_for_http(self) -> HttpServer:
        address = self._config.http_listen
        # It takes memory and time, which a server without it should keep.
        from conveyor.server.http import HttpServer

        try:
            server = HttpServer(self._config, self._late, self._interceptor)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {address} for HTTP: {error.strerror}; name another with --http-listen"
            ) from error
        if self._config.tls_cert is None:
            _warn_if_open(address)
        log.info("listening", http=server.address)
        return server

    def _listen_for_metrics(self) -> MetricsServer:
        address = self._config.metrics_listen
        try:
            return MetricsServer(address, self.registry)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {address} for metrics: {error.strerror}; name another with --metrics-listen"
            ) from error

    def _spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._part_ended)
        self._tasks.append(task)

    def _part_ended(self, task: asyncio.Task[Any]) -> None:
        """A part that runs for ever has ended: without it the server is not whole, so say so loudly."""
        if not task.cancelled():
            log.critical("part_ended", part=task.get_name(), exc_info=task.exception())

    async def _drain(self) -> None:
        """Take no more calls, and let those that are under way end."""
        ports = [self._http.stop()] if self._http is not None else []
        if self._server is not None:
            ports.append(self._server.stop(self._config.drain_timeout))
        await asyncio.gather(*ports)

    async def stop(self) -> None:
        """End streams, let calls end, then stop all parts; what workers have they keep, and bring to another server."""
        self._interceptor.stop()
        if self._parts is not None:
            self._parts.end_streams()
        await self._drain()
        for task in reversed(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._parts is not None:
            await self._parts.close()
        if self._logs is not None:
            await self._logs.close()
        if self._bus is not None:
            await self._bus.close()
        if self._nats is not None:
            await self._nats.stop()
        if self._store is not None:
            await self._store.close()
        if self._metrics is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._metrics.close)
        if self._server is not None:
            log.info("stopped", replica=self.replica)


def _warn_if_open(address: str) -> None:
    host, _ = split_address(address)
    if not is_loopback(host):
        log.warning("insecure", address=address, hint="anybody who reaches this address controls Conveyor")

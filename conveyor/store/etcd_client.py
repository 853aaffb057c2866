"""Calls to etcd: endpoints and their failover, TLS, tokens, deadlines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from conveyor.etcd.v1 import etcd_pb2 as pb
from conveyor.store.etcd_errors import AUTH_NOT_ENABLED, blames_endpoint, needs_new_token, translate
from conveyor.store.port import StoreError, Unavailable, Uncertain

_log = logging.getLogger("conveyor.store.etcd")

_SUSPECT_S = 5.0
"""How long an endpoint that did not answer is passed over while there are others."""

_OPTIONS: list[tuple[str, Any]] = [
    # A half-open connection is found out within 13 s. etcd refuses pings more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # A keepalive rides on any ping under way, and others would be waited for a minute.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Pages and fragments bound what comes, but one value may be as large as etcd takes.
    ("grpc.max_receive_message_length", -1),
    # A transaction is never sent twice, by whatever layer.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class _Answer(Protocol):
    @property
    def header(self) -> pb.ResponseHeader: ...


Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=_Answer)


@dataclass(frozen=True)
class Method(Generic[Request, Response]):
    """One method of etcd's API: its path, and how its messages are read and written."""

    path: str
    request: Callable[[Request], bytes]
    response: Callable[[bytes], Response]


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeRequest.SerializeToString, pb.RangeResponse.FromString)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnRequest.SerializeToString, pb.TxnResponse.FromString)
COMPACT = Method("/etcdserverpb.KV/Compact", pb.CompactionRequest.SerializeToString, pb.CompactionResponse.FromString)
WATCH = Method[pb.WatchRequest, pb.WatchResponse](
    "/etcdserverpb.Watch/Watch", pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString
)
LEASE_GRANT = Method(
    "/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest.SerializeToString, pb.LeaseGrantResponse.FromString
)
LEASE_REVOKE = Method(
    "/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest.SerializeToString, pb.LeaseRevokeResponse.FromString
)
LEASE_KEEP_ALIVE = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive",
    pb.LeaseKeepAliveRequest.SerializeToString,
    pb.LeaseKeepAliveResponse.FromString,
)
STATUS = Method("/etcdserverpb.Maintenance/Status", pb.StatusRequest.SerializeToString, pb.StatusResponse.FromString)
AUTHENTICATE = Method(
    "/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest.SerializeToString, pb.AuthenticateResponse.FromString
)


@dataclass(frozen=True)
class Tls:
    """Files in PEM for TLS to etcd.

    Without `ca` the system's roots count. `cert` and `key` are the client's own. `server_name` is what the server's
    certificate must name, if not the host of the endpoint.
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises OSError."""

        def read(path: Path | str | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(read(self.ca), read(self.key), read(self.cert))


class Endpoint:
    """One member's client address, with its channel."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None, server_name: str) -> None:
        self.target = target
        self.version: tuple[int, ...] = ()
        self.greeted = False
        self.suspect_until = 0.0
        options = list(_OPTIONS)
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        self.channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self._unary: dict[str, Any] = {}

    def unary(self, method: Method[Request, Response]) -> grpc.aio.UnaryUnaryMultiCallable[Request, Response]:
        """The callable of a method with one request and one response."""
        found: grpc.aio.UnaryUnaryMultiCallable[Request, Response] | None = self._unary.get(method.path)
        if found is None:
            found = self._unary[method.path] = self.channel.unary_unary(method.path, method.request, method.response)
        return found

    def stream(self, method: Method[Request, Response]) -> grpc.aio.StreamStreamMultiCallable[Request, Response]:
        """The callable of a method with streams both ways."""
        return self.channel.stream_stream(method.path, method.request, method.response)

    @property
    def ready(self) -> bool:
        """Whether there is a connection."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    async def connect(self) -> Endpoint:
        """Returns when there is a connection; raises Unavailable at the first failure."""
        if not self.ready:
            # What was held against it was the connection that is gone, and another server may be there now.
            self.suspect_until = 0.0
            self.greeted = False
        while True:
            state = self.channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return self
            if state in {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}:
                raise Unavailable(f"no connection to etcd at {self.target}")
            await self.channel.wait_for_state_change(state)


class Client:
    """Calls any healthy one of several endpoints."""

    def __init__(
        self,
        endpoints: Sequence[str],
        credentials: grpc.ChannelCredentials | None,
        server_name: str,
        username: str,
        password: str,
        timeout: float,
    ) -> None:
        self.timeout = timeout
        self.closed = False
        self.cluster_id = 0
        self._endpoints = [
            Endpoint(endpoint.split("://")[-1].rstrip("/"), credentials, server_name) for endpoint in endpoints
        ]
        self._current = self._endpoints[0]
        self._username = username
        self._password = password
        self._token = ""
        self._authenticating = asyncio.Lock()

    async def close(self) -> None:
        """Drop the connections; calls under way end with Uncertain."""
        self.closed = True
        for endpoint in self._endpoints:
            await endpoint.channel.close()

    async def endpoint(self) -> Endpoint:
        """A connected endpoint, the last one that served if it still does. Raises Unavailable."""
        if self.closed:
            raise Unavailable("the store is closed")
        now = asyncio.get_running_loop().time()
        if not (self._current.ready and now >= self._current.suspect_until):
            suspects = [each for each in self._endpoints if each.ready and now < each.suspect_until]
            others = [each for each in self._endpoints if each not in suspects]
            try:
                self._current = await self._first_connected(others)
            except Unavailable:
                if not suspects:
                    raise
                # Slow, or connected anew by now: better than none.
                self._current = await self._first_connected(suspects)
        return self._current

    async def call(self, method: Method[Request, Response], request: Request) -> Response:
        """One call to one endpoint, never repeated once etcd may have acted on it. Raises a StoreError."""
        endpoint = await self.endpoint()
        return await self._call(endpoint, method, request)

    async def read(self, method: Method[Request, Response], request: Request) -> Response:
        """A call that changes nothing: tried at each endpoint. Raises Unavailable, not Uncertain."""
        for attempts_left in reversed(range(len(self._endpoints))):
            try:
                return await self.call(method, request)
            except (Unavailable, Uncertain) as error:
                if not attempts_left or self.closed:
                    raise Unavailable(str(error)) from error
        raise AssertionError("there is an endpoint")

    async def metadata(self, endpoint: Endpoint) -> list[tuple[str, str]]:
        """What goes with each call; gets a token if one is needed. Raises Unavailable."""
        # A member that is cut off says so at once instead of waiting.
        metadata = [("hasleader", "true")]
        if self._username:
            async with self._authenticating:
                if not self._token:
                    self._token = await self._authenticate(endpoint)
            if self._token != _NO_AUTH:
                metadata.append(("token", self._token))
        return metadata

    def failed(self, endpoint: Endpoint, error: grpc.aio.AioRpcError) -> StoreError:
        """Learn from an error, and say what it means."""
        if self._username and needs_new_token(error):
            self._token = ""
        if blames_endpoint(error):
            endpoint.suspect_until = asyncio.get_running_loop().time() + _SUSPECT_S
        return translate(error)

    async def _call(
        self, endpoint: Endpoint, method: Method[Request, Response], request: Request, again: bool = True
    ) -> Response:
        metadata = await self.metadata(endpoint)
        try:
            response = await endpoint.unary(method)(request, timeout=self.timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            failure = self.failed(endpoint, error)
            if not (again and self._username and needs_new_token(error)):
                raise failure from error
        except asyncio.CancelledError:
            if self.closed and not being_cancelled():
                raise Uncertain("the store was closed") from None
            raise
        else:
            self.cluster_id = response.header.cluster_id
            return response
        return await self._call(endpoint, method, request, again=False)

    async def _authenticate(self, endpoint: Endpoint) -> str:
        request = pb.AuthenticateRequest(name=self._username, password=self._password)
        try:
            response = await endpoint.unary(AUTHENTICATE)(request, timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            if error.details() == AUTH_NOT_ENABLED:
                return _NO_AUTH
            raise Unavailable(str(translate(error))) from error
        return response.token

    async def _first_connected(self, endpoints: Sequence[Endpoint]) -> Endpoint:
        """All try at once, so that a dead one costs nothing."""
        tasks = [asyncio.ensure_future(endpoint.connect()) for endpoint in endpoints]
        failure: BaseException | None = None
        try:
            for next_done in asyncio.as_completed(tasks, timeout=self.timeout):
                try:
                    endpoint = await next_done
                except (Unavailable, grpc.aio.UsageError) as error:
                    failure = error
                    continue
                except TimeoutError:
                    break
                if not endpoint.greeted:
                    endpoint.greeted = True
                    await self._greet(endpoint)
                return endpoint
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise Unavailable(f"no connection to etcd at {', '.join(each.target for each in endpoints)}") from failure

    async def _greet(self, endpoint: Endpoint) -> None:
        """Learn the version behind a new connection, and warn of one that loses data."""
        try:
            status = await self._call(endpoint, STATUS, pb.StatusRequest())
        except StoreError as error:
            # A server that is short of rights or of time may still serve.
            _log.info("etcd at %s does not tell its version: %s", endpoint.target, error)
            return
        endpoint.version = parse_version(status.version)
        if (3, 5, 0) <= endpoint.version <= (3, 5, 5):
            _log.warning(
                "etcd %s at %s can lose acknowledged writes when it is killed: upgrade it to 3.5.6 or later",
                status.version,
                endpoint.target,
            )


_NO_AUTH = "-"
"""In place of a token, from a server without authentication."""


def parse_version(text: str) -> tuple[int, ...]:
    """`3.6.0-rc.1` as (3, 6, 0); empty for what is no version."""
    parts = text.partition("-")[0].split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()


def being_cancelled() -> bool:
    """Whether a CancelledError is meant for this task, and not the news that a call under it was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

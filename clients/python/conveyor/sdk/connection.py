"""The way to the servers: one gRPC channel per address, failing over when an address does not answer."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import grpc
from google.protobuf.message import Message

from conveyor.sdk import calls, config, forked
from conveyor.sdk.backoff import Backoff
from conveyor.sdk.config import Tls
from conveyor.sdk.errors import ApiError, ClientClosed, Unavailable
from conveyor.sdk.requests import is_repeatable
from conveyor.sdk.status import api_error, is_transient

StubT = TypeVar("StubT")
RequestT = TypeVar("RequestT", bound=Message)
AnswerT = TypeVar("AnswerT")

_MESSAGE_BYTES = 64 * 1024 * 1024
_CONNECT = "failed to connect"
_OPTIONS: tuple[tuple[str, int], ...] = (
    # What lies on the way may cut connections on which nothing has passed for half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The server's limits count; these only must not be below them.
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A server that was away a moment ago is found within seconds of its return.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)


class Connection:
    """Channels to one or more servers that serve the same store. For one event loop.

    Calls go to the current address; one that does not answer makes the next address the current one, for all calls.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        tls: Tls | None = None,
        timeout: float = 30.0,
        retry_for: float = 2.0,
    ) -> None:
        """`timeout` bounds each call, in seconds; `retry_for` how long one that may be repeated is repeated."""
        self.addresses = config.addresses(address)
        self.timeout = timeout
        self._tls = tls if tls is not None else Tls.from_environment()
        self._retry_for = retry_for
        self._current = 0
        self._closed = False
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[tuple[str, object], object] = {}

    @property
    def address(self) -> str:
        """The address that calls go to now."""
        return self.addresses[self._current]

    def stub(self, kind: Callable[[grpc.aio.Channel], StubT]) -> StubT:
        """The generated stub `kind` of the current address. Raises ClientClosed and ForkedProcess."""
        if self._closed:
            raise ClientClosed
        forked.check()
        address = self.address
        channel = self._channels.get(address)
        if channel is None:
            # Of two that are opened at the same time one is never used, and nothing ever came of it.
            channel = self._channels.setdefault(address, _open(address, self._tls))
        stub = self._stubs.get((address, kind))
        if stub is None:
            stub = self._stubs[address, kind] = kind(channel)
        return cast(StubT, stub)

    def failed(self, address: str) -> None:
        """Say that an address did not answer: the next one becomes current, unless that has happened already."""
        current = self._current
        if address == self.addresses[current]:
            self._current = (current + 1) % len(self.addresses)

    async def close(self) -> None:
        """Close all channels; calls that run are cancelled, and later ones raise ClientClosed."""
        self._closed = True
        channels = [] if forked.in_child() else list(self._channels.values())
        self._channels.clear()
        self._stubs.clear()
        for channel in channels:
            await channel.close()

    async def call(self, method: Callable[[], calls.Method[RequestT, AnswerT]], request: RequestT) -> AnswerT:
        """Send a request to `method`, which is asked for anew at each attempt, and return the answer. Raises ApiError.

        A call that only reads, or that carries a request id, is repeated while no server has an answer: at once on
        each other address, then with a growing wait, for a few seconds in all. So is one that never left, because
        nobody could be connected to.
        """
        repeatable = is_repeatable(request)
        deadline = time.monotonic() + self.timeout
        give_up = time.monotonic() + min(self._retry_for, self.timeout)
        backoff = Backoff(longest=1.0)
        untried = len(self.addresses) - 1
        while True:
            address = self.address
            try:
                return await calls.unary(method(), request, deadline - time.monotonic())
            except grpc.aio.AioRpcError as error:
                failure = api_error(error, address)
                never_sent = _CONNECT in (error.details() or "")
            # A server that is shutting down may have its gRPC drop a call that it has not looked at yet: CANCELLED.
            if not is_transient(failure):
                raise failure
            self.failed(address)
            if not repeatable and not never_sent:
                raise failure
            if untried:
                untried -= 1
                continue
            wait = backoff.next()
            if time.monotonic() + wait >= give_up:
                raise self._nobody(failure)
            await calls.sleep(wait)
            untried = len(self.addresses) - 1

    def _nobody(self, failure: ApiError) -> ApiError:
        if failure.reason or len(self.addresses) == 1:
            return failure
        return Unavailable(f"none of {', '.join(self.addresses)} answers; the last one: {failure.message}")


def _open(address: str, tls: Tls | None) -> grpc.aio.Channel:
    options: list[tuple[str, int | str]] = [*_OPTIONS]
    if config.is_loopback(address) or config.flag("CONVEYOR_NO_PROXY"):
        options.append(("grpc.enable_http_proxy", 0))
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
    return grpc.aio.secure_channel(address, credentials, options=options)

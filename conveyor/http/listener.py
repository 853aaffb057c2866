"""The HTTP port: uvicorn in the loop of the server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""After 30 s of silence every 10 s, three times."""

_UNWIND_WITHIN = 1.0
"""Seconds that calls have to notice that their clients are gone."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate and key, and the authority of clients, if they must show a certificate."""

    cert: Path
    key: Path
    client_ca: Path | None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are not its own: the process has other parts to stop."""
        yield


class HttpListener:
    """Serves an application on a port. It listens from the start and answers from `start` on."""

    def __init__(self, app: ASGIApp, host: str, port: int, tls: Tls | None, drain_timeout: float) -> None:
        """Raises OSError when the address is taken."""
        self._socket = _bind(host, port)
        self._drain_timeout = drain_timeout
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                ssl_certfile=tls.cert if tls is not None else None,
                ssl_keyfile=tls.key if tls is not None else None,
                ssl_ca_certs=str(tls.client_ca) if tls is not None and tls.client_ca is not None else None,
                ssl_cert_reqs=ssl.CERT_REQUIRED if tls is not None and tls.client_ca is not None else ssl.CERT_NONE,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port, also when a free one was taken."""
        port: int = self._socket.getsockname()[1]
        return port

    def start(self) -> None:
        """Answer."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]), name="http")

    async def stop(self) -> None:
        """Take no more connections, and let calls end, but not for ever."""
        self._server.should_exit = True
        if self._serving is not None:
            _, late = await asyncio.wait([self._serving], timeout=self._drain_timeout)
            if late:
                await self._break_off()
            await self._serving
        self._socket.close()

    async def _break_off(self) -> None:
        """Drop clients that do not read, whose streams end by that, and wait no longer for anything else."""
        state = self._server.server_state
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=_UNWIND_WITHIN)
        self._server.force_exit = True


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections have it from here: who is gone without a word is noticed.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening

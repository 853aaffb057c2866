"""What pages in browsers may do: call from the origins that are allowed, and not by a name that isn't the server's."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

import grpc
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from conveyor.http.answers import ErrorResponse
from conveyor.http.failures import failed

ANY = "*"

_HEADERS = ("Connect-Protocol-Version", "Connect-Timeout-Ms", "Content-Type", "Last-Event-ID")
_PREFLIGHT_SECONDS = 7200


def for_browsers(app: ASGIApp, origins: Sequence[str], *, loopback: bool) -> ASGIApp:
    """The application with the rules of origins. `loopback`: it is meant for this machine alone."""
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=_HEADERS,
            max_age=_PREFLIGHT_SECONDS,
        )
    if loopback and ANY not in origins:
        app = _OwnNames(app, origins)
    return app


class _OwnNames:
    """Refuses requests to names of others.

    A page may let its own name lead to 127.0.0.1; for the browser the server is then of the page's origin.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._names = {"localhost", *(urlsplit(origin).hostname or "" for origin in origins)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Request(scope).headers.get("host", "")
        if self._is_own(host):
            await self._app(scope, receive, send)
            return
        text = f"{host} is no name of this server; allow it with --http-allow-origin https://{host}"
        answer = ErrorResponse(failed(grpc.StatusCode.PERMISSION_DENIED, text), unread=True)
        await answer(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""The ASGI application: every call at its Connect path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from conveyor.api.errors import translate
from conveyor.http.about import OPENAPI, about, openapi
from conveyor.http.answers import ErrorResponse, answer
from conveyor.http.calls import Calls
from conveyor.http.failures import CallFailed, failed, refused
from conveyor.http.methods import Method, methods
from conveyor.http.requests import check_headers, message_of, timeout_of
from conveyor.http.streams import StreamResponse, form_of

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(calls: Calls) -> Starlette:
    """The application that makes these calls."""
    routes = [Route("/", about), Route(OPENAPI, openapi)]
    for method in methods():
        verbs = ["GET", "POST"] if method.reads else ["POST"]
        routes.append(Route(method.path, _endpoint(calls, method), methods=verbs))
    app = Starlette(routes=routes, exception_handlers={404: _unknown, 405: _wrong_verb, 500: _broken})
    app.router.redirect_slashes = False  # a redirect is no answer to a call: clients would take it for one
    return app


def _endpoint(calls: Calls, method: Method) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        try:
            check_headers(request, method)
            timeout = timeout_of(request)
            message = await message_of(request, method)
        except CallFailed as failure:
            return ErrorResponse(failure, unread=True)
        except ClientDisconnect:
            return Response()  # nobody reads it
        responses = calls.call(method.path, message)
        if method.server_streams:
            return StreamResponse(responses, form_of(request.headers.get("accept", "")), timeout)
        return await answer(responses, timeout)

    return endpoint


async def _unknown(request: Request, error: Exception) -> Response:
    text = f"this server has no {request.url.path}; GET / lists what it has"
    return ErrorResponse(failed(grpc.StatusCode.UNIMPLEMENTED, text, http_status=404), unread=True)


async def _wrong_verb(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    taken = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
    text = f"{request.url.path} does not take {request.method}; it takes {taken}"
    failure = failed(grpc.StatusCode.UNIMPLEMENTED, text, http_status=405, headers={"Allow": taken})
    return ErrorResponse(failure, unread=True)


async def _broken(request: Request, error: Exception) -> Response:
    """What the handlers raise they have answered themselves: this is a mistake on the way to or from them."""
    return ErrorResponse(refused(translate(error, request.url.path)), unread=True)

"""What the HTTP layer does when something in the server is wrong, or a client never finishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from structlog.testing import capture_logs

from conveyor.api.interceptors import ServerInterceptor
from conveyor.http import app as http_app
from conveyor.http import requests, streams
from conveyor.http.calls import Calls
from conveyor.v1 import run_service_pb2

PATH = "http://server/conveyor.v1.RunService/"
JSON = {"Content-Type": "application/json"}


def client(handler: Any) -> httpx.AsyncClient:
    """A client of an application whose calls are all made by one handler."""
    app = http_app.make_app(Calls(lambda details: handler, ServerInterceptor()))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False))


async def crash(request: Any, context: Any) -> Any:
    raise RuntimeError("secret")


async def nonsense(request: Any, context: Any) -> Any:
    return object()


@pytest.mark.parametrize("behaviour", [crash, nonsense])
async def test_mistakes_of_the_server_are_told_by_an_id(behaviour: Any) -> None:
    with capture_logs() as logs:
        async with client(grpc.unary_unary_rpc_method_handler(behaviour)) as http:
            answer = await http.post(f"{PATH}GetRun", content="{}", headers=JSON)
    error = answer.json()
    assert [each["event"] for each in logs] == ["rpc_failed"]
    assert (answer.status_code, error["code"]) == (500, "internal")
    assert error["details"][0]["debug"]["metadata"]["id"] in error["message"]
    assert "secret" not in answer.text


async def test_a_stream_whose_handler_fails_later() -> None:
    async def fails(request: Any, context: Any) -> AsyncIterator[Any]:
        yield run_service_pb2.WatchRunsResponse(cursor="a")
        raise RuntimeError("secret")

    with capture_logs():
        async with client(grpc.unary_stream_rpc_method_handler(fails)) as http:
            answer = await http.post(f"{PATH}WatchRuns", content="{}", headers=JSON)
    first, last = answer.text.splitlines()
    assert (answer.status_code, first) == (200, '{"cursor":"a"}')
    assert '"code":"internal"' in last
    assert "secret" not in last


async def test_a_stream_whose_call_cannot_be_made_ends() -> None:
    def find(details: Any) -> Any:
        raise RuntimeError("secret")

    http = httpx.AsyncClient(transport=httpx.ASGITransport(http_app.make_app(Calls(find, ServerInterceptor()))))
    with capture_logs():
        async with http, asyncio.timeout(60):
            answer = await http.post(f"{PATH}WatchRuns", content="{}", headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")


async def test_a_quiet_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ALIVE_EVERY", 0.01)
    alive = asyncio.Event()

    async def quiet(request: Any, context: Any) -> AsyncIterator[Any]:
        yield run_service_pb2.WatchRunsResponse(cursor="a")
        await alive.wait()

    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if sent.count(b"\n") == 3:
            alive.set()

    async def receive() -> Any:
        return await asyncio.Event().wait()

    responses = Calls(lambda details: grpc.unary_stream_rpc_method_handler(quiet), ServerInterceptor()).call("/x", None)
    async with asyncio.timeout(60):
        await streams.StreamResponse(responses, streams.NDJSON, None)({"type": "http", "path": "/x"}, receive, send)
    assert sent[1:5] == [b'{"cursor":"a"}\n', b"\n", b"\n", b"\n"]


async def test_a_body_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_WITHIN", 0.05)

    async def half() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with client(None) as http, asyncio.timeout(60):
        answer = await http.post(f"{PATH}GetRun", content=half(), headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (408, "deadline_exceeded")
    assert answer.headers["connection"] == "close"


async def echo(request: Any, context: Any) -> Any:
    return run_service_pb2.ListRunsResponse(next_page_token=request.pipeline)


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("message=%7B%22pipeline%22:%22a%22%7D", 200, '{"nextPageToken":"a"}'),
        ("connect=v1&encoding=json&compression=identity&message=%7B%22pipeline%22:%22a%22%7D", 200, '"a"'),
        ("encoding=json&base64=1&message=eyJwaXBlbGluZSI6ICI_In0", 200, '"?"'),
        ("encoding=json&base64=1&message=eyJwaXBlbGluZSI6ICJhYiJ9", 200, '"ab"'),
        ("base64=1&message=%7B%7D", 400, "must be base64"),
        ("encoding=proto&message=", 415, "say encoding=json, not proto"),
        ("compression=gzip&message=%7B%7D", 501, "without compression=gzip"),
        ("connect=v2&message=%7B%7D", 400, "connect must be v1, not v2"),
        ("connect=%FF&message=%7B%7D", 400, "connect must be v1"),
        ("message=%7B%22pipeline%22:%22%FF%22%7D", 400, "byte 13 is not UTF-8"),
    ],
)
async def test_a_message_in_the_address_is_read_as_connect_says(query: str, status: int, said: str) -> None:
    async with client(grpc.unary_unary_rpc_method_handler(echo)) as http:
        answer = await http.get(f"{PATH}ListRuns?{query}")
    assert (answer.status_code, said in answer.text) == (status, True), answer.text


@pytest.mark.parametrize(
    ("verb", "path", "status", "said"),
    [
        ("POST", "conveyor.v1.RunService/GetRun/", 404, "this server has no /conveyor.v1.RunService/GetRun/"),
        ("POST", "openapi.json", 405, "/openapi.json does not take POST; it takes GET, HEAD"),
        ("GET", "conveyor.v1.RunService/StartRun", 405, "does not take GET; it takes POST"),
    ],
)
async def test_what_leads_nowhere_is_said(verb: str, path: str, status: int, said: str) -> None:
    async with client(grpc.unary_unary_rpc_method_handler(echo)) as http:
        answer = await http.request(verb, f"http://server/{path}")
    assert (answer.status_code, answer.json()["code"]) == (status, "unimplemented")
    assert said in answer.json()["message"]

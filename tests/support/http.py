"""The API over HTTP, with a client that shares nothing with the server."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from conveyor.v1.resource_pb2 import Resource
from tests.support.behaviour import ok
from tests.support.belt import Belt, step
from tests.support.server import ConveyorServer


def http_url(server: ConveyorServer) -> str:
    """Where a server that was started with `--http-listen 127.0.0.1:0` is reached."""
    return "http://" + re.findall(r" http=(\S+)", server.log.read_text())[-1]


class Http:
    """Calls in one namespace."""

    def __init__(self, url: str, namespace: str = "", **options: Any) -> None:
        self.namespace = namespace
        self.client = httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def post(self, method: str, body: Any, **headers: str) -> httpx.Response:
        """A call, by "RunService/GetRun"; a body that is no text or bytes is sent as JSON in the namespace."""
        if isinstance(body, dict):
            body = json.dumps({"namespace": self.namespace, **body} if self.namespace else body)
        sent = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        return await self.client.post(f"/conveyor.v1.{method}", content=body, headers=sent)

    async def call(self, method: str, **request: Any) -> dict[str, Any]:
        """The answer of a call that must succeed."""
        answer = await self.post(method, request)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        found: dict[str, Any] = answer.json()
        return found

    async def refused(self, method: str, body: Any, **headers: str) -> tuple[int, str, str]:
        """How a call is refused: the HTTP status, the code, and the message."""
        answer = await self.post(method, body, **headers)
        error = answer.json()
        return answer.status_code, error["code"], error["message"]

    @asynccontextmanager
    async def stream(self, method: str, request: dict[str, Any], **headers: str) -> AsyncIterator[httpx.Response]:
        """A call whose answer is read bit by bit."""
        sent = {"Content-Type": "application/json", **headers}
        body = json.dumps({"namespace": self.namespace, **request})
        async with self.client.stream("POST", f"/conveyor.v1.{method}", content=body, headers=sent) as answer:
            yield answer


def begin(url: str, method: str, request: Mapping[str, Any], *, sent: int | None = None) -> socket.socket:
    """A call on a connection of its own, whose answer waits to be read; of the body only so many bytes are sent."""
    where = urlsplit(url)
    assert where.hostname is not None
    connection = socket.socket()
    # A small window, so that what is not read soon stands still.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((where.hostname, where.port))
    body = json.dumps(request)
    head = f"POST /conveyor.v1.{method} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body[:sent]}".encode())
    return connection


async def much_news(belt: Belt) -> set[str]:
    """Ended runs, by their ids, of which a watch says more than fits into all buffers on the way."""
    belt.drive("a", ok, slots=16)
    await belt.pipeline(*(step(f"s{i}", "a") for i in range(6)))
    labels = {f"{'k' * 100}{i}": "v" * 250 for i in range(60)}
    runs = set()
    for i in range(60):
        made = Resource(definition="app", name=f"r{i}", pipeline="release", labels=labels)
        created = await belt.client.resources.create(made)
        assert created.run is not None
        runs.add(created.run.id)
    for run in runs:
        await belt.ended(run)
    return runs

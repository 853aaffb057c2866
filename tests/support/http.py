"""The API over HTTP, with a client that shares nothing with the server."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx

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

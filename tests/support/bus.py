"""A bus for tests, somebody else on the same broker, and an older driver."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import structlog
from nats.aio.msg import Msg

from conveyor.bus.jetstream import JetStream
from conveyor.bus.nats import Bus
from conveyor.bus.options import BusOptions, StreamSettings
from conveyor.bus.session import Session
from tests.support.nats import NatsServer
from tests.support.vectors import vectors

# The default formatter of tracebacks looks for files, which the event loop must not wait for.
structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])


async def until(condition: Callable[[], object], *, seconds: float = 30) -> None:
    """Waits for the condition; a net of `seconds` under what never comes."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Any], *, seconds: float = 30) -> None:
    """The same for a condition that has to ask somebody."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def started_bus(server: NatsServer, settings: StreamSettings | None = None) -> AsyncGenerator[Bus, None]:
    """A bus that is available."""
    bus = await Bus.start(BusOptions([server.url]), settings)
    try:
        await bus.ready(20)
        yield bus
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def other_client(server: NatsServer) -> AsyncGenerator[JetStream, None]:
    """Somebody else on the broker, to look and to break."""
    session = await Session.connect(BusOptions([server.url], name="test"))
    try:
        yield JetStream(session)
    finally:
        await session.close()


class OlderDriver:
    """Does what the recorded Go driver did: the same consumer, the ack before the work, the metadata sent back."""

    def __init__(self, session: Session, name: str, definition: str = "load") -> None:
        self._session = session
        self._name = name
        recorded = vectors("js-api-request", "$JS.API.CONSUMER.CREATE.messages.d1")[0]
        text = json.dumps(recorded["body"]).replace("d1", name).replace("load", definition)
        self.request = (f"$JS.API.CONSUMER.CREATE.messages.{name}", text.encode())
        self.tickets: list[dict[str, Any]] = []
        self.silent = False

    async def create(self) -> dict[str, Any]:
        """Makes its consumer, as it does at each start."""
        answer: dict[str, Any] = json.loads((await self._session.request(*self.request)).data)
        assert "error" not in answer, answer
        return answer

    async def pull(self, *, seconds: int = 30) -> None:
        """Leaves a pull request open, as `Consume` does."""
        inbox = self._session.new_inbox()
        await self._session.subscribe(inbox, self._received)
        body = json.dumps({"batch": 500, "expires": seconds * 10**9}).encode()
        await self._session.publish(f"$JS.API.CONSUMER.MSG.NEXT.messages.{self._name}", body, reply=inbox)

    async def _received(self, message: Msg) -> None:
        if not message.data:
            return
        await self._session.publish(message.reply, b"+ACK")
        ticket = json.loads(message.data)
        self.tickets.append(ticket)
        if self.silent:
            return
        resource = json.loads(ticket["payload"])
        body = {
            "event": "driver.result",
            "run_id": ticket["run_id"],
            "resource": resource,
            "driverresult": {"success": True, "message": "ok", "data": {"n": 1}, "driver": self._name},
        }
        await self._session.request("pipelines.driver.result", json.dumps(body).encode())

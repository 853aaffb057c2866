"""An older driver as the recorded Go drivers were, that works by itself and finds back to a broker that was away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from conveyor.bus.session import cancel_and_wait
from conveyor.sdk.jetstream_close import closed
from tests.support.vectors import vectors

Ticket = dict[str, Any]
Work = Callable[[Ticket], Awaitable[dict[str, Any]]]

_EXPIRES_S = 2.0


async def succeed(ticket: Ticket) -> dict[str, Any]:
    """The answer of the recorded drivers."""
    return {"success": True, "message": "ok", "data": {"n": 1}}


class Held:
    """Works until it is released; knows what it works on."""

    def __init__(self) -> None:
        self.started: list[Ticket] = []
        self.released = asyncio.Event()

    async def __call__(self, ticket: Ticket) -> dict[str, Any]:
        self.started.append(ticket)
        await self.released.wait()
        return await succeed(ticket)


class Older:
    """One process of an older driver: the recorded consumer, acks before its work, one job after another.

    `echo`: whether it sends the resource's metadata back. `filters`: those of its consumer, when they are not the
    recorded ones. `tickets` are all that it was given.
    """

    def __init__(
        self,
        url: str,
        name: str,
        work: Work = succeed,
        *,
        definition: str = "app",
        echo: bool = True,
        filters: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.tickets: list[Ticket] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self._url = url
        self._work = work
        self._echo = echo
        recorded = vectors("js-api-request", "$JS.API.CONSUMER.CREATE.messages.d1")[0]
        text = json.dumps(recorded["body"]).replace("d1", name).replace("load", definition)
        self.request: dict[str, Any] = json.loads(text)
        if filters:
            self.request["config"]["filter_subjects"] = list(filters)
        self._client = Client()
        self._jobs: asyncio.Queue[Ticket] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def runs(self) -> list[str]:
        """The run of each ticket."""
        return [ticket["run_id"] for ticket in self.tickets]

    @property
    def steps(self) -> list[str]:
        """The step of each ticket."""
        return [json.loads(ticket["payload"])["metadata"]["conveyor.step"] for ticket in self.tickets]

    async def connect(self) -> Older:
        """Connects and makes its consumer, as it does at each start."""
        await self._client.connect(
            self._url, max_reconnect_attempts=-1, reconnect_time_wait=0, error_cb=_ignore, allow_reconnect=True
        )
        await self._client.subscribe("cancel.*.*", cb=self._told)
        await self.create()
        self._tasks.append(asyncio.create_task(self._do_jobs()))
        return self

    async def create(self) -> None:
        """Makes its consumer."""
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(nats.errors.Error):
                    answer = await self._client.request(
                        f"$JS.API.CONSUMER.CREATE.messages.{self.name}", json.dumps(self.request).encode()
                    )
                    if "error" not in json.loads(answer.data):
                        return
                await asyncio.sleep(0.02)

    async def call(self, endpoint: str) -> None:
        """Asks JetStream for something, as an operator might."""
        answer = await self._client.request(f"$JS.API.{endpoint}")
        assert "error" not in json.loads(answer.data), answer.data

    async def start(self) -> Older:
        """Connects, and takes all that comes."""
        await self.connect()
        self._tasks.append(asyncio.create_task(self._keep_pulling()))
        return self

    async def pull(self, count: int = 1, seconds: float = 60.0) -> None:
        """Asks once for so many tickets."""
        inbox = self._client.new_inbox()
        await self._client.subscribe(inbox, cb=self._received)
        body = json.dumps({"batch": count, "expires": int(seconds * 1e9)}).encode()
        await self._client.publish(f"$JS.API.CONSUMER.MSG.NEXT.messages.{self.name}", body, reply=inbox)
        await self._client.flush()

    async def stop(self) -> None:
        """Is gone from one moment to the next."""
        await cancel_and_wait(*self._tasks)
        self._tasks.clear()
        with contextlib.suppress(nats.errors.Error):
            await closed(self._client)

    async def _keep_pulling(self) -> None:
        while True:
            self._ended.clear()
            with contextlib.suppress(nats.errors.Error, OSError):
                await self.pull(500, _EXPIRES_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXPIRES_S + 0.2):
                    await self._ended.wait()
            if not self._client.is_connected:
                await asyncio.sleep(0.02)

    async def _received(self, message: Msg) -> None:
        if (message.headers or {}).get("Status"):
            self._ended.set()
            return
        await self._client.publish(message.reply, b"+ACK")
        ticket = json.loads(message.data)
        self.tickets.append(ticket)
        self._jobs.put_nowait(ticket)

    async def _do_jobs(self) -> None:
        while True:
            ticket = await self._jobs.get()
            await self.answer(ticket, await self._work(ticket))

    async def answer(self, ticket: Ticket, result: dict[str, Any], **fields: Any) -> None:
        """Publishes a result until the broker has it."""
        body: dict[str, Any] = {
            "event": "driver.result",
            "run_id": ticket["run_id"],
            "driverresult": {"driver": self.name, **result},
            **fields,
        }
        if self._echo:
            body["resource"] = json.loads(ticket["payload"])
        await self.publish("pipelines.driver.result", json.dumps(body).encode())

    async def publish(self, subject: str, body: bytes) -> None:
        """Publishes until the broker has it."""
        while True:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await self._client.request(subject, body, timeout=1)
                return
            await asyncio.sleep(0.02)

    async def _told(self, message: Msg) -> None:
        self.told.append((message.subject, json.loads(message.data)))


async def _ignore(error: Exception) -> None:
    """A broker that is away is no news here."""

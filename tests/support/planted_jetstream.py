"""A driver on JetStream with one fault or none, without any SDK. A program: its argument is the fault."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import Error as JetStreamError

from tests.support.planted_work import Done, on_sigterm, work

_ACK_WAIT_S = 3
_KNOWN = {"id", "event", "run_id", "payload"}
_FAILURES = (nats.errors.Error, JetStreamError, OSError, TimeoutError)


class Worker:
    """One process of the driver. It lives until it is drained."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        namespace = os.environ["CONVEYOR_NAMESPACE"]
        self.prefix = f"ns.{namespace}."
        self.consumer = f"{namespace}_planted"
        self.slots = int(os.environ["CONVEYOR_SLOTS"]) + (fault == "slots")
        self.client = Client()
        self.free = self.slots
        self.jobs: dict[str, asyncio.Task[None]] = {}
        self.work: dict[str, asyncio.Future[Done]] = {}
        self.deliveries: dict[str, Msg] = {}
        self.answered: set[str] = set()
        self.tokens: dict[str, str] = {}
        self.changed = asyncio.Event()
        self.draining = False

    async def run(self) -> None:
        """Take tickets until drained."""
        on_sigterm(self.drain, self.fault)
        await self.client.connect(
            os.environ["CONVEYOR_NATS"],
            error_cb=_ignore,
            disconnected_cb=self.disconnected,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0,
        )
        await self.client.subscribe(f"{self.prefix}cancel.*.*", cb=self.cancel)
        config = {
            "name": self.consumer,
            "ack_policy": "explicit",
            "ack_wait": _ACK_WAIT_S * 10**9,
            "deliver_policy": "new" if self.fault == "registers" else "all",
            "filter_subjects": [f"{self.prefix}drivers.planted.resources.*"],
        }
        body = json.dumps({"stream_name": "messages", "config": config}).encode()
        await self.client.request(f"$JS.API.CONSUMER.CREATE.messages.{self.consumer}", body, timeout=10)
        pulling = asyncio.create_task(self.keep_pulling())
        while not self.draining or self.jobs:
            await self.changed.wait()
            self.changed.clear()
        pulling.cancel()
        await asyncio.wait([pulling])
        await self.client.flush()
        await self.client.close()

    async def keep_pulling(self) -> None:
        """One ticket at a time, for as long as there is a free slot."""
        while True:
            while self.free <= 0 or self.draining:
                await self.changed.wait()
                self.changed.clear()
            message = None
            with suppress(*_FAILURES):
                request = json.dumps({"batch": 1, "expires": 10**9}).encode()
                subject = f"$JS.API.CONSUMER.MSG.NEXT.messages.{self.consumer}"
                message = await self.client.request(subject, request, timeout=2, old_style=True)
            if message is not None and not (message.headers or {}).get("Status"):
                await self.take(message)
            elif message is None:
                await asyncio.sleep(0.05)

    async def take(self, message: Msg) -> None:
        try:
            ticket = json.loads(message.data)
            resource = json.loads(ticket["payload"])
            token = resource["metadata"]["conveyor.token"]
        except (ValueError, KeyError, TypeError):
            if self.fault != "unknown-message":
                await message.ack()
            return
        if self.fault == "unknown-field" and set(ticket) - _KNOWN:
            sys.exit("a key that is unknown")
        if token in self.answered and self.fault != "once":
            await message.ack()
            return
        self.deliveries[token] = message
        if token not in self.jobs:
            self.free -= 1
            self.jobs[token] = asyncio.create_task(self.do(ticket, resource, token))

    async def do(self, ticket: dict[str, Any], resource: dict[str, Any], token: str) -> None:
        busy = asyncio.create_task(self.say_in_progress(token))
        run, metadata = ticket["run_id"], resource["metadata"]
        step, attempt = metadata["conveyor.step"], int(metadata["conveyor.attempt"])
        lines: list[dict[str, Any]] = []
        sent = 0

        def write(text: str) -> None:
            now = datetime.now(UTC).isoformat()
            line = {"runid": run, "step": step, "attempt": attempt, "seq": len(lines) + 1, "message": text, "time": now}
            lines.append(line)

        async def send(until: int) -> None:
            nonlocal sent
            for line in lines[sent:until]:
                await self.publish(f"{self.prefix}logs.{run}.{step}", line)
            sent = max(sent, until)

        working = self.work[token] = asyncio.ensure_future(work(resource["spec"], write, self.fault))
        # It has begun, and so can be cancelled.
        await asyncio.sleep(0)
        await send(1)
        end = await working
        if token in self.answered and self.fault == "reattaches":
            busy.cancel()
            self.over(token)
            return
        if self.fault != "logs-first":
            await send(len(lines))
        if self.fault == "token":
            metadata["conveyor.token"] = self.tokens.setdefault(run, token)
        answer = {"success": end.outcome == "SUCCEEDED", "outcome": end.outcome, "message": end.message}
        body = {
            "run_id": run,
            "event": "driver.result",
            "driverresult": answer | {"data": end.data, "driver": "planted"},
            "resource": {"metadata": metadata},
        }
        await self.publish(f"{self.prefix}pipelines.driver.result", body, hurried=self.fault == "slow-server")
        await send(len(lines))
        busy.cancel()
        self.answered.add(token)
        with suppress(*_FAILURES):
            await self.deliveries[token].ack()
        self.over(token)

    def over(self, token: str) -> None:
        """Its slot is free."""
        del self.jobs[token], self.work[token]
        self.free += 1
        self.changed.set()

    async def say_in_progress(self, token: str) -> None:
        while self.fault != "heartbeats":
            await asyncio.sleep(_ACK_WAIT_S / 3)
            with suppress(*_FAILURES):
                await self.deliveries[token].in_progress()

    async def publish(self, subject: str, body: dict[str, Any], *, hurried: bool = False) -> None:
        """Publish until the broker has it. Hurried, it gives up on a broker that is silent for two seconds."""
        if hurried and self.client.is_connected:
            try:
                await self.client.flush(2)
            except _FAILURES:
                return
        while True:
            with suppress(*_FAILURES):
                await self.client.request(subject, json.dumps(body).encode(), timeout=2)
                return
            await asyncio.sleep(0.05)

    async def cancel(self, message: Msg) -> None:
        token = json.loads(message.data)["token"]
        if token in self.work:
            self.work[token].cancel()

    async def disconnected(self) -> None:
        """With a fault, what runs is given up, and never done."""
        if self.fault == "reattaches":
            for token, working in self.work.items():
                self.answered.add(token)
                working.cancel()

    def drain(self) -> None:
        self.draining = True
        self.changed.set()


async def _ignore(error: Exception) -> None:
    """A broker that is away is no news here."""


async def main() -> None:
    """The driver."""
    await Worker(sys.argv[1]).run()


if __name__ == "__main__":
    asyncio.run(main())

"""Pulls messages from a consumer of JetStream, never more than there are free slots.

The library's own fetch holds the first messages back until a batch is full, and notices neither a restarted broker nor
a deleted consumer.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from conveyor.sdk.backoff import Backoff

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient
    from nats.aio.msg import Msg

_log = logging.getLogger(__name__)

# Short, so that requests which a restarted broker forgot are made anew soon.
_EXPIRES = 4.0
_LATE = 1.0
_CONSUMER_GONE = ("consumer deleted", "consumer not found", "no responders")


class Puller:
    """Keeps requests for as many messages open as there are free slots. For one event loop."""

    def __init__(
        self,
        client: "NatsClient",
        stream: str,
        consumer: str,
        *,
        free: Callable[[], int],
        deliver: Callable[["Msg"], None],
        make_consumer: Callable[[], Awaitable[None]],
    ) -> None:
        """`free` says how many messages may come, `deliver` takes each, `make_consumer` makes the consumer anew."""
        self._client = client
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = ""
        self._free = free
        self._deliver = deliver
        self._make_consumer = make_consumer
        self._wake = asyncio.Event()
        self._consumer_gone = False
        self._refused = False
        self._number = 0
        # How many messages each open request may still bring, and when it is over.
        self._open: dict[int, list[float]] = {}

    def wake(self) -> None:
        """A slot became free."""
        self._wake.set()

    def reconnected(self) -> None:
        """The broker may have forgotten all requests."""
        self._open.clear()
        self._wake.set()

    async def run(self) -> None:
        """Pull until cancelled."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(longest=2.0)
        self._inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._take)
        try:
            while True:
                if self._consumer_gone:
                    _log.warning("the consumer is gone; making it anew")
                    await self._make_consumer()
                    self._consumer_gone = False
                if self._refused:
                    self._refused = False
                    await asyncio.sleep(backoff.next())
                now = loop.time()
                self._open = {number: each for number, each in self._open.items() if each[1] > now and each[0]}
                wanted = self._free() - int(sum(each[0] for each in self._open.values()))
                if wanted > 0 and self._client.is_connected:
                    await self._ask(wanted, now)
                    backoff.reset()
                self._wake.clear()
                ends = min((each[1] for each in self._open.values()), default=now + _EXPIRES)
                timer = loop.call_at(ends, self._wake.set)
                try:
                    await self._wake.wait()
                finally:
                    timer.cancel()
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()

    async def _ask(self, count: int, now: float) -> None:
        self._number += 1
        self._open[self._number] = [count, now + _EXPIRES + _LATE]
        request = json.dumps({"batch": count, "expires": int(_EXPIRES * 1e9)}).encode()
        await self._client.publish(self._subject, request, reply=f"{self._inbox}.{self._number}")

    async def _take(self, message: "Msg") -> None:
        status = (message.headers or {}).get("Status")
        if status is None:
            oldest = next((each for each in self._open.values() if each[0]), None)
            if oldest is not None:
                oldest[0] -= 1
            self._deliver(message)
            return
        if status == "100":
            return
        self._open.pop(int(message.subject.rpartition(".")[2]), None)
        text = (message.headers or {}).get("Description", "").lower()
        if status == "503" or any(reason in text for reason in _CONSUMER_GONE):
            self._consumer_gone = True
        elif status == "409":
            self._refused = True
        self._wake.set()

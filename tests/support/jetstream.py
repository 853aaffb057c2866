"""A replica with a broker: what one server process has, without API and logs."""

from __future__ import annotations

import asyncio
from typing import Any

from conveyor.bus.jetstream import JetStream
from conveyor.bus.nats import Bus
from conveyor.bus.options import BusOptions
from conveyor.engine.inbox import Inbox
from conveyor.engine.tickets import JetStreamTickets
from conveyor.store.port import Store
from conveyor.v1 import run_pb2
from tests.support.nats import NatsServer
from tests.support.older import Older
from tests.support.rig import Replica, step, until


class Belted(Replica):
    """Drivers can take part over JetStream. Sweeps only happen when the test calls for them."""

    def __init__(self, store: Store, nats: NatsServer, name: str = "r1", **kind: Any) -> None:
        super().__init__(store, name, **kind)
        self.nats = nats
        self.bus = Bus(BusOptions([nats.url]))
        self.tickets = JetStreamTickets(self.bus, self.engine)
        self.engine.tickets = self.tickets
        self.inbox = Inbox(self.bus, self.engine, self.store)

    async def start(self, *, shared: bool = False) -> Belted:
        await super().start(shared=shared)
        self.bus._spawn(self.bus._supervise())
        self._spawn(self.tickets.run())
        self._spawn(self.inbox.run())
        await self.bus.ready(20)
        return self

    async def _end(self) -> None:
        await super()._end()
        await self.bus.close()

    async def broker(self, action: str) -> None:
        """Has the broker stopped, killed, started or wiped."""
        await asyncio.to_thread(getattr(self.nats, action))
        if action in ("stop", "kill"):
            await until(lambda: not self.bus.available)
        elif action == "start":
            await self.bus.ready(20)

    @property
    def jetstream(self) -> JetStream:
        """The broker's API."""
        return self.bus.current()

    async def reason(self, run: str, step: str) -> str:
        """Why a step is in the state that it is in."""
        name = run_pb2.StepReason.Name((await self.record(run, step)).reason)
        return name.removeprefix("STEP_REASON_")

    async def because(self, run: str, step: str, reason: str) -> str:
        """Waits until a step has this reason; its message."""

        async def there() -> bool:
            return await self.reason(run, step) == reason

        await until(there)
        return (await self.record(run, step)).message

    @property
    def out(self) -> int:
        """Tickets that are out."""
        return len(self.tickets._out)

    async def undelivered(self, driver: Older) -> str:
        """A run whose step `a` has its ticket on the broker, where nobody was given it."""
        self.tickets._takers.interest(("default", driver.name))
        await driver.connect()
        # A pull request for one message: the second ticket stays.
        await driver.pull(1)
        await until(lambda: self.tickets.consumer("default", driver.name, "app")[0])
        taken = await self.launch(step("taken", driver=driver.name))
        await until(lambda: driver.tickets)
        run = await self.launch(step("a", driver=driver.name))
        await self.until_stored(run, "a")
        await self.ended(taken)
        assert driver.runs == [taken]
        return run

    async def until_stored(self, run: str, name: str) -> None:
        """Waits until it is stored where the ticket of a step is."""

        async def stored() -> bool:
            return (await self.record(run, name)).ticket.sequence > 0

        await until(stored)

    async def at_rest(self) -> None:
        """Waits until nothing is under way, and then nothing must be left."""
        await until(lambda: not self.engine._tasks)
        self.assert_at_rest()

    def assert_at_rest(self) -> None:
        super().assert_at_rest()
        assert not self.tickets._out
        assert not self.tickets._undelivered
        assert not self.tickets._rows.drivers
        assert not self.tickets._rows.claiming

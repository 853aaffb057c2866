"""Tickets of steps that have ended: taken off the broker, or their drivers told to stop."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from conveyor.bus import wire
from conveyor.bus.errors import BusError
from conveyor.bus.nats import Bus
from conveyor.bus.tickets import TicketReceipt
from conveyor.core.deadlines import TIMEOUT_GRACE
from conveyor.core.model import Stop
from conveyor.core.plan import SECOND
from conveyor.engine.loop import Engine
from conveyor.engine.workers import DriverKey
from conveyor.state.runs import StoredRun
from conveyor.store.port import Unavailable

log = structlog.get_logger("conveyor.engine")

_GRACE_S = TIMEOUT_GRACE / SECOND
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


class Withdrawals:
    """Sees to it that nobody works in vain, as far as that can be."""

    def __init__(self, bus: Bus, engine: Engine) -> None:
        self._bus = bus
        self._engine = engine

    async def withdraw(self, key: DriverKey, receipt: TicketReceipt) -> bool:
        """Take a ticket off the broker, even if that is away now; False when a driver may have been given it."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._bus.tickets.withdraw(*key, receipt)
            except BusError as error:
                log.debug("ticket_not_withdrawn", driver=key[1], error=str(error))
            with contextlib.suppress(BusError):
                await self._bus.ready(_LONGEST_PAUSE)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def withdraw_or_stop(
        self, key: DriverKey, receipt: TicketReceipt, run_id: str, index: int, token: str
    ) -> None:
        """The same for one that the engine believes to be undelivered: whoever has it after all is told to stop."""
        if await self.withdraw(key, receipt):
            return
        namespace, _ = key
        run = await self._stored(namespace, run_id)
        record = run.state.steps[index]
        for attempt in record.attempts if record is not None else ():
            if attempt.token == token and not attempt.result_digest:
                body = wire.encode_cancel(attempt.number, token, attempt.message or "the step has ended", _GRACE_S)
                await self._tell(namespace, run_id, run.state.plan.steps[index].id, body)

    async def _stored(self, namespace: str, run_id: str) -> StoredRun:
        """The run, even if the store is away now."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._engine.run(namespace, run_id)
            except Unavailable as error:
                log.debug("run_not_read", run_id=run_id, error=str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def stop(self, namespace: str, run: str, step: str, stop: Stop) -> None:
        """Tell the driver to stop an attempt, if it listens."""
        body = wire.encode_cancel(stop.attempt, stop.token, stop.message, stop.grace / SECOND)
        self._engine.spawn(self._tell(namespace, run, step, body))

    async def _tell(self, namespace: str, run: str, step: str, body: bytes) -> None:
        try:
            await self._bus.cancel(namespace, run, step, body)
        except BusError as error:
            log.debug("cancel_not_sent", run_id=run, step=step, error=str(error))

"""Broadcasts over JetStream: one message for all drivers that listen, whose answers are matched by driver."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from conveyor.bus import wire
from conveyor.bus.errors import BusError, TooLarge
from conveyor.bus.nats import Bus
from conveyor.bus.tickets import TicketReceipt
from conveyor.core.events import InputRefused, TicketSent
from conveyor.engine.assignments import assignment
from conveyor.engine.loop import Engine
from conveyor.state.runs import StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.engine")

_PAUSE = 0.2


class Broadcasts:
    """Publishes what runs without a pipeline have to say. The run's id is the message id: again is without harm."""

    def __init__(self, bus: Bus, engine: Engine) -> None:
        self._bus = bus
        self._engine = engine
        self._sending: set[str] = set()

    def publish(self, run: StoredRun, indexes: list[int]) -> None:
        """Publish the one message of a run whose claims are stored, unless that is going on."""
        if run.head.id not in self._sending:
            self._sending.add(run.head.id)
            self._engine.spawn(self._send(run.head.namespace, run.head.id, indexes))

    async def _send(self, namespace: str, run_id: str, indexes: list[int]) -> None:
        try:
            while not await self._sent(namespace, run_id, indexes):
                with contextlib.suppress(BusError):
                    await self._bus.ready(1.0)
                await asyncio.sleep(_PAUSE)
        finally:
            self._sending.discard(run_id)

    async def _sent(self, namespace: str, run_id: str, indexes: list[int]) -> bool:
        """Publish once, if somebody still has to hear of it; whether that is all."""
        run = await self._engine.run(namespace, run_id)
        # Without those that were cancelled or whose time is over.
        waiting = {index: record.token for index in indexes if (record := run.state.steps[index]) and _waits(record)}
        if not waiting:
            return True
        try:
            receipt = await self._publish(run, next(iter(waiting)))
        except TooLarge as error:
            for index in waiting:
                refused = InputRefused(index, run_pb2.STEP_REASON_INPUT_TOO_LARGE, str(error))
                await self._engine.handle(namespace, run_id, refused)
            return True
        except BusError as error:
            log.debug("broadcast_not_published", run_id=run_id, error=str(error))
            return False
        ticket = storage_pb2.Ticket(stream_created=receipt.stream_created, sequence=receipt.sequence)
        for index, token in waiting.items():
            await self._engine.handle(namespace, run_id, TicketSent(index, token, ticket))
        return True

    async def _publish(self, run: StoredRun, index: int) -> TicketReceipt:
        message = assignment(run, index, self._engine.now())
        # It goes to whoever listens: what belongs to one driver alone is left out.
        for field in ("driver", "step", "token", "attempt", "max_attempts", "timeout"):
            message.ClearField(field)
        body = wire.encode_ticket(message, first=True)
        return await self._bus.tickets.broadcast(run.head.namespace, run.head.definition, run.head.id, body)


def _waits(record: storage_pb2.StepRecord) -> bool:
    """Whether the message of the step is still to be sent."""
    return bool(record.token) and record.transport == run_pb2.TRANSPORT_JETSTREAM and not record.HasField("ticket")

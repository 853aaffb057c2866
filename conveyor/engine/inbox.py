"""Results that come over JetStream: to the engine, and acknowledged when they are stored."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import structlog

from conveyor.bus.events import InboxEvent, ResultArrived
from conveyor.bus.nats import Bus
from conveyor.core import errors
from conveyor.core.events import RunCreated
from conveyor.engine.loop import Engine
from conveyor.engine.results import invalid_event, result_event
from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.failpoints import failpoint
from conveyor.store.port import Put, Store
from conveyor.v1 import result_pb2

log = structlog.get_logger("conveyor.engine")


class Inbox:
    """Hands the bus's events to the engine."""

    def __init__(self, bus: Bus, engine: Engine, store: Store) -> None:
        self._bus = bus
        self._engine = engine
        self._store = store
        self.quarantined = 0

    async def run(self) -> None:
        """Take events for ever."""
        await self._bus.run_inbox(self._handle, self._quarantine)

    async def _handle(self, event: InboxEvent) -> None:
        try:
            if not isinstance(event, ResultArrived):
                await self._engine.handle(event.namespace, event.run, RunCreated())
                return
            if event.result is None:
                received = invalid_event(event.step, event.attempt, event.token, event.driver, event.invalid)
            else:
                report = result_pb2.ResultReport(
                    run=event.run, step=event.step, attempt=event.attempt, token=event.token, result=event.result
                )
                received = result_event(report, event.driver)
            if not event.step:
                received = replace(received, message_id=event.message_id)
            decision = await self._engine.handle(event.namespace, event.run, received)
        except (errors.NotFound, ValueError) as error:
            log.warning("result_refused", run_id=event.run, error=str(error))
            return
        failpoint("engine.before_inbox_ack")
        self._engine.metrics.result(decision.disposition)
        if decision.disposition not in (result_pb2.DISPOSITION_ACCEPTED, result_pb2.DISPOSITION_DUPLICATE):
            name = result_pb2.Disposition.Name(decision.disposition)
            log.warning("result_not_counted", run_id=event.run, step=event.step, disposition=name)

    async def _quarantine(self, source: str, body: bytes, error: str) -> None:
        record = storage_pb2.QuarantineRecord(source=source, body=body, error=error, time=self._engine.now())
        name = hashlib.sha256(source.encode() + b"\0" + body).hexdigest()[:32]
        await self._store.commit((), [Put(keys.QUARANTINE + name, record.SerializeToString())])
        self.quarantined += 1
        log.error("message_quarantined", source=source, error=error)

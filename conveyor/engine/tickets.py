"""Tickets: steps for drivers that take part over JetStream, from the claim to the delivery.

A ticket goes out only while the driver's consumer matches and somebody takes from it. Its token is the message id, so
that publishing it again is harmless. What was delivered is left alone until its deadline, whatever else happens: a
second ticket would run the step twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass

import structlog

from conveyor.bus import subjects
from conveyor.bus.consumers import ConsumerState
from conveyor.bus.errors import BusError, TooLarge
from conveyor.bus.nats import Bus
from conveyor.bus.tickets import TicketFate, TicketReceipt
from conveyor.bus.wire import encode_ticket
from conveyor.core import errors
from conveyor.core.deadlines import TIMEOUT_GRACE
from conveyor.core.model import InputRefused, Stop, TicketDelivered, TicketSent, TicketWithdrawn, Waiting, Withdraw
from conveyor.engine.assignments import assignment
from conveyor.engine.loop import Engine
from conveyor.engine.workers import DriverKey, Waiter
from conveyor.state.runs import StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.engine")

MAX_UNDELIVERED = 256
"""Tickets of a driver that may be on the broker without having been delivered."""

_FRESH = 2.0
_RECEIPT_STORED_AFTER = 0.5
_INTEREST_LINGERS = 300.0
_LIST_PERIOD = 1.0


@dataclass(slots=True)
class _Out:
    """A ticket that is out."""

    namespace: str
    driver: str
    definition: str
    run: str
    index: int
    token: str
    receipt: TicketReceipt | None = None
    consumer_created: str = ""
    delivered: bool = False


class JetStreamTickets:
    """All tickets that this process has published or taken over."""

    def __init__(self, bus: Bus, engine: Engine) -> None:
        self._bus = bus
        self._engine = engine
        self._out: dict[str, _Out] = {}
        self._by_driver: dict[DriverKey, dict[str, _Out]] = {}
        self._waiting: dict[DriverKey, dict[Waiter, None]] = {}
        self._interest_until: dict[DriverKey, float] = {}
        self._known: list[ConsumerState] = []
        self._seen: set[DriverKey] = set()
        bus.consumers.on_change(self._changed)
        bus.on_available(self._bus_changed)

    # Who is there

    def consumer(self, namespace: str, driver: str, definition: str) -> tuple[str, run_pb2.StepReason.ValueType, str]:
        """The consumer that would get a ticket now, or "" with the reason why there is none."""
        key = (namespace, driver)
        state = self._bus.consumers.state(namespace, driver)
        if not self._bus.available:
            if key in self._seen:
                return "", run_pb2.STEP_REASON_BROKER_UNAVAILABLE, "the broker that its driver listens to is away"
            return "", run_pb2.STEP_REASON_UNSPECIFIED, ""
        if state is None:
            return "", run_pb2.STEP_REASON_UNSPECIFIED, ""
        self._seen.add(key)
        subject = subjects.ticket(namespace, driver, definition)
        name = subjects.consumer(namespace, driver)
        if not state.matches(subject):
            return (
                "",
                run_pb2.STEP_REASON_CONSUMER_MISMATCH,
                f"JetStream consumer {name} has no filter that matches {subject}",
            )
        if state.age > _FRESH or not (state.pulling or state.num_ack_pending):
            return "", run_pb2.STEP_REASON_NO_WORKER, f"nobody takes messages from JetStream consumer {name}"
        if sum(not out.delivered for out in self._by_driver.get(key, {}).values()) >= MAX_UNDELIVERED:
            return "", run_pb2.STEP_REASON_WORKERS_BUSY, f"{MAX_UNDELIVERED} tickets wait on JetStream consumer {name}"
        return name, run_pb2.STEP_REASON_UNSPECIFIED, ""

    def listeners(self, namespace: str, definition: str) -> list[str]:
        """The drivers whose consumers listen to broadcasts of the definition."""
        subject = subjects.broadcast(namespace, definition)
        return [
            state.driver
            for state in self._known
            if state.namespace == namespace and state.pulling and state.matches(subject)
        ]

    def consumers(self, namespace: str) -> list[ConsumerState]:
        """All consumers of drivers in a namespace, at most a few seconds old."""
        return [state for state in self._known if state.namespace == namespace]

    async def run(self) -> None:
        """Keep looking at who is there, for ever."""
        while True:
            if self._bus.available:
                try:
                    self._known = await self._bus.consumers.list_consumers()
                except BusError as error:
                    log.debug("consumers_not_listed", error=str(error))
            now = time.monotonic()
            for key, until in list(self._interest_until.items()):
                if until < now and not self._waiting.get(key) and not self._by_driver.get(key):
                    del self._interest_until[key]
                    self._bus.consumers.forget(*key)
            await asyncio.sleep(_LIST_PERIOD)

    def _interest(self, key: DriverKey) -> None:
        """Have the driver's consumer looked at while something is out or waits, and for some minutes after."""
        if key not in self._interest_until:
            self._bus.consumers.interest(*key)
        self._interest_until[key] = time.monotonic() + _INTEREST_LINGERS

    # Out

    def publish(self, run: StoredRun, index: int) -> None:
        """Publish the ticket of a step whose claim is stored, or find out what became of it."""
        record = run.state.steps[index]
        if record is None or not record.token or record.token in self._out:
            return
        head, step = run.head, run.state.plan.steps[index]
        out = _Out(head.namespace, step.driver, head.definition, head.id, index, record.token)
        out.delivered = record.state == run_pb2.STEP_STATE_RUNNING
        if record.HasField("ticket"):
            out.receipt = TicketReceipt(record.ticket.stream_created, record.ticket.sequence)
            out.consumer_created = record.ticket.consumer_created
        self._add(out)
        if out.delivered:
            return
        work = self._send(out, run) if out.receipt is None else self._check(out)
        self._engine.spawn(work)

    def publish_broadcast(self, run: StoredRun, indexes: list[int]) -> None:
        """Publish the one message of a broadcast whose claims are stored."""
        self._engine.spawn(self._broadcast(run, indexes))

    def _add(self, out: _Out) -> None:
        key = (out.namespace, out.driver)
        self._out[out.token] = out
        self._by_driver.setdefault(key, {})[out.token] = out
        self._interest(key)

    def _drop(self, token: str) -> _Out | None:
        out = self._out.pop(token, None)
        if out is not None:
            key = (out.namespace, out.driver)
            tickets = self._by_driver[key]
            del tickets[token]
            if not tickets:
                del self._by_driver[key]
        return out

    async def _send(self, out: _Out, run: StoredRun) -> None:
        message = assignment(run, out.index, self._engine.now())
        first = not any(state != run_pb2.STEP_STATE_PENDING for state in _others(run.head.step_states, out.index))
        body = encode_ticket(message, first=first, steps=[step.id for step in run.state.plan.steps])
        consumer = self._bus.consumers.state(out.namespace, out.driver)
        while self._out.get(out.token) is out:
            try:
                receipt = await self._bus.tickets.publish(out.namespace, out.driver, out.definition, out.token, body)
            except TooLarge as error:
                self._drop(out.token)
                refused = InputRefused(out.index, run_pb2.STEP_REASON_INPUT_TOO_LARGE, str(error))
                await self._engine.handle(out.namespace, out.run, refused)
                return
            except BusError:
                with contextlib.suppress(BusError):
                    await self._bus.ready(1.0)
                await asyncio.sleep(0.05)
                continue
            out.receipt = receipt
            out.consumer_created = consumer.created if consumer is not None else ""
            if self._out.get(out.token) is not out:
                await self._revoke(out, receipt)
            elif receipt.duplicate:
                await self._check(out)
            else:
                # Most tickets are answered before that: their receipt is never needed.
                asyncio.get_running_loop().call_later(_RECEIPT_STORED_AFTER, self._store_receipt, out)
            return

    def _store_receipt(self, out: _Out) -> None:
        if self._out.get(out.token) is out and out.receipt is not None and not out.delivered:
            sent = TicketSent(out.index, out.token, _ticket(out))
            self._engine.spawn(self._engine.handle(out.namespace, out.run, sent))

    async def _broadcast(self, run: StoredRun, indexes: list[int]) -> None:
        head = run.head
        message = assignment(run, indexes[0], self._engine.now())
        # It goes to whoever listens: what belongs to one driver alone is left out, answers are matched by driver.
        for field in ("driver", "step", "token", "attempt"):
            message.ClearField(field)
        body = encode_ticket(message, first=True)
        receipt = None
        while receipt is None:
            try:
                receipt = await self._bus.tickets.broadcast(head.namespace, head.definition, head.id, body)
            except TooLarge as error:
                for index in indexes:
                    refused = InputRefused(index, run_pb2.STEP_REASON_INPUT_TOO_LARGE, str(error))
                    await self._engine.handle(head.namespace, head.id, refused)
                return
            except BusError:
                if self._engine.now() > head.create_time + run.state.plan.steps[indexes[0]].timeout:
                    return  # Nobody can have heard it; the steps are skipped at their time.
                with contextlib.suppress(BusError):
                    await self._bus.ready(1.0)
                await asyncio.sleep(0.05)
        ticket = storage_pb2.Ticket(stream_created=receipt.stream_created, sequence=receipt.sequence)
        for index in indexes:
            record = run.state.steps[index]
            if record is not None:
                await self._engine.handle(head.namespace, head.id, TicketSent(index, record.token, ticket))

    # What becomes of them

    def _changed(self, namespace: str, driver: str) -> None:
        """The registry has news of a consumer."""
        key = (namespace, driver)
        state = self._bus.consumers.state(namespace, driver)
        for out in list(self._by_driver.get(key, {}).values()):
            if out.delivered or out.receipt is None:
                continue
            if state is None or state.created != out.consumer_created:
                self._engine.spawn(self._check(out))
            elif state.delivered >= out.receipt.sequence:
                self._mark_delivered(out)
        self._serve(key)

    def _mark_delivered(self, out: _Out) -> None:
        out.delivered = True
        self._engine.spawn(self._engine.handle(out.namespace, out.run, TicketDelivered(out.index, out.token)))

    async def _check(self, out: _Out) -> None:
        """Ask the broker what became of a ticket."""
        if out.receipt is None or self._out.get(out.token) is not out:
            return
        try:
            fate = await self._bus.tickets.fate(out.namespace, out.driver, out.receipt, out.consumer_created)
        except BusError:
            return  # Looked at again when the broker is back.
        if self._out.get(out.token) is not out or out.delivered:
            return
        if fate is TicketFate.DELIVERED:
            self._mark_delivered(out)
        elif fate is TicketFate.LOST:
            self._drop(out.token)
            await self._engine.handle(out.namespace, out.run, TicketWithdrawn(out.index, out.token))
        else:
            self._store_receipt(out)

    def _bus_changed(self, available: bool) -> None:
        if not available:
            return
        for out in list(self._out.values()):
            if out.receipt is not None and not out.delivered:
                self._engine.spawn(self._check(out))

    def withdraw(self, namespace: str, run: str, driver: str, withdraw: Withdraw) -> None:
        """Take a ticket back whose step has ended and that another process published."""
        if withdraw.token not in self._out:
            receipt = TicketReceipt(withdraw.ticket.stream_created, withdraw.ticket.sequence)
            out = _Out(namespace, driver, "", run, withdraw.index, withdraw.token)
            self._engine.spawn(self._revoke(out, receipt))

    async def _revoke(self, out: _Out, receipt: TicketReceipt) -> None:
        """Take back a ticket whose attempt is over. A driver that may have it already is told to stop."""
        if await self._withdraw(out.namespace, out.driver, receipt):
            return
        state = (await self._engine.run(out.namespace, out.run)).state
        record = state.steps[out.index]
        attempts = record.attempts if record is not None else ()
        for attempt in attempts:
            if attempt.token == out.token:
                stop = Stop(
                    index=out.index,
                    attempt=attempt.number,
                    session="",
                    transport=run_pb2.TRANSPORT_JETSTREAM,
                    token=out.token,
                    message=attempt.message,
                    grace=TIMEOUT_GRACE,
                )
                self.stop(out.namespace, out.run, state.plan.steps[out.index].id, stop)

    async def _withdraw(self, namespace: str, driver: str, receipt: TicketReceipt) -> bool:
        try:
            return await self._bus.tickets.withdraw(namespace, driver, receipt)
        except BusError as error:
            log.debug("ticket_not_withdrawn", driver=driver, error=str(error))
            return False

    def ended(self, token: str, *, answered: bool) -> None:
        """The attempt of this token is over."""
        out = self._drop(token)
        if out is not None and not answered and not out.delivered and out.receipt is not None:
            self._engine.spawn(self._revoke(out, out.receipt))

    def stop(self, namespace: str, run: str, step: str, stop: Stop) -> None:
        """Tell the driver to stop an attempt, if it listens."""
        told = {"attempt": stop.attempt, "token": stop.token, "message": stop.message, "grace": stop.grace / 1e6}
        self._engine.spawn(self._tell(namespace, run, step, json.dumps(told).encode()))

    async def _tell(self, namespace: str, run: str, step: str, body: bytes) -> None:
        try:
            await self._bus.cancel(namespace, run, step, body)
        except BusError as error:
            log.debug("cancel_not_sent", run_id=run, step=step, error=str(error))

    def workers_came(self, namespace: str, driver: str) -> None:
        """The driver has gRPC workers now: take back what is not delivered, so that they get it."""
        key = (namespace, driver)
        self._waiting.pop(key, None)
        for out in list(self._by_driver.get(key, {}).values()):
            if not out.delivered and out.receipt is not None:
                self._engine.spawn(self._take_back(out, out.receipt))

    async def _take_back(self, out: _Out, receipt: TicketReceipt) -> None:
        if await self._withdraw(out.namespace, out.driver, receipt):
            self._drop(out.token)
            await self._engine.handle(out.namespace, out.run, TicketWithdrawn(out.index, out.token))
        elif self._out.get(out.token) is out and not out.delivered:
            self._mark_delivered(out)

    # Steps that wait

    def wait(self, waiter: Waiter) -> None:
        """Have the engine claim a step when a consumer of its driver pulls."""
        key = (waiter.namespace, waiter.driver)
        self._waiting.setdefault(key, {})[waiter] = None
        self._interest(key)
        self._serve(key)

    def leave(self, waiter: Waiter) -> None:
        """The step waits no more: claimed by a worker, or ended."""
        key = (waiter.namespace, waiter.driver)
        waiters = self._waiting.get(key)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._waiting[key]

    def _serve(self, key: DriverKey) -> None:
        """Claim waiting steps for the driver's consumer, or say why they go on waiting."""
        waiters = self._waiting.get(key)
        if not waiters:
            return
        for waiter in list(waiters):
            name, reason, message = self.consumer(waiter.namespace, waiter.driver, waiter.definition)
            if name:
                del waiters[waiter]
                self._engine.spawn(self._claim(waiter, name))
            elif reason:
                self._engine.spawn(self._explain(waiter, Waiting(waiter.index, reason, message)))
        if not waiters:
            self._waiting.pop(key, None)

    async def _claim(self, waiter: Waiter, consumer: str) -> None:
        with contextlib.suppress(errors.NotFound):
            await self._engine.claim_ticket(waiter, consumer)

    async def _explain(self, waiter: Waiter, event: Waiting) -> None:
        try:
            decision = await self._engine.handle(waiter.namespace, waiter.run, event)
            record = decision.state.steps[waiter.index]
            waits = record is not None and record.state == run_pb2.STEP_STATE_QUEUED and not record.token
        except errors.NotFound:
            waits = False
        if not waits:
            self._waiting.get((waiter.namespace, waiter.driver), {}).pop(waiter, None)


def _others(states: bytes, index: int) -> bytes:
    return states[:index] + states[index + 1 :]


def _ticket(out: _Out) -> storage_pb2.Ticket:
    receipt = out.receipt
    if receipt is None:
        raise ValueError("the ticket was not published")
    return storage_pb2.Ticket(
        stream_created=receipt.stream_created, consumer_created=out.consumer_created, sequence=receipt.sequence
    )

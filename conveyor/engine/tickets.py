"""Tickets: steps for drivers that take part over JetStream, from the claim to the delivery.

A ticket goes out only while the driver's consumer matches and somebody takes from it. Its token is the message id, so
that publishing it again is harmless. What was delivered is left alone until its deadline, whatever else happens: a
second ticket would run the step twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from conveyor.bus import subjects, wire
from conveyor.bus.consumers import ConsumerState
from conveyor.bus.errors import BusError, TooLarge
from conveyor.bus.nats import Bus
from conveyor.bus.tickets import TicketFate, TicketReceipt
from conveyor.core import errors
from conveyor.core.events import InputRefused, TicketDelivered, TicketSent, TicketWithdrawn
from conveyor.core.model import Stop, Withdraw
from conveyor.core.plan import SECOND
from conveyor.engine.assignments import assignment
from conveyor.engine.loop import Engine
from conveyor.engine.ticket_broadcasts import Broadcasts
from conveyor.engine.ticket_rows import TicketRows
from conveyor.engine.ticket_takers import NOBODY, Found, Takers
from conveyor.engine.ticket_withdrawals import Withdrawals
from conveyor.engine.workers import DriverKey, Waiter
from conveyor.state.runs import StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.store.failpoints import failpoint
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.engine")

MAX_UNDELIVERED = 256
"""Tickets of a driver that may be on the broker without having been delivered."""

_NOTED_AFTER = 0.5
"""Seconds after which it is stored where a ticket is, or that it was delivered. Most are answered before."""
_LOOK_PERIOD = 1.0
_REVIEWED_AT_ONCE = 64
_CHECKS_AT_ONCE = 16
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


@dataclass(slots=True, eq=False)
class _Out:
    """A ticket that is out.

    `delivered`: a driver was seen to be given it. `noted`: what is known of it is to be stored. `running`: it is
    stored that the step runs. `answered`: the driver has sent its result.
    """

    key: DriverKey
    definition: str
    run: str
    index: int
    token: str
    receipt: TicketReceipt | None = None
    consumer_created: str = ""
    delivered: bool = False
    noted: bool = False
    running: bool = False
    answered: bool = False
    checking: bool = False


class JetStreamTickets:
    """All tickets that this process has published or taken over."""

    def __init__(self, bus: Bus, engine: Engine) -> None:
        self._bus = bus
        self._engine = engine
        self._out: OrderedDict[str, _Out] = OrderedDict()
        self._undelivered: dict[DriverKey, dict[str, _Out]] = {}
        self._broadcasts = Broadcasts(bus, engine)
        self._withdrawals = Withdrawals(bus, engine)
        self._takers = Takers(bus)
        self._rows = TicketRows(engine, self._find)
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)
        bus.consumers.on_change(self._changed)
        bus.on_available(self._bus_changed)

    # Who is there

    def consumer(self, namespace: str, driver: str, definition: str) -> tuple[str, run_pb2.StepReason.ValueType, str]:
        """The consumer that would get a ticket now, or "" with the reason why there is none."""
        return self._find(namespace, driver, definition)

    def _find(self, namespace: str, driver: str, definition: str) -> Found:
        if self._engine.sessions.takers(namespace, driver, definition):
            return NOBODY  # Its workers at other replicas see what is queued.
        found = self._takers.find(namespace, driver, definition)
        key = (namespace, driver)
        if found.consumer and len(self._undelivered.get(key, ())) + self._rows.claiming[key] >= MAX_UNDELIVERED:
            message = f"{MAX_UNDELIVERED} tickets wait on JetStream consumer {found.consumer}"
            return Found("", run_pb2.STEP_REASON_WORKERS_BUSY, message)
        return found

    def takes_part(self, namespace: str, driver: str) -> bool:
        """Whether the driver has a consumer."""
        return any(consumer.driver == driver for consumer in self._takers.consumers(namespace))

    def listeners(self, namespace: str, definition: str) -> list[str]:
        """The drivers whose consumers listen to broadcasts of the definition."""
        return self._takers.listeners(namespace, definition)

    def listener(self, namespace: str, driver: str, definition: str) -> str:
        """The driver's consumer if it listens to broadcasts of the definition."""
        return subjects.consumer(namespace, driver) if driver in self.listeners(namespace, definition) else ""

    def consumers(self, namespace: str) -> list[ConsumerState]:
        """All consumers of drivers in a namespace, at most a few seconds old."""
        return self._takers.consumers(namespace)

    async def run(self) -> None:
        """Keep looking at who is there and at what is out, for ever."""
        rows = self._rows
        while True:
            await self._takers.look()
            for key in rows.drivers:
                rows.serve(key)
            await self._review()
            self._takers.lose_interest({*rows.drivers, *(out.key for out in self._out.values())})
            await asyncio.sleep(_LOOK_PERIOD)

    # Out

    def publish(self, run: StoredRun, index: int) -> None:
        """Publish the ticket of a step whose claim is stored, or find out what became of it."""
        record = run.state.steps[index]
        if record is None or not record.token:
            return
        out = self._out.get(record.token)
        if out is not None:
            self._check_soon(out)
            return
        head, step = run.head, run.state.plan.steps[index]
        out = _Out((head.namespace, step.driver), head.definition, head.id, index, record.token)
        out.delivered = out.running = record.state == run_pb2.STEP_STATE_RUNNING
        if record.HasField("ticket"):
            out.noted = True
            out.receipt = TicketReceipt(record.ticket.stream_created, record.ticket.sequence)
            out.consumer_created = record.ticket.consumer_created
        self._out[out.token] = out
        self._takers.interest(out.key)
        if out.delivered:
            return
        self._undelivered.setdefault(out.key, {})[out.token] = out
        if out.receipt is None:
            self._engine.spawn(self._send(out, run))
        else:
            self._check_soon(out)

    def publish_broadcast(self, run: StoredRun, indexes: list[int]) -> None:
        """Publish the one message of a broadcast whose claims are stored."""
        self._broadcasts.publish(run, indexes)

    def _drop(self, token: str) -> _Out | None:
        out = self._out.pop(token, None)
        if out is not None:
            self._no_longer_undelivered(out)
        return out

    def _no_longer_undelivered(self, out: _Out) -> None:
        tickets = self._undelivered.get(out.key)
        if tickets is not None and tickets.pop(out.token, None) is not None:
            if not tickets:
                del self._undelivered[out.key]
            self._rows.serve(out.key)

    async def _send(self, out: _Out, run: StoredRun) -> None:
        body = self._body(out, run)
        pause = _FIRST_PAUSE
        while self._out.get(out.token) is out:
            try:
                if await self._publish(out, body):
                    break
            except TooLarge as error:
                self._drop(out.token)
                refused = InputRefused(out.index, run_pb2.STEP_REASON_INPUT_TOO_LARGE, str(error))
                await self._engine.handle(out.key[0], out.run, refused)
                return
            except BusError as error:
                log.debug("ticket_not_published", run_id=out.run, error=str(error))
            with contextlib.suppress(BusError):
                await self._bus.ready(_LONGEST_PAUSE)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        if out.receipt is None:
            return
        if self._out.get(out.token) is not out:
            # The step ended while its ticket was under way.
            if not out.answered:
                self._take_off(out, out.receipt)
            return
        asyncio.get_running_loop().call_later(_NOTED_AFTER, self._note, out)
        if out.receipt.duplicate or self._has_workers(out):
            self._check_soon(out)

    async def _publish(self, out: _Out, body: bytes) -> bool:
        """Publish once. False: nobody would keep it, and the step waits again. Raises BusError."""
        known = None if out.consumer_created else self._takers.state(out.key)
        state = known or await self._bus.consumers.refresh(*out.key)
        if state is None or not state.matches(subjects.ticket(*out.key, out.definition)):
            await self._take_back(out)
            return False
        # The broker's answer says nothing of the consumer. One that is made anew from here on is another one; and what
        # an earlier try stored without an answer went to the consumer of that time.
        out.consumer_created = out.consumer_created or state.created
        failpoint("engine.before_publish")
        receipt = await self._bus.tickets.publish(*out.key, out.definition, out.token, body)
        failpoint("engine.after_publish")
        if not receipt.duplicate:
            out.consumer_created = state.created
        out.receipt = receipt
        return True

    def _body(self, out: _Out, run: StoredRun) -> bytes:
        message = assignment(run, out.index, self._engine.now())
        step = run.state.plan.steps[out.index]
        # The time of the attempt runs from its delivery, and what is left of the wait is none of the driver's business.
        message.ClearField("deadline")
        message.timeout.seconds, rest = divmod(step.timeout, SECOND)
        message.timeout.nanos = rest * 1000
        states = run.head.step_states
        first = not any(state != run_pb2.STEP_STATE_PENDING for i, state in enumerate(states) if i != out.index)
        return wire.encode_ticket(message, first=first, steps=run.state.plan.in_order())

    def _has_workers(self, out: _Out) -> bool:
        """Whether the driver has come by gRPC, and should get what JetStream has not delivered."""
        namespace, driver = out.key
        return bool(
            self._engine.pool.workers(namespace, driver)
            or self._engine.sessions.takers(namespace, driver, out.definition)
        )

    # What becomes of them

    def _note(self, out: _Out) -> None:
        """Have it stored what is known of a ticket that was not answered at once."""
        out.noted = True
        if self._out.get(out.token) is not out or out.receipt is None:
            return
        if out.delivered:
            self._engine.spawn(self._runs(out))
        else:
            ticket = storage_pb2.Ticket(
                stream_created=out.receipt.stream_created,
                consumer_created=out.consumer_created,
                sequence=out.receipt.sequence,
            )
            sent = TicketSent(out.index, out.token, ticket)
            self._engine.spawn(self._engine.handle(out.key[0], out.run, sent))

    async def _runs(self, out: _Out) -> None:
        await self._engine.handle(out.key[0], out.run, TicketDelivered(out.index, out.token))
        out.running = True

    def _mark_delivered(self, out: _Out) -> None:
        out.delivered = True
        self._no_longer_undelivered(out)
        if out.noted:
            self._note(out)

    def _changed(self, namespace: str, driver: str) -> None:
        """The registry has news of a consumer."""
        key = (namespace, driver)
        self._takers.changed(key)
        state = self._takers.state(key)
        if self._bus.available:
            for out in list(self._undelivered.get(key, {}).values()):
                if state is None or state.created != out.consumer_created:
                    self._check_soon(out)
                elif out.receipt is not None and state.delivered >= out.receipt.sequence:
                    self._mark_delivered(out)
        self._rows.serve(key)

    def _bus_changed(self, available: bool) -> None:
        if available:
            for tickets in list(self._undelivered.values()):
                for out in list(tickets.values()):
                    self._check_soon(out)

    def _check_soon(self, out: _Out) -> None:
        """Ask the broker what became of a ticket, unless it is being asked, or was not given it yet."""
        known = self._out.get(out.token) is out
        if known and out.receipt is not None and not out.delivered and not out.checking:
            out.checking = True
            self._engine.spawn(self._check(out, out.receipt))

    async def _check(self, out: _Out, receipt: TicketReceipt) -> None:
        try:
            async with self._checks:
                fate = await self._bus.tickets.fate(*out.key, receipt, out.consumer_created)
        except BusError as error:
            log.debug("ticket_not_found", run_id=out.run, error=str(error))
            if self._bus.available:  # Else asked again when it is.
                asyncio.get_running_loop().call_later(_LOOK_PERIOD, self._check_soon, out)
            return
        finally:
            out.checking = False
        if self._out.get(out.token) is not out or out.delivered:
            return
        if fate is TicketFate.DELIVERED:
            out.noted = True
            self._mark_delivered(out)
        elif fate is TicketFate.LOST:
            log.info("ticket_lost", run_id=out.run, driver=out.key[1])
            await self._take_back(out)
        elif self._has_workers(out):
            await self._move(out, receipt)
        elif not out.noted:
            self._note(out)

    async def _review(self) -> None:
        """Forget tickets whose attempts another replica has seen end, some at a time."""
        for out in list(itertools.islice(self._out.values(), _REVIEWED_AT_ONCE)):
            if out.token in self._out:
                self._out.move_to_end(out.token)
            try:
                run = await self._engine.run(out.key[0], out.run)
                record = run.state.steps[out.index]
            except errors.NotFound:
                record = None
            except Exception as error:  # noqa: BLE001 - whatever the store has, the other tickets are looked at
                log.debug("ticket_not_reviewed", run_id=out.run, error=str(error))
                continue
            if record is None or record.token != out.token:
                self._drop(out.token)

    async def _take_back(self, out: _Out) -> None:
        """Let the step of a ticket that reached nobody wait again."""
        self._drop(out.token)
        await self._engine.handle(out.key[0], out.run, TicketWithdrawn(out.index, out.token))

    async def _move(self, out: _Out, receipt: TicketReceipt) -> None:
        """Take a ticket off the broker for a worker that has come by gRPC."""
        try:
            withdrawn = await self._bus.tickets.withdraw(*out.key, receipt)
        except BusError as error:
            log.debug("ticket_not_withdrawn", run_id=out.run, error=str(error))
            return
        if self._out.get(out.token) is not out or out.delivered:
            return
        if withdrawn:
            await self._take_back(out)
        else:
            out.noted = True
            self._mark_delivered(out)

    def workers_came(self, namespace: str, driver: str) -> None:
        """The driver has gRPC workers now: take back what is not delivered, so that they get it."""
        self._rows.clear((namespace, driver))
        for out in list(self._undelivered.get((namespace, driver), {}).values()):
            self._check_soon(out)

    # Ends

    def ended(self, token: str, *, answered: bool) -> None:
        """The attempt of this token is over."""
        out = self._drop(token)
        if out is not None:
            out.answered = answered
            if not answered and out.receipt is not None:
                self._take_off(out, out.receipt)

    def _take_off(self, out: _Out, receipt: TicketReceipt) -> None:
        """Have nobody be given a ticket, for the first time or again, whose step goes on without it."""
        if out.running:
            # Whoever has it was told to stop by the engine.
            self._engine.spawn(self._withdrawals.withdraw(out.key, receipt))
        else:
            self._engine.spawn(self._withdrawals.withdraw_or_stop(out.key, receipt, out.run, out.index, out.token))

    def withdraw(self, namespace: str, run: str, driver: str, withdraw: Withdraw) -> None:
        """Take a ticket back whose step has ended and that another process published."""
        if withdraw.token not in self._out:
            receipt = TicketReceipt(withdraw.ticket.stream_created, withdraw.ticket.sequence)
            key, token = (namespace, driver), withdraw.token
            self._engine.spawn(self._withdrawals.withdraw_or_stop(key, receipt, run, withdraw.index, token))

    def stop(self, namespace: str, run: str, step: str, stop: Stop) -> None:
        """Tell the driver to stop an attempt, if it listens."""
        self._withdrawals.stop(namespace, run, step, stop)

    # Steps that wait

    def wait(self, waiter: Waiter) -> None:
        """Have the engine claim a step when a consumer of its driver pulls."""
        if waiter.broadcast or waiter.selector:
            return  # Those who listen by JetStream got it at once, or have none of the labels.
        self._takers.interest((waiter.namespace, waiter.driver))
        self._rows.wait(waiter)

    def leave(self, waiter: Waiter) -> None:
        """The step waits no more: claimed by a worker, or ended."""
        self._rows.leave(waiter)

"""Work for JetStream drivers: published once, found again, taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from conveyor.bus import subjects
from conveyor.bus.errors import BusUnavailable
from conveyor.bus.jetstream import JetStream
from conveyor.bus.session import NoResponders
from conveyor.bus.subjects import MESSAGES_STREAM

PUBLISH_S = 5.0


@dataclass(frozen=True, slots=True)
class TicketReceipt:
    """Where a ticket is: the stream, by when it was created as the broker says, and the sequence in it."""

    stream_created: str
    sequence: int
    duplicate: bool = False
    """The broker had it already; `sequence` is that of the first one."""


class TicketFate(Enum):
    """What became of a ticket."""

    WAITING = "waiting"
    """It is in the stream, and no driver was given it."""
    DELIVERED = "delivered"
    """A driver was given it: a second one would run the step twice."""
    LOST = "lost"
    """No driver was given it and none will: publish it again."""


class Tickets:
    """Publishes and withdraws messages on stream `messages`. Everything raises BusUnavailable."""

    def __init__(
        self, jetstream: Callable[[], JetStream], created: Callable[[str], str], doubted: Callable[[], None]
    ) -> None:
        self._jetstream = jetstream
        self._created = created
        self._doubted = doubted
        self._highest = ("", 0)

    async def publish(
        self,
        namespace: str,
        driver: str,
        definition: str,
        token: str,
        body: bytes,
        *,
        replaces: TicketReceipt | None = None,
        timeout: float = PUBLISH_S,
    ) -> TicketReceipt:
        """Publishes a ticket; again with the same token, within two minutes, it is the same message.

        So a ticket whose fate is LOST must be named by `replaces`: the broker would not take it a second time.
        The caller has made sure that the driver's consumer matches: nothing is kept for nobody. Raises TooLarge, and
        BusUnavailable when it is not certain that the ticket is there.
        """
        if replaces is not None:
            token = f"{token} {replaces.stream_created} {replaces.sequence}"
        return await self._publish(subjects.ticket(namespace, driver, definition), token, body, timeout)

    async def broadcast(
        self, namespace: str, definition: str, message_id: str, body: bytes, *, timeout: float = PUBLISH_S
    ) -> TicketReceipt:
        """Publishes a resource that moves on no pipeline to all consumers that match, as `publish` does."""
        return await self._publish(subjects.broadcast(namespace, definition), message_id, body, timeout)

    async def withdraw(self, namespace: str, driver: str, ticket: TicketReceipt) -> bool:
        """Takes a ticket back; False when a driver may have been given it.

        Also False when another ticket was delivered between the two looks that this takes: being wrong in this
        direction costs a wait, in the other a second execution.
        """
        jetstream = self._jetstream()
        if ticket.stream_created != self._created(MESSAGES_STREAM):
            return True
        await jetstream.delete_message(MESSAGES_STREAM, ticket.sequence)
        consumer = await jetstream.consumer(MESSAGES_STREAM, subjects.consumer(namespace, driver))
        return consumer is None or int(consumer["delivered"]["stream_seq"]) < ticket.sequence

    async def fate(self, namespace: str, driver: str, ticket: TicketReceipt, consumer_created: str) -> TicketFate:
        """What became of a ticket that was published when the driver's consumer was that one."""
        jetstream = self._jetstream()
        if ticket.stream_created != self._created(MESSAGES_STREAM):
            return TicketFate.LOST
        # In this order: what is delivered and acknowledged in between is gone, and then seen as delivered.
        stored = await jetstream.message(MESSAGES_STREAM, {"seq": ticket.sequence})
        consumer = await jetstream.consumer(MESSAGES_STREAM, subjects.consumer(namespace, driver))
        if consumer is None or consumer["created"] != consumer_created:
            return TicketFate.LOST
        if int(consumer["delivered"]["stream_seq"]) >= ticket.sequence:
            return TicketFate.DELIVERED
        return TicketFate.LOST if stored is None else TicketFate.WAITING

    async def _publish(self, subject: str, message_id: str, body: bytes, timeout: float) -> TicketReceipt:
        created = self._created(MESSAGES_STREAM)
        try:
            ack = await self._jetstream().publish(subject, body, headers={"Nats-Msg-Id": message_id}, timeout=timeout)
        except NoResponders:
            self._doubted()
            raise
        stream, highest = self._highest
        if stream == created and ack.sequence <= highest and not ack.duplicate:
            # The numbers began anew, so this is another stream than the one that we know of.
            self._doubted()
            raise BusUnavailable("the stream was created anew")
        self._highest = (created, max(ack.sequence, highest if stream == created else 0))
        return TicketReceipt(created, ack.sequence, ack.duplicate)

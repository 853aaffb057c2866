"""Tickets on a real broker, for drivers that behave as the recorded ones did."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conveyor.bus.errors import BusUnavailable, TooLarge
from conveyor.bus.events import InboxEvent, ResultArrived
from conveyor.bus.jetstream import JetStream
from conveyor.bus.tickets import TicketFate
from tests.support.bus import OlderDriver, other_client, started_bus, until, until_async
from tests.support.nats import NatsServer

TICKET = json.dumps({"id": "1", "event": "create", "run_id": "r", "payload": "{}"}).encode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    running = NatsServer(tmp_path / "nats", max_payload=1 << 20).start()
    yield running
    running.kill()


async def consumer_created(jetstream: JetStream, name: str) -> str:
    info = await jetstream.consumer("messages", name)
    assert info
    return str(info["created"])


async def test_an_older_driver_gets_its_ticket_and_its_answer_arrives(server: NatsServer) -> None:
    events: list[InboxEvent] = []

    async def handle(event: InboxEvent) -> None:
        events.append(event)

    async def refuse(*_: object) -> None:
        raise AssertionError

    async with started_bus(server) as bus, other_client(server) as other:
        bus.run_inbox(handle, refuse)
        driver = OlderDriver(other.session, "d1")
        await driver.create()
        await driver.pull()
        body = {
            "id": "1",
            "event": "create",
            "run_id": "r",
            "payload": json.dumps({"metadata": {"conveyor.step": "s", "conveyor.attempt": "1", "conveyor.token": "t"}}),
        }
        await bus.tickets.publish("default", "d1", "load", "t", json.dumps(body).encode())
        await until(lambda: events)
    (event,) = events
    assert isinstance(event, ResultArrived)
    assert (event.run, event.step, event.attempt, event.token, event.driver) == ("r", "s", 1, "t", "d1")
    assert [ticket["id"] for ticket in driver.tickets] == ["1"]


async def test_the_same_ticket_twice_is_one_message(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        await OlderDriver(other.session, "d1").create()
        first = await bus.tickets.publish("default", "d1", "load", "t1", TICKET)
        second = await bus.tickets.publish("default", "d1", "load", "t1", TICKET)
        third = await bus.tickets.publish("default", "d1", "load", "t2", TICKET)
        stream = await other.stream("messages")
        assert stream
        assert (first.duplicate, second, third.sequence) == (False, replace(first, duplicate=True), first.sequence + 1)
        assert first.stream_created == stream["created"]
        assert stream["state"]["messages"] == 2


async def test_a_ticket_in_another_namespace_reaches_its_own_consumer_only(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        drivers = [OlderDriver(other.session, name) for name in ("img", "img-build")]
        for driver in drivers:
            await driver.create()
        await bus.tickets.publish("team-a", "img", "load", "t1", TICKET)
        await bus.tickets.publish("default", "img", "load", "t2", TICKET)

        async def counted() -> bool:
            # A consumer counts what was stored a moment after the stream has acknowledged it.
            states = [await bus.consumers.refresh("default", name) for name in ("img", "img-build")]
            return [state.num_pending for state in states if state] == [1, 0]

        await until_async(counted)


async def test_a_ticket_survives_the_absence_of_an_older_driver_and_a_crash(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        answer = await OlderDriver(other.session, "d1").create()
        # What JetStream would take for 5 s without us.
        assert answer["config"]["inactive_threshold"] == 86_400 * 10**9
        receipt = await bus.tickets.publish("default", "d1", "load", "t", TICKET)
        created = await consumer_created(other, "d1")
        await asyncio.to_thread(server.kill)
        await until(lambda: not bus.available)
        await asyncio.to_thread(server.start)
        await bus.ready(20)
        assert await bus.tickets.fate("default", "d1", receipt, created) is TicketFate.WAITING
        async with other_client(server) as again:
            driver = OlderDriver(again.session, "d1")
            await driver.create()
            await driver.pull()
            await until(lambda: driver.tickets)
            assert await bus.tickets.fate("default", "d1", receipt, created) is TicketFate.DELIVERED


async def test_a_ticket_that_nobody_was_given_can_be_withdrawn(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        driver = OlderDriver(other.session, "d1")
        await driver.create()
        receipt = await bus.tickets.publish("default", "d1", "load", "t", TICKET)
        assert await bus.tickets.withdraw("default", "d1", receipt) is True
        assert await bus.tickets.withdraw("default", "d1", receipt) is True
        await driver.pull()
        await bus.tickets.publish("default", "d1", "load", "t2", TICKET)
        await until(lambda: driver.tickets)
        assert len(driver.tickets) == 1


@pytest.mark.parametrize("silent", [True, False])
async def test_a_ticket_that_was_delivered_cannot(server: NatsServer, silent: bool) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        driver = OlderDriver(other.session, "d1")
        driver.silent = silent
        await driver.create()
        await driver.pull()
        receipt = await bus.tickets.publish("default", "d1", "load", "t", TICKET)
        await until(lambda: driver.tickets)
        assert await bus.tickets.withdraw("default", "d1", receipt) is False


async def test_a_ticket_delivered_but_not_acknowledged_cannot_either(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        await OlderDriver(other.session, "d1").create()
        receipt = await bus.tickets.publish("default", "d1", "load", "t", TICKET)
        got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def take(message: Any) -> None:
            got.set_result(message)

        inbox = other.session.new_inbox()
        await other.session.subscribe(inbox, take)
        await other.session.publish("$JS.API.CONSUMER.MSG.NEXT.messages.d1", b"", reply=inbox)
        await got
        created = await consumer_created(other, "d1")
        assert await bus.tickets.fate("default", "d1", receipt, created) is TicketFate.DELIVERED
        assert await bus.tickets.withdraw("default", "d1", receipt) is False


async def test_a_lost_ticket_is_told_and_comes_again(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        driver = OlderDriver(other.session, "d1")
        await driver.create()
        created = await consumer_created(other, "d1")
        receipt = await bus.tickets.publish("default", "d1", "load", "t", TICKET)
        # With its consumer goes what waited for it; the new consumer looks as if it had been given it.
        await other.call("CONSUMER.DELETE.messages.d1")
        assert await bus.tickets.fate("default", "d1", receipt, created) is TicketFate.LOST
        await driver.create()
        await driver.pull()
        assert await bus.tickets.fate("default", "d1", receipt, created) is TicketFate.LOST
        created = await consumer_created(other, "d1")
        again = await bus.tickets.publish("default", "d1", "load", "t", TICKET, replaces=receipt)
        assert not again.duplicate
        await until(lambda: len(driver.tickets) == 1)
        assert await bus.tickets.fate("default", "d1", again, created) is TicketFate.DELIVERED
        twice = await bus.tickets.publish("default", "d1", "load", "t", TICKET, replaces=receipt)
        assert (twice.duplicate, twice.sequence) == (True, again.sequence)


async def test_a_ticket_for_nobody_is_lost(server: NatsServer) -> None:
    async with started_bus(server) as bus:
        receipt = await bus.tickets.publish("default", "nobody", "load", "t", TICKET)
        assert await bus.tickets.fate("default", "nobody", receipt, "never") is TicketFate.LOST
        assert await bus.tickets.withdraw("default", "nobody", receipt) is True


async def test_a_stream_created_anew_is_never_taken_for_the_old_one(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        await OlderDriver(other.session, "d1").create()
        created = await consumer_created(other, "d1")
        receipt = await bus.tickets.publish("default", "d1", "load", "t", TICKET)
        await other.call("STREAM.DELETE.messages")

        async def publish() -> Any:
            try:
                return await bus.tickets.publish("default", "d1", "load", "t", TICKET)
            except BusUnavailable:
                return None

        await until_async(lambda: other.stream("messages"))
        await OlderDriver(other.session, "d1").create()
        await until_async(publish)
        stream = await other.stream("messages")
        again = await publish()
        assert stream
        assert again.stream_created == stream["created"] != receipt.stream_created
        assert await bus.tickets.fate("default", "d1", receipt, created) is TicketFate.LOST
        # Its number is another ticket's now.
        assert await bus.tickets.withdraw("default", "d1", receipt) is True
        assert await other.message("messages", {"seq": again.sequence})


async def test_a_ticket_that_is_too_large_is_refused_and_the_connection_stays(server: NatsServer) -> None:
    async with started_bus(server) as bus:
        seen: list[bool] = []
        bus.on_available(seen.append)
        with pytest.raises(TooLarge) as caught:
            await bus.tickets.publish("default", "d1", "load", "t", b"x" * (1 << 20))
        assert (caught.value.limit, caught.value.size > 1 << 20) == (1 << 20, True)
        await bus.tickets.publish("default", "d1", "load", "t", b"x" * ((1 << 20) - 200))
        assert not seen


async def test_no_ticket_while_the_broker_is_away(server: NatsServer) -> None:
    async with started_bus(server) as bus:
        await asyncio.to_thread(server.kill)
        await until(lambda: not bus.available)
        with pytest.raises(BusUnavailable):
            await bus.tickets.publish("default", "d1", "load", "t", TICKET)


async def test_a_frozen_broker_costs_a_ticket_its_timeout_and_no_more(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        await OlderDriver(other.session, "d1").create()
        server.freeze()
        try:
            with pytest.raises(BusUnavailable, match="did not answer"):
                await bus.tickets.publish("default", "d1", "load", "t", TICKET, timeout=0.2)
        finally:
            server.thaw()
        # It may have arrived; the same token makes it one.
        await bus.tickets.publish("default", "d1", "load", "t", TICKET)
        stream = await other.stream("messages")
        assert stream
        assert stream["state"]["messages"] == 1


async def test_a_broadcast_reaches_all_that_listen(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        drivers = [
            OlderDriver(other.session, "d1"),
            OlderDriver(other.session, "d2"),
            OlderDriver(other.session, "d3", "x"),
        ]
        for driver in drivers:
            await driver.create()
            await driver.pull()
        await bus.tickets.broadcast("default", "load", "run-id", TICKET)
        await until(lambda: drivers[0].tickets and drivers[1].tickets)
        assert not drivers[2].tickets


async def test_a_cancel_is_heard_by_core_nats(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        heard: list[tuple[str, bytes]] = []

        async def hear(message: Any) -> None:
            heard.append((message.subject, message.data))

        await other.session.subscribe("ns.team-a.cancel.*.*", hear)
        await other.call("INFO")
        await bus.cancel("team-a", "r", "s", b"{}")
        await until(lambda: heard == [("ns.team-a.cancel.r.s", b"{}")])

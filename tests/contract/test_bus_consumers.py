"""What is known of drivers' consumers, and how soon."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyor.bus import consumers
from tests.support.bus import OlderDriver, other_client, started_bus, until
from tests.support.nats import NatsServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    running = NatsServer(tmp_path / "nats").start()
    yield running
    running.kill()


async def test_a_driver_appears_pulls_is_given_work_and_goes(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        changes: list[tuple[str, str]] = []
        registry = bus.consumers
        registry.on_change(lambda namespace, driver: changes.append((namespace, driver)))
        registry.interest("default", "d1")
        assert registry.state("default", "d1") is None

        driver = OlderDriver(other.session, "d1")
        await driver.create()
        await until(lambda: registry.state("default", "d1"))
        state = registry.state("default", "d1")
        assert state
        assert (state.pulling, state.num_pending, state.delivered) == (False, 0, 0)
        assert state.matches("drivers.d1.resources.load")
        assert state.matches("resources.load")
        assert not state.matches("drivers.d2.resources.load")
        assert not state.matches("drivers.d1.resources.other")
        assert not state.matches("ns.a.drivers.d1.resources.load")

        await driver.pull()
        await until(lambda: (state := registry.state("default", "d1")) and state.pulling)
        await bus.tickets.publish("default", "d1", "load", "t", b'{"run_id":"r","payload":"{}"}')
        await until(lambda: (state := registry.state("default", "d1")) and state.delivered == 1)

        known = len(changes)
        await other.call("CONSUMER.DELETE.messages.d1")
        await until(lambda: registry.state("default", "d1") is None)
        assert len(changes) > known
        assert set(changes) == {("default", "d1")}


async def test_a_consumer_that_was_created_anew_is_another_one(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        driver = OlderDriver(other.session, "d1")
        await driver.create()
        bus.consumers.interest("default", "d1")
        await until(lambda: bus.consumers.state("default", "d1"))
        before = bus.consumers.state("default", "d1")
        await other.call("CONSUMER.DELETE.messages.d1")
        await driver.create()
        await until(lambda: (now := bus.consumers.state("default", "d1")) and before and now.created != before.created)


async def test_creation_is_learnt_from_the_advisory_not_from_the_poll(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "POLL_S", 3600)
    async with started_bus(server) as bus, other_client(server) as other:
        bus.consumers.interest("default", "d1")
        bus.consumers.interest("default", "d2")
        assert await bus.consumers.refresh("default", "d1") is None
        driver = OlderDriver(other.session, "d1")
        await driver.create()
        await until(lambda: bus.consumers.state("default", "d1"))
        await other.call("CONSUMER.DELETE.messages.d1")
        await until(lambda: bus.consumers.state("default", "d1") is None)


async def test_what_is_heard_while_an_older_answer_is_on_its_way_counts(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "POLL_S", 3600)
    async with started_bus(server) as bus, other_client(server) as other:
        real, answered, held = bus.consumers.refresh, asyncio.Event(), asyncio.Event()

        async def late(namespace: str, driver: str) -> object:
            state = await real(namespace, driver)
            answered.set()
            await held.wait()
            return state

        monkeypatch.setattr(bus.consumers, "refresh", late)
        bus.consumers.interest("default", "d1")
        await answered.wait()
        await OlderDriver(other.session, "d1").create()
        await other.session.request("$JS.API.CONSUMER.INFO.messages.d1", b"")
        bus.consumers.heard("d1")
        held.set()
        await until(lambda: bus.consumers.state("default", "d1"))


async def test_only_drivers_somebody_waits_for_are_asked_about(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        asked: Counter[str] = Counter()

        async def hear(message: object) -> None:
            asked[message.subject] += 1  # type: ignore[attr-defined]

        await other.session.subscribe("$JS.API.CONSUMER.>", hear)
        for name in ("d1", "d2", "d3"):
            await OlderDriver(other.session, name).create()
        bus.consumers.interest("default", "d1")
        bus.consumers.interest("default", "d1")
        info = "$JS.API.CONSUMER.INFO.messages."
        await until(lambda: asked[info + "d1"] >= 3)
        assert asked[info + "d2"] == asked[info + "d3"] == 0

        bus.consumers.forget("default", "d1")
        assert bus.consumers.state("default", "d1")
        bus.consumers.forget("default", "d1")
        assert bus.consumers.state("default", "d1") is None
        bus.consumers.interest("default", "d2")
        await until(lambda: asked[info + "d2"] >= 1)
        known = asked[info + "d1"]
        await until(lambda: asked[info + "d2"] >= 3)
        assert asked[info + "d1"] == known


async def test_many_consumers_are_listed_together(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        names = [f"d{n}" for n in range(300)]
        await asyncio.gather(*(OlderDriver(other.session, name).create() for name in names))
        asked: Counter[str] = Counter()

        async def hear(message: object) -> None:
            asked[message.subject.split(".")[3]] += 1  # type: ignore[attr-defined]

        for name in [*names, "nobody"]:
            bus.consumers.interest("default", name)
        await until(lambda: all(bus.consumers.state("default", name) for name in names))
        await other.session.subscribe("$JS.API.CONSUMER.>", hear)
        await until(lambda: asked["LIST"] >= 4)
        assert asked["INFO"] == 0
        await other.call("CONSUMER.DELETE.messages.d7")
        await until(lambda: bus.consumers.state("default", "d7") is None)
        assert len(await bus.consumers.list_consumers()) == 299


async def test_the_list_has_drivers_of_all_namespaces_and_nobody_else(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        for name in ("d1", "team-a_d1", "Somebody_Else"):
            await OlderDriver(other.session, name).create()
        listed = await bus.consumers.list_consumers()
        assert {(state.namespace, state.driver) for state in listed} == {("default", "d1"), ("team-a", "d1")}


async def test_the_engine_never_touches_a_drivers_consumer(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        driver = OlderDriver(other.session, "d1")
        await driver.create()
        touched: list[str] = []

        async def hear(message: object) -> None:
            touched.append(message.subject)  # type: ignore[attr-defined]

        for verb in ("CREATE", "DURABLE.CREATE", "DELETE", "UPDATE", "PAUSE"):
            await other.session.subscribe(f"$JS.API.CONSUMER.{verb}.messages.>", hear)
        bus.consumers.interest("default", "d1")
        receipt = await bus.tickets.publish("default", "d1", "load", "t", b"{}")
        await bus.tickets.withdraw("default", "d1", receipt)
        await bus.consumers.list_consumers()
        await until(lambda: bus.consumers.state("default", "d1"))
        assert not touched


async def test_states_are_fresh_again_after_a_restart(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        driver = OlderDriver(other.session, "d1")
        await driver.create()
        bus.consumers.interest("default", "d1")
        await until(lambda: bus.consumers.state("default", "d1"))
        await asyncio.to_thread(server.kill)
        await until(lambda: not bus.available)
        assert bus.consumers.state("default", "d1") is None
        await asyncio.to_thread(server.start)
        await until(lambda: bus.consumers.state("default", "d1"))

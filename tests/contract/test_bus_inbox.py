"""Events reach the engine at least once, whatever happens to broker, stream, consumer or handler."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from conveyor.bus import inbox
from conveyor.bus.errors import Retry
from conveyor.bus.events import InboxEvent, ResultArrived, RunCreated
from conveyor.bus.jetstream import JetStream
from conveyor.bus.nats import Bus
from conveyor.bus.session import Session
from tests.support.bus import other_client, started_bus, until, until_async
from tests.support.nats import NatsServer
from tests.support.vectors import vectors

RESULT = "pipelines.driver.result"
CREATED = "pipelines.run.created"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    running = NatsServer(tmp_path / "nats").start()
    yield running
    running.kill()


class Engine:
    """Stands for the engine: remembers what it was given, and fails as it is told."""

    def __init__(self) -> None:
        self.events: list[InboxEvent] = []
        self.quarantined: list[tuple[str, bytes, str]] = []
        self.failures: dict[str, list[Exception]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.started: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.beside: set[str] = set()
        """Runs whose event was handled twice at the same time."""
        self.quarantine_fails = 0

    @property
    def runs(self) -> Counter[str]:
        return Counter(event.run for event in self.events)

    async def handle(self, event: InboxEvent) -> None:
        self.started[event.run] += 1
        self.running[event.run] += 1
        if self.running[event.run] > 1:
            self.beside.add(event.run)
        try:
            if event.run in self.gates:
                await self.gates[event.run].wait()
            if self.failures.get(event.run):
                raise self.failures[event.run].pop(0)
        finally:
            self.running[event.run] -= 1
        self.events.append(event)

    async def quarantine(self, source: str, body: bytes, error: str) -> None:
        if self.quarantine_fails:
            self.quarantine_fails -= 1
            raise RuntimeError("the store is away")
        self.quarantined.append((source, body, error))


@contextlib.asynccontextmanager
async def running(server: NatsServer) -> AsyncGenerator[tuple[Bus, Engine, JetStream], None]:
    engine = Engine()
    async with started_bus(server) as bus, other_client(server) as other:
        bus.run_inbox(engine.handle, engine.quarantine)
        yield bus, engine, other
        for gate in engine.gates.values():
            gate.set()


def created(run: str) -> bytes:
    return json.dumps({"run_id": run}).encode()


async def emptied(server: NatsServer) -> None:
    """Waits until the broker has all acks."""
    async with other_client(server) as other:

        async def empty() -> bool:
            info = await other.stream("pipeline")
            return info is not None and info["state"]["messages"] == 0

        await until_async(empty)


async def test_each_event_is_handled_and_acknowledged(server: NatsServer) -> None:
    async with running(server) as (_, engine, other):
        await other.publish(CREATED, created("r1"))
        await other.publish("ns.team-a." + CREATED, created("r2"))
        for vector in vectors("js-publish", RESULT):
            await other.publish(RESULT, json.dumps(vector["body"]).encode())
        await emptied(server)
    assert RunCreated("default", "r1") in engine.events
    assert RunCreated("team-a", "r2") in engine.events
    results = [event for event in engine.events if isinstance(event, ResultArrived)]
    assert sorted(event.run for event in results) == sorted(v["body"]["run_id"] for v in vectors("js-publish", RESULT))
    assert not engine.quarantined


async def test_what_was_published_before_the_start_is_handled(server: NatsServer) -> None:
    async with started_bus(server), other_client(server) as other:
        for n in range(300):
            await other.publish(CREATED, created(f"r{n}"))
    async with running(server) as (_, engine, _):
        await emptied(server)
    assert engine.runs == Counter(f"r{n}" for n in range(300))


async def test_older_servers_events_and_undecodable_ones_do_not_stop_the_rest(server: NatsServer) -> None:
    bodies = [b"", b"\xff\x00", b"{}", b"[" * 100_000, b'{"run_id": 1}']
    async with running(server) as (_, engine, other):
        engine.quarantine_fails = 1
        await other.publish("pipelines.pipeline.init", json.dumps({"event": "create"}).encode())
        for n, body in enumerate(bodies):
            await other.publish(RESULT, body)
            await other.publish(CREATED, created(f"r{n}"))
        await other.publish("pipelines.something.else", b"{}")
        await until(lambda: len(engine.runs) == len(bodies))
        await emptied(server)
    assert sorted(body for _, body, _ in engine.quarantined) == sorted([*bodies, b"{}"])
    assert all(source.startswith("pipeline/") and error for source, _, error in engine.quarantined)


async def test_a_handler_that_fails_gets_the_event_again(server: NatsServer) -> None:
    async with running(server) as (_, engine, other):
        engine.failures = {"r1": [RuntimeError("once")], "r2": [Retry("not yet"), Retry("not yet")]}
        for run in ("r1", "r2", "r3"):
            await other.publish(CREATED, created(run))
        await emptied(server)
    assert engine.runs == Counter(["r1", "r2", "r3"])
    assert engine.started == Counter({"r1": 2, "r2": 3, "r3": 1})


async def test_an_event_that_always_fails_is_quarantined_and_retry_never_is(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_RETRY_S", 0.01)
    monkeypatch.setattr(inbox, "MAX_FAILURES", 2)
    async with running(server) as (_, engine, other):
        engine.failures = {
            "bad": [ValueError(f"failure {n}") for n in range(100)],
            "late": [Retry("not yet") for _ in range(10)],
        }
        for run in ("bad", "late", "good"):
            await other.publish(CREATED, created(run))
        await emptied(server)
    assert engine.runs == Counter(["late", "good"])
    ((source, body, error),) = engine.quarantined
    assert source.endswith(CREATED)
    assert (body, error) == (created("bad"), "ValueError: failure 1")


async def test_slow_handlers_keep_their_messages_and_do_not_hold_up_others(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "ACK_WAIT_S", 1.5)
    monkeypatch.setattr(inbox, "_SIGN_S", 0.1)
    async with running(server) as (_, engine, other):
        engine.gates["slow"] = asyncio.Event()
        await other.publish(CREATED, created("slow"))
        for n in range(200):
            await other.publish(CREATED, created(f"r{n}"))
        await until(lambda: len(engine.events) == 200)

        # A message published after an ack wait shows that it has passed.
        await asyncio.sleep(2)
        await other.publish(CREATED, created("later"))
        await until(lambda: engine.runs["later"])
        consumer = await other.consumer("pipeline", "pipeline-engine")
        assert consumer
        assert consumer["num_redelivered"] == 0
        engine.gates["slow"].set()
        await emptied(server)
    assert engine.started["slow"] == 1


async def test_a_message_that_comes_again_while_its_handler_runs_is_not_handled_twice(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "ACK_WAIT_S", 0.2)
    monkeypatch.setattr(inbox, "_SIGN_S", 3600)
    async with running(server) as (_, engine, other):
        engine.gates["slow"] = asyncio.Event()
        await other.publish(CREATED, created("slow"))

        async def came_again() -> bool:
            consumer = await other.consumer("pipeline", "pipeline-engine")
            return consumer is not None and consumer["num_redelivered"] > 0

        await until_async(came_again)
        await other.publish(CREATED, created("later"))
        await until(lambda: engine.runs["later"])
        engine.gates["slow"].set()
        await emptied(server)
    assert not engine.beside


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_restart_while_idle_leaves_no_silence(server: NatsServer, how: str) -> None:
    async with running(server) as (bus, engine, other):
        await other.publish(CREATED, created("before"))
        await until(lambda: engine.runs["before"])
        await asyncio.to_thread(getattr(server, how))
        await until(lambda: not bus.available)
        await asyncio.to_thread(server.start)
        async with other_client(server) as again:
            await again.publish(CREATED, created("after"))
        await until(lambda: engine.runs["after"])


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_restart_with_work_in_flight_loses_nothing(server: NatsServer, how: str) -> None:
    async with running(server) as (bus, engine, other):
        engine.gates = {f"r{n}": asyncio.Event() for n in range(20)}
        for n in range(300):
            await other.publish(CREATED, created(f"r{n}"))
        await until(lambda: all(engine.started[f"r{n}"] for n in range(20)))
        await asyncio.to_thread(getattr(server, how))
        await until(lambda: not bus.available)
        for n in range(10):
            engine.gates[f"r{n}"].set()
        await asyncio.to_thread(server.start)
        await bus.ready(20)
        # A broker that was killed may have forgotten what it had delivered, and delivers it again before all the rest,
        # so while these handlers still run.
        others = {f"r{n}" for n in (*range(10), *range(20, 300))}
        await until(lambda: others <= set(engine.runs))
        for n in range(10, 20):
            engine.gates[f"r{n}"].set()
        await emptied(server)
    assert set(engine.runs) == {f"r{n}" for n in range(300)}
    # One that crosses with the last ack may be handled once more afterwards, but never beside a handler that runs.
    assert not engine.beside


async def test_a_frozen_broker_is_survived(server: NatsServer) -> None:
    async with running(server) as (bus, engine, _):
        server.freeze()
        await until(lambda: not bus.available)
        server.thaw()
        await bus.ready(20)
        async with other_client(server) as again:
            await again.publish(CREATED, created("after"))
        await until(lambda: engine.runs["after"])


async def test_a_deleted_consumer_is_made_again(server: NatsServer) -> None:
    async with running(server) as (_, engine, other):
        await other.publish(CREATED, created("before"))
        await until(lambda: engine.runs["before"])
        await other.call("CONSUMER.DELETE.pipeline.pipeline-engine")
        await other.publish(CREATED, created("after"))
        await until(lambda: engine.runs["after"])


async def test_a_deleted_stream_is_made_again(server: NatsServer) -> None:
    async with running(server) as (_, engine, other):
        await other.publish(CREATED, created("before"))
        await until(lambda: engine.runs["before"])
        await other.call("STREAM.DELETE.pipeline")
        await until_async(lambda: other.stream("pipeline"))
        await other.publish(CREATED, created("after"))
        await until(lambda: engine.runs["after"])


async def test_replicas_share_the_work_and_take_over_from_a_dead_one(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "ACK_WAIT_S", 0.5)
    async with running(server) as (_, first, other), running(server) as (second_bus, second, _):
        second.gates = {f"r{n}": asyncio.Event() for n in range(400)}
        for n in range(400):
            await other.publish(CREATED, created(f"r{n}"))
        await until(lambda: len(first.events) + len(second.started) >= 400)
        assert first.events
        assert second.started
        # As if it had been killed: its connection is gone and no sign of life comes.
        session: Session = second_bus.current().session
        await session.close()
        monkeypatch.setattr(Session, "connect", None)
        await until(lambda: len(first.runs) == 400)


async def test_close_does_not_wait_for_ever(server: NatsServer) -> None:
    engine = Engine()
    engine.gates["r"] = asyncio.Event()
    tasks = asyncio.all_tasks()
    async with started_bus(server) as bus, other_client(server) as other:
        bus.run_inbox(engine.handle, engine.quarantine)
        await other.publish(CREATED, created("r"))
        await until(lambda: engine.started["r"])
        await bus.close()
    await until(lambda: asyncio.all_tasks() == tasks)
    # What was not handled is still there for the next one.
    async with running(server) as (_, again, _):
        await until(lambda: again.runs["r"])


async def test_close_waits_for_handlers_that_come_to_an_end(server: NatsServer) -> None:
    engine = Engine()
    engine.gates["r"] = asyncio.Event()
    async with started_bus(server) as bus, other_client(server) as other:
        bus.run_inbox(engine.handle, engine.quarantine)
        await other.publish(CREATED, created("r"))
        await until(lambda: engine.started["r"])
        closing = asyncio.create_task(bus.close())
        engine.gates["r"].set()
        await closing
    assert engine.runs["r"] == 1

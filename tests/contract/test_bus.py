"""The connection to a real broker and the streams on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from conveyor.bus import streams
from conveyor.bus.errors import ApiError, BusConflict, BusError, BusUnavailable
from conveyor.bus.jetstream import JetStream, JsonObject
from conveyor.bus.nats import Bus
from conveyor.bus.options import BusOptions, StreamSettings
from conveyor.bus.session import Session
from tests.support.bus import other_client, started_bus, until, until_async
from tests.support.nats import NatsServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.vectors import vectors

OLDER = {vector["body"]["name"]: vector["body"] for vector in vectors("stream-info")}
DAY_NS = 86_400 * 10**9


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    running = NatsServer(tmp_path / "nats").start()
    yield running
    running.kill()


async def make_older(jetstream: JetStream, name: str, **changes: Any) -> None:
    """Creates a stream exactly as an older server's was."""
    config = {key: value for key, value in OLDER[name].items() if key != "metadata"} | changes
    await jetstream.call(f"STREAM.CREATE.{config['name']}", config)


async def config_of(jetstream: JetStream, name: str) -> Any:
    info = await jetstream.stream(name)
    assert info
    return info["config"]


async def test_streams_are_what_they_should_be(server: NatsServer) -> None:
    async with started_bus(server), other_client(server) as other:
        infos = {name: await other.stream(name) for name in streams.NAMES}
        configs = {name: info["config"] for name, info in infos.items() if info}
        assert {name: config["retention"] for name, config in configs.items()} == {
            "pipeline": "workqueue",
            "messages": "interest",
            "logs": "limits",
        }
        assert {config["discard"] for config in configs.values()} == {"old"}
        assert {config["storage"] for config in configs.values()} == {"file"}
        assert configs["messages"]["consumer_limits"] == {"inactive_threshold": DAY_NS}
        assert all(config["max_age"] > 0 and config["max_bytes"] > 0 for config in configs.values())
        assert all("ns.*." in " ".join(config["subjects"]) for config in configs.values())


async def test_settings_that_change_are_taken_over_and_the_stream_stays(server: NatsServer) -> None:
    async with started_bus(server), other_client(server) as other:
        before = await other.stream("messages")
    settings = replace(StreamSettings(), messages_max_age=timedelta(hours=1), messages_max_bytes=10_000_000)
    async with started_bus(server, settings), other_client(server) as other:
        after = await other.stream("messages")
    assert before
    assert after
    assert before["created"] == after["created"]
    assert (after["config"]["max_age"], after["config"]["max_bytes"]) == (3600 * 10**9, 10_000_000)


async def test_an_older_stream_of_messages_is_taken_over_with_what_is_in_it(server: NatsServer) -> None:
    async with other_client(server) as other:
        await make_older(other, "messages")
        request = vectors("js-api-request")[0]
        await other.session.request(request["subject"], json.dumps(request["body"]).encode())
        await other.publish("drivers.d1.resources.load", b"waits")
        before = await other.stream("messages")
        async with started_bus(server):
            after = await other.stream("messages")
    assert before
    assert after
    assert before["created"] == after["created"]
    assert after["state"]["messages"] == 1
    assert "ns.*.drivers.>" in after["config"]["subjects"]
    assert after["config"]["consumer_limits"] == {"inactive_threshold": DAY_NS}


@pytest.mark.parametrize("name", ["pipeline-engine", "logs-engine"])
async def test_an_older_servers_stream_is_named_with_what_to_do_and_nothing_is_touched(
    server: NatsServer, name: str
) -> None:
    async with other_client(server) as other:
        await make_older(other, "messages")
        await make_older(other, name)
        before = await config_of(other, "messages")
        bus = await Bus.start(BusOptions([server.url]))
        try:
            await until(lambda: isinstance(bus.problem, BusConflict))
            with pytest.raises(BusConflict, match=f"`{name}`.*nats stream rm {name}"):
                await bus.ready(0)
            with pytest.raises(BusConflict):
                bus.current()
            assert await config_of(other, "messages") == before
            # Done as told, it goes on by itself.
            await other.call(f"STREAM.DELETE.{name}")
            await bus.ready(20)
        finally:
            await bus.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"retention": "limits"},
        {"storage": "memory"},
        {"subjects": ["resources.>", "orders.>"]},
    ],
)
async def test_a_stream_of_our_name_that_is_not_ours_is_refused(server: NatsServer, changes: dict[str, Any]) -> None:
    async with other_client(server) as other:
        await make_older(other, "messages", **changes)
        before = await config_of(other, "messages")
        with pytest.raises(BusConflict, match="`messages` is not Conveyor's"):
            await streams.ensure(other, StreamSettings())
        assert await config_of(other, "messages") == before


async def test_what_the_broker_refuses_is_said_and_tried_again(server: NatsServer) -> None:
    bus = await Bus.start(BusOptions([server.url]), StreamSettings(replicas=3))
    try:
        await until(lambda: isinstance(bus.problem, ApiError))
        assert "replicas" in str(bus.problem)
        with pytest.raises(BusUnavailable, match="replicas"):
            bus.current()
    finally:
        await bus.close()


@pytest.mark.parametrize("name", streams.NAMES)
async def test_a_deleted_stream_is_made_again_at_once(
    server: NatsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor.bus.nats._CHECK_S", 3600)
    async with started_bus(server), other_client(server) as other:
        before = await other.stream(name)
        await other.call(f"STREAM.DELETE.{name}")
        await until_async(lambda: other.stream(name))
        after = await other.stream(name)
        assert before
        assert after
        assert before["created"] != after["created"]


class Deleting(JetStream):
    """Deletes a stream as soon as it was seen for so many times."""

    def __init__(self, other: JetStream, name: str, sights: int) -> None:
        super().__init__(other.session)
        self._name = name
        self._sights = sights

    async def stream(self, name: str) -> JsonObject | None:
        seen = await super().stream(name)
        if name == self._name and seen is not None:
            self._sights -= 1
            if not self._sights:
                await self.call(f"STREAM.DELETE.{name}")
        return seen


@pytest.mark.parametrize("sights", [0, 1])
async def test_a_stream_is_not_made_again_while_the_broker_may_still_delete_it(
    server: NatsServer, sights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[JsonObject | None] = []

    async def wait() -> None:
        waited.append(await other.stream("logs"))

    monkeypatch.setattr("conveyor.bus.streams._deletion_ended", wait)
    async with other_client(server) as other:
        made = await streams.ensure(other, StreamSettings())
        assert waited == []
        # It is missed by whoever looks for it, or goes between the look and what follows.
        if not sights:
            await other.call("STREAM.DELETE.logs")
        again = await streams.ensure(Deleting(other, "logs", sights), StreamSettings(), made.keys())
        assert waited == [None]
        assert again["logs"] != made["logs"]
        assert again["messages"] == made["messages"]


async def test_a_wiped_store_is_filled_again(server: NatsServer) -> None:
    async with started_bus(server) as bus:
        await asyncio.to_thread(server.kill)
        await until(lambda: not bus.available)
        await asyncio.to_thread(server.wipe)
        await asyncio.to_thread(server.start)
        await bus.ready(20)
        async with other_client(server) as other:
            assert all([await other.stream(name) for name in streams.NAMES])


async def test_it_starts_at_once_when_the_broker_is_away_and_goes_on_when_it_comes(server: NatsServer) -> None:
    await asyncio.to_thread(server.stop)
    seen: list[bool] = []
    bus = await Bus.start(BusOptions([server.url]))
    try:
        bus.on_available(seen.append)
        assert not bus.available
        with pytest.raises(BusUnavailable):
            bus.current()
        with pytest.raises(BusUnavailable):
            await bus.ready(0)
        bus.publish_run_created("default", "r")
        await asyncio.to_thread(server.start)
        await bus.ready(20)
        assert seen == [True]
        assert bus.problem is None
    finally:
        await bus.close()
    assert seen == [True, False]


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_it_comes_back_after_a_restart(server: NatsServer, how: str) -> None:
    seen: list[bool] = []
    async with started_bus(server) as bus:
        bus.on_available(seen.append)
        for _ in range(3):
            await asyncio.to_thread(getattr(server, how))
            await until(lambda: not bus.available)
            await asyncio.to_thread(server.start)
            await bus.ready(20)
        assert seen == [False, True] * 3


async def test_a_broker_that_stands_still_is_noticed(server: NatsServer) -> None:
    async with started_bus(server) as bus:
        server.freeze()
        try:
            with pytest.raises(BusUnavailable):
                await bus.current().call("STREAM.INFO.messages", timeout=0.2)
            await until(lambda: not bus.available)
        finally:
            server.thaw()
        await bus.ready(20)


async def test_a_connection_of_which_one_half_is_gone_is_noticed(server: NatsServer) -> None:
    async with TcpProxy(f"127.0.0.1:{server.port}") as proxy:
        bus = await Bus.start(BusOptions([f"nats://{proxy.address}"]))
        try:
            await bus.ready(20)
            seen: list[bool] = []
            bus.on_available(seen.append)
            proxy.freeze()
            await until(lambda: seen == [False, True])
        finally:
            await bus.close()


async def test_a_connection_that_takes_no_bytes_is_let_go(server: NatsServer) -> None:
    async with TcpProxy(f"127.0.0.1:{server.port}") as proxy:
        session = await Session.connect(BusOptions([f"nats://{proxy.address}"]))
        transport = session._client._transport._io_writer.transport  # type: ignore[union-attr]
        proxy.freeze()
        for _ in range(4):
            with contextlib.suppress(BusUnavailable):
                await session.publish("anything", bytes(8 << 20))
        assert transport.get_write_buffer_size() > 0
        await session.close()
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0


async def test_a_request_ends_with_its_connection(server: NatsServer) -> None:
    session = await Session.connect(BusOptions([server.url]))
    try:

        async def hear(message: Msg) -> None:
            """Never answers."""

        await session.subscribe("deaf", hear)
        waiting = asyncio.create_task(session.request("deaf", timeout=3600))
        await session.request("$JS.API.INFO")
        await asyncio.to_thread(server.kill)
        with pytest.raises(BusUnavailable, match="lost"):
            await waiting
        with pytest.raises(BusUnavailable):
            await session.publish("anything", b"")
    finally:
        await session.close()


async def test_close_is_quick_in_any_state_and_leaves_no_task(server: NatsServer) -> None:
    tasks = asyncio.all_tasks()
    away = await Bus.start(BusOptions(["nats://127.0.0.1:1"]))
    await away.close()
    async with started_bus(server) as bus:
        server.freeze()
        async with asyncio.timeout(30):
            await bus.close()
    server.thaw()
    await until(lambda: asyncio.all_tasks() == tasks)


async def test_a_wrong_password_is_told_and_tried_again(tmp_path: Path) -> None:
    guarded = NatsServer(tmp_path / "guarded", config='authorization { user: "u", password: "right" }')
    await asyncio.to_thread(guarded.start)
    try:
        bus = await Bus.start(BusOptions([guarded.url], user="u", password="wrong"))
        try:
            await until(lambda: "uthoriz" in str(bus.problem))
        finally:
            await bus.close()
        right = await Bus.start(BusOptions([guarded.url], user="u", password="right"))
        try:
            await right.ready(20)
        finally:
            await right.close()
    finally:
        await asyncio.to_thread(guarded.kill)


async def test_a_broker_without_jetstream_is_told(tmp_path: Path) -> None:
    bare = NatsServer(tmp_path / "bare", jetstream=False)
    await asyncio.to_thread(bare.start)
    bus = await Bus.start(BusOptions([bare.url]))
    try:
        await until(lambda: "is it switched on" in str(bus.problem))
    finally:
        await bus.close()
        await asyncio.to_thread(bare.kill)


async def test_a_port_where_nobody_listens_is_named() -> None:
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1"):
        await Session.connect(BusOptions(["nats://127.0.0.1:1"]))


async def test_options_that_can_never_work_are_refused_at_once() -> None:
    with pytest.raises(BusError, match="no address"):
        await Bus.start(BusOptions([]))


async def test_events_are_sent_while_the_broker_is_there_and_dropped_else(server: NatsServer) -> None:
    async with started_bus(server) as bus, other_client(server) as other:
        bus.publish_run_created("team-a", "r1")

        async def stored() -> Any:
            return await other.message("pipeline", {"last_by_subj": "ns.team-a.pipelines.run.created"})

        await until_async(stored)
        await asyncio.to_thread(server.stop)
        await until(lambda: not bus.available)
        for n in range(100_000):
            bus.publish_run_created("default", f"r{n}")

"""Drivers and clients in Go while the server or the broker is killed and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.belt import Belt, Site, state, states, step
from tests.support.golang import Go, Held
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until

# The first build on a machine takes a minute.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server and a broker of this module's own, to be killed."""
    directory = tmp_path_factory.mktemp("go-outages")
    nats = NatsServer(directory / "nats").start()
    server = ConveyorServer(directory / "server", ["--nats", nats.url]).start()
    yield Site(server, nats)
    server.kill()
    nats.stop()


@pytest.fixture
async def belt(own_site: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(own_site, tmp_path) as belt:
        yield belt


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
@pytest.mark.parametrize("released", ["as the server dies", "while it is away", "when it is back"])
async def test_a_worker_keeps_what_it_holds_when_the_server_is_killed(
    belt: Belt, go: Go, held: Held, transport: str, released: str
) -> None:
    go.driver(belt, "work", *held.behaviour, transport=transport)
    go.driver(belt, "after", "echo", transport=transport)
    await belt.pipeline(step("a", "work"), step("b", "after"))
    run = await belt.start()
    await held.started()
    await belt.until_step(run, "a", "RUNNING")
    server = belt.site.server
    if released == "as the server dies":
        # What is sent to it now is lost.
        server.freeze()
        await held.release()
    await asyncio.to_thread(server.kill)
    if released == "while it is away":
        await held.release()
    await asyncio.to_thread(server.start)
    await held.release()
    ended = await belt.ended(run)
    assert states(ended) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    assert [each.attempt for each in ended.steps] == [1, 1]
    assert held.lines() == ["started 1", "released"]
    assert await belt.lines(run, step="a") == ["holding", "released"]


async def test_a_worker_that_was_away_too_long_lets_go(go: Go, held: Held, tmp_path: Path) -> None:
    server = ConveyorServer(tmp_path / "server", ["--session-ttl", "3s"])
    await asyncio.to_thread(server.start)
    site = Site(server, NatsServer(tmp_path / "unused"))
    try:
        async with TcpProxy(server.address) as proxy, Belt(site, tmp_path) as belt:
            go.driver(belt, "work", *held.behaviour, CONVEYOR_ADDRESS=proxy.address)
            await belt.pipeline(step("a", "work"))
            run = await belt.start()
            await held.started()
            proxy.refuse()
            proxy.cut()
            await belt.until_step(run, "a", "QUEUED", "RETRYING")
            proxy.refuse(False)
            await until(lambda: "started 2" in held.lines(), "the second attempt")
            await held.release()
            ended = await belt.ended(run)
            assert (state(ended), ended.steps[0].attempt) == ("SUCCEEDED", 2)
            lines = await belt.lines(run, step="a", attempt=2)
    finally:
        await asyncio.to_thread(server.kill)
    assert sorted(held.lines()) == ["cancelled: the server gave the attempt up", "released", "started 1", "started 2"]
    assert lines == ["holding", "released"]


async def test_a_worker_keeps_what_it_holds_when_the_broker_is_killed(belt: Belt, go: Go, held: Held) -> None:
    go.driver(belt, "work", *held.behaviour, transport="jetstream")
    await belt.pipeline(step("a", "work"))
    run = await belt.start()
    await held.started()
    await belt.until_step(run, "a", "RUNNING")
    nats = belt.site.nats
    await asyncio.to_thread(nats.kill)
    await held.release()
    await asyncio.to_thread(nats.start)
    ended = await belt.ended(run)
    assert (state(ended), ended.steps[0].attempt) == ("SUCCEEDED", 1)
    assert held.lines() == ["started 1", "released"]
    assert await belt.lines(run) == ["holding", "released"]
    # It still takes work.
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"


async def test_a_watch_goes_on_after_the_server_was_killed(belt: Belt, go: Go, held: Held) -> None:
    go.driver(belt, "work", *held.behaviour)
    go.driver(belt, "after")
    await belt.pipeline(step("a", "work"), step("b", "after"))
    run = await belt.start()
    await held.started()
    watch = go.client(belt, "watch", run.id)
    watch_all = go.client(belt, "watch-all")
    wait = go.client(belt, "wait", run.id)
    logs = go.client(belt, "logs", run.id, "follow")
    await until(lambda: watch.output and watch_all.output, "the watches to begin")
    server = belt.site.server
    for _ in range(2):
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    await held.release()
    for process in (watch, wait, logs):
        assert await asyncio.to_thread(process.wait) == 0, process.log
    assert watch.output[-1].startswith(f"{run.id} SUCCEEDED")
    seen = [change for line in watch.output for change in line.split()[2:]]
    wanted = ["a=RUNNING", "a=SUCCEEDED", "b=SUCCEEDED"]
    assert [change for change in seen if change in wanted] == wanted
    assert logs.output == ["holding", "released"]
    await until(lambda: any(line.startswith(f"{run.id} SUCCEEDED") for line in watch_all.output))
    watch_all.terminate()
    assert await asyncio.to_thread(watch_all.wait) == 1
    assert "is: Canceled" in watch_all.output


async def test_a_call_whose_answer_is_lost_starts_one_run(belt: Belt, go: Go, tmp_path: Path) -> None:
    """It is made again with the request id that the client gave it."""
    go.driver(belt, "work")
    await belt.pipeline(step("a", "work"))
    await belt.ended(await belt.start(resource="web"))

    async def runs() -> list[str]:
        return [run.id async for run in belt.client.runs.list()]

    async with TcpProxy(belt.address) as proxy:
        signal = tmp_path / "now"
        call = go.client(belt, "start", "app", "web", "release", signal, CONVEYOR_ADDRESS=proxy.address)
        await until(lambda: call.output == ["connected"])
        proxy.hold_answers()
        signal.touch()

        async def two() -> bool:
            return len(await runs()) == 2

        await until(two, "the run to be there")
        proxy.cut()
        assert await asyncio.to_thread(call.wait) == 0, call.output
    newest, _ = await runs()
    assert call.output[1].split()[0] == newest

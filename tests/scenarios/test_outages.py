"""Broker and store go away and come back; nothing is restarted by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conveyor.sdk import DeadlineExceeded, Unavailable
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import StepRun
from conveyor.v1.run_service_pb2 import StartRunRequest
from conveyor.v1.run_service_pb2_grpc import RunServiceStub
from tests.support.behaviour import Counted, Hold, ok
from tests.support.belt import Belt, Site, one, state, step
from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.gates import gate, opened
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until


@pytest.fixture(scope="module")
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose etcd and broker this module stops and starts."""
    directory = tmp_path_factory.mktemp("outages")
    etcd = Etcd(binary(VERSIONS[-1]), directory / "etcd")
    etcd.start()
    nats = NatsServer(directory / "nats").start()
    server = ConveyorServer(directory / "server", ["--etcd", etcd.url, "--nats", nats.url], mode="start").start()
    yield Site(server, nats, etcd)
    server.kill()
    nats.stop()
    etcd.stop()


@pytest.fixture
async def belt(own_site: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(own_site, tmp_path) as belt:
        yield belt


async def health(address: str, service: str = "") -> str:
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


LOGS = "conveyor.v1.LogService"


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_f48_jetstream_drivers_go_on_after_a_restart_of_the_broker(belt: Belt, how: str) -> None:
    nats, hold = belt.site.nats, Hold()
    belt.drive("hold", hold, transport="jetstream")
    await belt.pipeline(step("a", "hold"))
    run = await belt.start()
    await hold.started.wait()

    async def degraded() -> bool:
        return await health(belt.address, LOGS) == "NOT_SERVING"

    await asyncio.to_thread(getattr(nats, how))
    try:
        await until(degraded, "the health to tell of it")
        assert await health(belt.address) == "SERVING"
        # The result is due while the broker is away.
        hold.released.set()
    finally:
        await asyncio.to_thread(nats.start)
    assert state(await belt.ended(run)) == "SUCCEEDED"
    assert hold.count == 1
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"
    await until(lambda: _serving(belt), "the health to tell that it is back")


async def _serving(belt: Belt) -> bool:
    return await health(belt.address, LOGS) == "SERVING"


async def test_f62_a_run_that_starts_without_the_broker(belt: Belt) -> None:
    """Steps of gRPC drivers go on, those of JetStream drivers wait and say so."""
    remote = Counted()
    belt.drive("local", ok)
    belt.drive("remote", remote, transport="jetstream")
    await belt.pipeline(step("a", "local"), step("b", "remote"))
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"
    await asyncio.to_thread(belt.site.nats.stop)
    await belt.until_broker_is_missed()
    try:
        run = await belt.start()
        waiting = await belt.until_step(run, "b", "QUEUED", reason="BROKER_UNAVAILABLE")
        assert "broker" in waiting.message
        assert one((await belt.client.runs.get(run.id)).steps, "a").state == 5
    finally:
        await asyncio.to_thread(belt.site.nats.start)
    assert state(await belt.ended(run)) == "SUCCEEDED"
    assert remote.count == 2


@pytest.mark.parametrize("how", ["stop", "pause"])
async def test_f49_a_store_that_is_away_is_unavailable_and_back_by_itself(belt: Belt, how: str) -> None:
    etcd = belt.site.etcd
    assert etcd is not None
    hold = Hold()
    belt.drive("hold", hold)
    await belt.pipeline(step("a", "hold"))
    await belt.client.resources.create(Resource(name="shop", definition="app"))
    run = await belt.start()
    await hold.started.wait()
    watch = belt.client.runs.watch(run.id)
    assert state((await anext(watch)).run) == "RUNNING"
    await asyncio.to_thread(getattr(etcd, how))
    try:
        async with grpc.aio.insecure_channel(belt.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            request = StartRunRequest(namespace=belt.namespace, definition="app", resource="shop", pipeline="release")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await RunServiceStub(channel).StartRun(request, timeout=40)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "OUTCOME_UNKNOWN" in str(refused.value.trailing_metadata()) or "STORE" in str(
                refused.value.trailing_metadata()
            )
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await belt.client.runs.get(run.id)
        await until(lambda: _not_serving(belt), "the health to tell of it")
        # The result is due while the store is away.
        hold.released.set()
    finally:
        await asyncio.to_thread(etcd.resume if how == "pause" else etcd.start)
    assert state(await belt.ended(run)) == "SUCCEEDED"
    assert [state(update.run) async for update in watch][-1] == "SUCCEEDED"
    assert hold.count == 1 or how == "pause"
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"


async def _not_serving(belt: Belt) -> bool:
    return await health(belt.address) == "NOT_SERVING"


async def test_a_decision_while_the_store_is_away_is_unavailable_and_counts_once(belt: Belt) -> None:
    etcd = belt.site.etcd
    assert etcd is not None
    run = await opened(belt, gate("ask", approvals=2))
    await asyncio.to_thread(etcd.stop)
    try:
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await belt.client.runs.approve(run.id, "ask", "ann", request_id="one")
    finally:
        await asyncio.to_thread(etcd.start)

    async def approved() -> StepRun | None:
        try:
            return await belt.client.runs.approve(run.id, "ask", "ann", request_id="one")
        except (Unavailable, DeadlineExceeded):
            return None

    said = await until(approved, "the store to be back")
    assert said is not None
    assert [made.by for made in said.decisions] == ["ann"]
    await belt.client.runs.approve(run.id, "ask", "bob")
    assert state(await belt.ended(run)) == "SUCCEEDED"

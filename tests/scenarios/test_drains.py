"""Workers and servers that end in order, together, or again and again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from conveyor.v1.result_pb2 import ResultReport
from conveyor.v1.run_service_pb2 import WatchRunRequest, WatchRunsRequest
from conveyor.v1.run_service_pb2_grpc import RunServiceStub
from conveyor.v1.worker_service_pb2 import ReportResultsRequest
from conveyor.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.support.behaviour import Hold
from tests.support.belt import Belt, Site, state, states, step, step_reason
from tests.support.nats import NatsServer
from tests.support.raw_worker import RawWorker
from tests.support.server import ConveyorServer
from tests.support.wait import until

UNKNOWN = "01a00000-0000-7000-8000-000000000000"
NO_PROXY = [("grpc.enable_http_proxy", 0)]


@pytest.fixture(scope="module")
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of this module's own, to be stopped; workers are missed soon."""
    directory = tmp_path_factory.mktemp("drains")
    nats = NatsServer(directory / "nats").start()
    server = ConveyorServer(directory / "server", ["--nats", nats.url, "--session-ttl", "3s"]).start()
    yield Site(server, nats)
    server.kill()
    nats.stop()


@pytest.fixture
async def belt(own_site: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(own_site, tmp_path) as belt:
        yield belt


async def test_f63_a_worker_that_is_asked_to_end_drains(belt: Belt) -> None:
    worker = belt.spawn("work", "sleep", "4")
    await belt.pipeline(step("a", "work"))
    run = await belt.start()
    await belt.until_step(run, "a", "RUNNING")
    worker.terminate()
    ended = await belt.ended(run)
    assert (state(ended), len(ended.steps[0].attempts)) == ("SUCCEEDED", 1)
    assert await asyncio.to_thread(worker.wait) == 0


async def test_f63_a_worker_that_is_lost_again_and_again(belt: Belt) -> None:
    """Its budget is apart from that for failures: after the fourth the step is failed."""
    await belt.pipeline(step("a", "mute"))
    run = await belt.start()
    for _ in range(4):
        async with RawWorker(belt.address, belt.namespace, "mute") as mute:
            await mute.assignments.get()
    ended = await belt.ended(run)
    assert (state(ended), step_reason(ended.steps[0])) == ("FAILED", "WORKER_LOST")
    assert [step_reason(attempt) for attempt in ended.steps[0].attempts] == ["WORKER_LOST"] * 4


async def test_f64_a_drain_with_watches_and_busy_workers(belt: Belt) -> None:
    hold = Hold()
    belt.drive("hold", hold, slots=2)
    await belt.pipeline(step("a", "hold"), step("b", "hold"))
    runs = [await belt.start() for _ in range(2)]
    await until(lambda: hold.count == 2)
    watches = [asyncio.create_task(belt.client.runs.wait(runs[n % 2].id)) for n in range(10)]
    server = belt.site.server
    assert await asyncio.to_thread(server.stop) == 0
    hold.released.set()
    await asyncio.to_thread(server.start)
    for watch in watches:
        assert state(await watch) == "SUCCEEDED"
    assert hold.count == 4
    for run in runs:
        assert [len(each.attempts) for each in (await belt.client.runs.get(run.id)).steps] == [1, 1]


async def test_f64_server_and_workers_end_together(belt: Belt) -> None:
    workers = [belt.spawn(f"work{n}", "sleep", "4") for n in range(2)]
    await belt.pipeline(step("a", "work0"), step("b", "work1"), graph=True)
    await belt.connected("work0", "work1")
    run = await belt.start()
    for name in "ab":
        await belt.until_step(run, name, "RUNNING")
    for worker in workers:
        worker.terminate()
    assert await asyncio.to_thread(belt.site.server.stop) == 0
    await asyncio.to_thread(belt.site.server.start)
    # They end what they have, and wait for a server that takes it.
    for worker in workers:
        assert await asyncio.to_thread(worker.wait) == 0
    ended = await belt.ended(run)
    assert states(ended) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    assert [len(each.attempts) for each in ended.steps] == [1, 1]


async def ended_by_the_drain(stream: Any) -> None:
    code, metadata = None, ""
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        code, metadata = error.code(), str(error.trailing_metadata())
    assert code == grpc.StatusCode.UNAVAILABLE
    assert "SHUTTING_DOWN" in metadata


async def test_f64_a_stream_is_told_why_it_ends(belt: Belt) -> None:
    await belt.pipeline(step("a", "nobody"))
    run = await belt.start()
    async with grpc.aio.insecure_channel(belt.address, options=NO_PROXY) as channel:
        watch = RunServiceStub(channel).WatchRun(WatchRunRequest(namespace=belt.namespace, id=run.id))
        assert (await watch.read()).snapshot.runs[0].id == run.id
        assert await asyncio.to_thread(belt.site.server.stop) == 0
        await ended_by_the_drain(watch)
    await asyncio.to_thread(belt.site.server.start)


async def test_f64_a_second_signal_ends_a_drain_at_once(tmp_path: Path) -> None:
    server = ConveyorServer(tmp_path / "server", ["--drain-timeout", "10m"]).start()
    try:
        async with grpc.aio.insecure_channel(server.address, options=NO_PROXY) as channel:
            # A call that goes on as long as the client wants.
            reports = WorkerServiceStub(channel).ReportResults()
            await reports.write(ReportResultsRequest())
            await reports.read()
            watch = RunServiceStub(channel).WatchRuns(WatchRunsRequest())
            await watch.read()
            server.send(signal.SIGTERM)
            await ended_by_the_drain(watch)
            # Calls under way get their answers.
            await reports.write(ReportResultsRequest(results=[ResultReport(run=UNKNOWN)]))
            assert (await reports.read()).acks[0].run == UNKNOWN
            assert server.running
            server.send(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 1
    finally:
        server.kill()

"""How soon work goes on after the server was killed, and what 10,000 runs cost that wait."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import grpc

from bench import rig
from bench.report import Figure
from conveyor.v1 import pipeline_pb2, run_service_pb2, run_service_pb2_grpc
from tests.support.rig import Replica, Worker, mute
from tests.support.server import ConveyorServer

RUNS = 10_000
WORKERS = 4
DUE = 1000
"""Runs whose step ended while the server was away."""
_LONG_TTL = ["--session-ttl", "60s"]
"""Workers are not to be lost while others come back."""
_TWO_SWEEPS_S = 125.0


class _Address:
    """Where workers connect to."""

    def __init__(self, address: str) -> None:
        self.address = address


async def connect(server: ConveyorServer, driver: str, slots: int) -> Worker:
    """A worker that answers when it is told to."""
    worker = Worker(cast(Replica, _Address(server.address)), driver, mute, slots=slots)
    return await worker.connect()


async def start(server: ConveyorServer, pipeline: str, count: int) -> None:
    """Start runs, many at a time."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = run_service_pb2_grpc.RunServiceStub(channel)
        request = run_service_pb2.StartRunRequest(definition="app", resource="web", pipeline=pipeline)
        for begin in range(0, count, 100):
            await asyncio.gather(*(stub.StartRun(request) for _ in range(min(100, count - begin))))


async def until_given(workers: list[Worker], count: int) -> None:
    """Wait for so many assignments."""
    async with asyncio.timeout(120):
        while sum(len(worker.given) for worker in workers) < count:  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


async def come_back(worker: Worker, server: ConveyorServer) -> None:
    """Connect as often as it takes."""
    await worker.cut()
    worker.reads = True
    while True:
        try:
            await worker.connect(cast(Replica, _Address(server.address)))
        except (grpc.aio.AioRpcError, AssertionError):
            await asyncio.sleep(0.01)
        else:
            return


async def _recover(server: ConveyorServer) -> tuple[float, float, float]:
    """Seconds from the ready line until all workers have their work, until a result that was due has been acked and the
    next step given out, and until a run that waited for a worker has one."""
    rig.apply(server.address, two_steps("main", "hold", "next"))
    rig.apply(server.address, two_steps("row", "late", "next"))
    holders = [await connect(server, "hold", RUNS // WORKERS) for _ in range(WORKERS)]
    nexts = [await connect(server, "next", RUNS)]
    await start(server, "main", RUNS - 100)
    await start(server, "row", 100)
    await until_given(holders, RUNS - 100)
    await asyncio.to_thread(server.kill)
    for worker in [*holders, *nexts]:
        await worker.cut()
    await asyncio.to_thread(server.start)
    ready = time.perf_counter()
    late = await connect(server, "late", 100)

    async def back(worker: Worker) -> None:
        await come_back(worker, server)

    await asyncio.gather(*(back(worker) for worker in [*holders, *nexts]))
    attached = time.perf_counter() - ready
    due = [given for worker in holders for given in worker.given[: DUE // WORKERS]]
    for worker in holders:
        for given in worker.given[: DUE // WORKERS]:
            await worker.answer(given)
    await until_given(nexts, len(due))
    moved = time.perf_counter() - ready
    await until_given([late], 100)
    claimed = time.perf_counter() - ready
    for worker in [*holders, *nexts, late]:
        await worker.cut()
    return attached, moved, claimed


def two_steps(name: str, first: str, second: str) -> pipeline_pb2.Pipeline:
    """A list of two steps."""
    steps = [pipeline_pb2.Step(id="a", driver=first), pipeline_pb2.Step(id="b", driver=second)]
    return pipeline_pb2.Pipeline(name=name, steps=steps)


def recovery(store: str) -> Iterator[Figure]:
    """Kill the server with 10,000 runs under way."""
    with (
        tempfile.TemporaryDirectory() as folder,
        rig.server(Path(folder), store, _LONG_TTL) as server,
    ):
        attached, moved, claimed = asyncio.run(_recover(server))
    yield Figure.of(f"recovery_attached_{store}_s", attached, "s")
    yield Figure.of(f"recovery_moved_{store}_s", moved, "s")
    yield Figure.of(f"recovery_claimed_{store}_s", claimed, "s")


def idle_cost(store: str, seconds: float) -> Iterator[Figure]:
    """CPU of a server with 10,000 runs that wait: half of them held by workers, half in the row."""
    with (
        tempfile.TemporaryDirectory() as folder,
        rig.server(Path(folder), store) as server,
    ):
        share = asyncio.run(_idle(server, max(seconds, _TWO_SWEEPS_S)))
    yield Figure.of(f"idle_cpu_10k_active_{store}_percent", 100 * share, "%")


async def _idle(server: ConveyorServer, seconds: float) -> float:
    rig.apply(server.address, two_steps("main", "hold", "next"))
    holders = [await connect(server, "hold", RUNS // 2 // WORKERS) for _ in range(WORKERS)]
    await start(server, "main", RUNS)
    await until_given(holders, RUNS // 2)
    await asyncio.sleep(2)
    before, began = rig.cpu_seconds(server.pid), time.perf_counter()
    await asyncio.sleep(seconds)
    share = (rig.cpu_seconds(server.pid) - before) / (time.perf_counter() - began)
    for worker in holders:
        await worker.cut()
    return share

"""What a lock costs that 1,000 runs wait for: while they wait, and when it goes from one to the next."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import rig
from bench.recovery import connect, start, until_given
from bench.report import Figure
from conveyor.v1 import pipeline_pb2
from tests.support.rig import Worker
from tests.support.server import ConveyorServer

WAITING = 1000
_HANDED_OVER = 100
_ONE_SWEEP_S = 65.0


def locks(store: str, seconds: float) -> Iterator[Figure]:
    """The CPU of a server with 1,000 steps that wait for a lock, and of one with none; and how long hand-overs take."""
    for waiting in (0, WAITING):
        with tempfile.TemporaryDirectory() as folder, rig.server(Path(folder), store) as server:
            share, few, many, joined = asyncio.run(_measure(server, waiting, max(seconds, _ONE_SWEEP_S)))
        yield Figure.of(f"idle_cpu_{waiting}_wait_for_lock_{store}_percent", 100 * share, "%")
    yield Figure.of(f"lock_handover_none_waiting_{store}_p50_ms", 1e3 * few, "ms")
    yield Figure.of(f"lock_handover_1k_waiting_{store}_p50_ms", 1e3 * many, "ms")
    yield Figure.of(f"lock_joins_{store}_per_s", WAITING / joined, "1/s")


async def _measure(server: ConveyorServer, waiting: int, seconds: float) -> tuple[float, float, float, float]:
    """The share of a core while nothing happens, seconds of a hand-over with few and with many waiting, seconds of
    all starts."""
    step = pipeline_pb2.Step(id="a", driver="hold", lock=pipeline_pb2.Lock(key="deploy"))
    rig.apply(server.address, pipeline_pb2.Pipeline(name="main", steps=[step]))
    worker = await connect(server, "hold", 8)
    began = time.perf_counter()
    await start(server, "main", waiting + 1 if waiting else 0)
    joined = time.perf_counter() - began
    if waiting:
        await until_given([worker], 1)
    await asyncio.sleep(2)
    before, began = rig.cpu_seconds(server.pid), time.perf_counter()
    await asyncio.sleep(seconds)
    share = (rig.cpu_seconds(server.pid) - before) / (time.perf_counter() - began)
    if not waiting:
        await worker.cut()
        return share, 0, 0, joined
    many = await _hand_over(worker, 0, _HANDED_OVER)
    await _hand_over(worker, _HANDED_OVER, WAITING - _HANDED_OVER)
    few = await _hand_over(worker, WAITING - _HANDED_OVER, WAITING)
    await worker.cut()
    return share, few, many, joined


async def _hand_over(worker: Worker, first: int, last: int) -> float:
    """The median time from a result to the assignment of the next holder."""
    times: list[float] = []
    for index in range(first, last):
        began = time.perf_counter()
        await worker.answer(worker.given[index])
        async with asyncio.timeout(60):
            while len(worker.given) < index + 2:  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.0005)
        times.append(time.perf_counter() - began)
    return statistics.median(times)

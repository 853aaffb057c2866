"""From one driver's result to the next driver's assignment, on an idle server; and how fast the command line is."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from bench import floors, rig
from bench.report import Figure
from conveyor.v1 import result_pb2, run_service_pb2, run_service_pb2_grpc, worker_service_pb2_grpc
from conveyor.v1 import worker_service_pb2 as pb

_RUNS = 600
_WARMUP = 50


def handoff(seconds: float) -> Iterator[Figure]:
    """Milliseconds from sending a result to having the next assignment, with nothing else going on."""
    with tempfile.TemporaryDirectory() as folder, rig.server(Path(folder)) as server:
        rig.apply(server.address, rig.three_steps())
        taken = sorted(asyncio.run(_measure_handoffs(server.address)))
    floor = floors.echo_p50_ms() + floors.commit_p50_ms()
    yield Figure.of("handoff_p50_ms", taken[len(taken) // 2] * 1e3, "ms", floor)
    yield Figure.of("handoff_p99_ms", taken[len(taken) * 99 // 100] * 1e3, "ms", floor)


async def _measure_handoffs(address: str) -> list[float]:
    """Plays all three drivers over raw Work streams."""
    async with grpc.aio.insecure_channel(address) as channel:
        runs = run_service_pb2_grpc.RunServiceStub(channel)
        workers = worker_service_pb2_grpc.WorkerServiceStub(channel)
        streams = [await _connect(workers, name) for name in ("a", "b", "c")]
        taken = []
        for number in range(_WARMUP + _RUNS):
            await runs.StartRun(run_service_pb2.StartRunRequest(definition="app", resource="web", pipeline="three"))
            sent = 0.0
            for stream in streams:
                assignment = await _assignment(stream)
                if sent and number >= _WARMUP:
                    taken.append(time.perf_counter() - sent)
                report = result_pb2.ResultReport(
                    run=assignment.run,
                    step=assignment.step,
                    attempt=assignment.attempt,
                    token=assignment.token,
                    result=result_pb2.DriverResult(outcome=result_pb2.OUTCOME_SUCCEEDED),
                )
                sent = time.perf_counter()
                await stream.write(pb.WorkRequest(results=[report]))
        for stream in streams:
            stream.cancel()
    return taken


async def _connect(workers, driver: str):  # type: ignore[no-untyped-def]  # streams have no name in the stubs
    stream = workers.Work()
    request = pb.WorkRequest()
    request.hello.driver = driver
    request.hello.slots = 1
    await stream.write(request)
    while not (await stream.read()).HasField("welcome"):
        pass
    return stream


async def _assignment(stream):  # type: ignore[no-untyped-def]
    while True:
        response = await stream.read()
        if response.assignments:
            return response.assignments[0]


def command_line(seconds: float) -> Iterator[Figure]:
    """The whole process of `conveyor version`, beside a Python that does nothing."""
    command = [str(Path(sys.executable).parent / "conveyor"), "version"]
    floor = floors.whole_process_ms([sys.executable, "-c", "pass"])
    yield Figure.of("cli_version_ms", floors.whole_process_ms(command), "ms", floor)

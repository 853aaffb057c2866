"""Load in a process of its own: starts runs in a closed loop and counts those that end well.

`python -m bench.load ADDRESS PIPELINE CONCURRENCY WARMUP_S SECONDS RUNS` prints one JSON object. With RUNS above 0 it
makes that many runs instead of going by the clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc

from conveyor.v1 import run_pb2, run_service_pb2_grpc
from conveyor.v1 import run_service_pb2 as pb

_ENDED = (run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED)
_LONGEST_RUN_S = 120


class Load:
    """Keeps a number of runs under way."""

    def __init__(self, stub: run_service_pb2_grpc.RunServiceAsyncStub, pipeline: str) -> None:
        self._stub = stub
        self._pipeline = pipeline
        self._ends: dict[str, asyncio.Future[int]] = {}
        self.watching = asyncio.Event()
        self.succeeded = 0
        self.start_seconds: list[float] = []

    async def watch(self) -> None:
        """Learn which runs have ended."""
        request = pb.WatchRunsRequest(pipeline=self._pipeline, states=_ENDED)
        async for message in self._stub.WatchRuns(request):
            if message.HasField("snapshot_end"):
                self.watching.set()
            for change in message.changes.changes:
                end = self._end(change.run.id)
                if not end.done():
                    end.set_result(change.run.state)

    def _end(self, run: str) -> asyncio.Future[int]:
        return self._ends.setdefault(run, asyncio.get_running_loop().create_future())

    async def run_once(self) -> None:
        """One run from its start to its end."""
        began = time.perf_counter()
        response = await self._stub.StartRun(
            pb.StartRunRequest(definition="app", resource="web", pipeline=self._pipeline)
        )
        self.start_seconds.append(time.perf_counter() - began)
        run = response.run
        if run.state in _ENDED:
            state: int = run.state
        else:
            state = await asyncio.wait_for(self._end(run.id), _LONGEST_RUN_S)
        self._ends.pop(run.id, None)
        if state != run_pb2.RUN_STATE_SUCCEEDED:
            raise RuntimeError(f"run {run.id} ended as {run_pb2.RunState.Name(state)}")  # type: ignore[arg-type]
        self.succeeded += 1


async def main(address: str, pipeline: str, concurrency: int, warmup: float, seconds: float, runs: int) -> None:
    """Run the loop, and print what it did."""
    async with grpc.aio.insecure_channel(address) as channel:
        load = Load(run_service_pb2_grpc.RunServiceStub(channel), pipeline)
        watching = asyncio.create_task(load.watch())
        await load.watching.wait()
        left = runs
        stop = False

        async def worker() -> None:
            nonlocal left
            while not stop and (not runs or left > 0):
                left -= 1
                await load.run_once()

        workers = [asyncio.create_task(worker()) for _ in range(concurrency)]
        if runs:
            began = time.perf_counter()
            await asyncio.gather(*workers)
            counted, taken = load.succeeded, time.perf_counter() - began
        else:
            await asyncio.sleep(warmup)
            before, began = load.succeeded, time.perf_counter()
            load.start_seconds.clear()
            await asyncio.sleep(seconds)
            counted, taken = load.succeeded - before, time.perf_counter() - began
            stop = True
            await asyncio.gather(*workers)
        watching.cancel()
        starts = sorted(load.start_seconds)
        print(
            json.dumps(
                {"runs": counted, "seconds": taken, "start_p50_ms": starts[len(starts) // 2] * 1e3 if starts else 0}
            )
        )


if __name__ == "__main__":
    host, name, *numbers = sys.argv[1:]
    asyncio.run(main(host, name, int(numbers[0]), float(numbers[1]), float(numbers[2]), int(numbers[3])))

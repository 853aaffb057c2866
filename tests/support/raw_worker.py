"""A worker that speaks the Work stream word by word, so that it can say what an SDK never would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import grpc

from conveyor.sdk import to_struct
from conveyor.v1.result_pb2 import Disposition, DriverResult, Outcome, ResultAck, ResultReport
from conveyor.v1.worker_pb2 import Assignment, Cancellation, Heartbeat, Hello, Holding, Welcome
from conveyor.v1.worker_service_pb2 import ReportResultsRequest, WorkRequest, WorkResponse
from conveyor.v1.worker_service_pb2_grpc import WorkerServiceStub


def report(given: Assignment, *, outcome: str = "SUCCEEDED", token: str = "", **data: object) -> ResultReport:
    """A result for an assignment."""
    return ResultReport(
        run=given.run,
        step=given.step,
        attempt=given.attempt,
        token=token or given.token,
        driver=given.driver,
        result=DriverResult(outcome=Outcome.Value(f"OUTCOME_{outcome}"), data=to_struct(data)),
    )


def disposition(ack: ResultAck) -> str:
    """What became of a result, without its prefix."""
    return Disposition.Name(ack.disposition).removeprefix("DISPOSITION_")


class RawWorker:
    """One stream. What the server says gathers in queues; heartbeats go out by themselves."""

    def __init__(
        self,
        address: str,
        namespace: str,
        driver: str,
        *,
        slots: int = 1,
        session: str = "",
        holding: Sequence[Assignment] = (),
    ) -> None:
        self.assignments: asyncio.Queue[Assignment] = asyncio.Queue()
        self.cancellations: asyncio.Queue[Cancellation] = asyncio.Queue()
        self.acks: asyncio.Queue[ResultAck] = asyncio.Queue()
        self.welcome = Welcome()
        self._hello = Hello(
            namespace=namespace,
            driver=driver,
            worker="raw",
            slots=slots,
            session=session,
            holding=[Holding(run=a.run, step=a.step, attempt=a.attempt, token=a.token) for a in holding],
        )
        self._channel = grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._call = WorkerServiceStub(self._channel).Work()
        await self._call.write(WorkRequest(hello=self._hello))
        first: WorkResponse = await self._call.read()
        self.welcome = first.welcome
        self._take(first)
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def answer(self, *reports: ResultReport) -> list[str]:
        """Send results in one message; the dispositions that come back."""
        await self._call.write(WorkRequest(results=reports))
        return [disposition(await self.acks.get()) for _ in reports]

    async def _beat(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await asyncio.sleep(self.welcome.heartbeat_interval.ToMilliseconds() / 1000)
                await self._call.write(WorkRequest(heartbeat=Heartbeat()))

    async def _read(self) -> None:
        with suppress(grpc.aio.AioRpcError):
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self._take(response)

    def _take(self, response: WorkResponse) -> None:
        for assignment in response.assignments:
            self.assignments.put_nowait(assignment)
        for cancellation in response.cancellations:
            self.cancellations.put_nowait(cancellation)
        for ack in response.acks:
            self.acks.put_nowait(ack)


async def report_results(address: str, namespace: str, *reports: ResultReport) -> list[str]:
    """Send results by ReportResults; their dispositions."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = WorkerServiceStub(channel).ReportResults()
        await call.write(ReportResultsRequest(namespace=namespace, results=reports))
        await call.done_writing()
        return [disposition(ack) async for response in call for ack in response.acks]

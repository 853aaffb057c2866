"""Log lines on a Work stream that name nothing that could be: refused as a whole, and nobody else is harmed."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.worker_service_pb2 import WorkRequest
from conveyor.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.support.belt import Belt, state, step
from tests.support.raw_worker import RawWorker, report

RUN = "01a210ad-d051-7b74-ae8f-59d5d537277e"

NONSENSE = {
    "a wildcard for a run": LogLine(run="*", step="a", attempt=1, seq=1),
    "all that follows": LogLine(run=">", step="a", attempt=1, seq=1),
    "a blank": LogLine(run=f"{RUN} x", step="a", attempt=1, seq=1),
    "a line end": LogLine(run=f"{RUN}\r\nPUB x 0\r\n", step="a", attempt=1, seq=1),
    "another subject": LogLine(run=RUN, step="a.b", attempt=1, seq=1),
    "a wildcard for a step": LogLine(run=RUN, step="*", attempt=1, seq=1),
    "no run": LogLine(step="a", attempt=1, seq=1),
    "no step": LogLine(run=RUN, attempt=1, seq=1),
    "no attempt": LogLine(run=RUN, step="a", seq=1),
    "no number": LogLine(run=RUN, step="a", attempt=1),
}


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize("case", NONSENSE)
async def test_nonsense_is_refused_with_the_protocol_as_reason(belt: Belt, case: str) -> None:
    async with grpc.aio.insecure_channel(belt.address) as channel:
        call = WorkerServiceStub(channel).Work()
        request = WorkRequest()
        request.hello.namespace = belt.namespace
        request.hello.driver = "a"
        request.hello.slots = 1
        await call.write(request)
        assert (await call.read()).HasField("welcome")
        await call.write(WorkRequest(logs=[NONSENSE[case]]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(read_to_the_end(call), 20)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "logs[0]" in (refused.value.details() or "")
    # Others go on, and so do logs.
    async with RawWorker(belt.address, belt.namespace, "b") as worker:
        await belt.pipeline(step("b"))
        run = await belt.start()
        given = await worker.assignments.get()
        await worker._call.write(WorkRequest(logs=[LogLine(run=run.id, step="b", attempt=1, seq=1, text="good")]))
        assert await worker.answer(report(given)) == ["ACCEPTED"]
        assert state(await belt.ended(run)) == "SUCCEEDED"
    assert await belt.lines(run) == ["good"]

"""Drivers over the Work stream, against a scripted server on a real socket."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from conveyor.sdk import Driver, Job
from conveyor.sdk.values import from_struct
from conveyor.v1.result_pb2 import Outcome
from conveyor.v1.worker_pb2 import Cancellation, Drained


@asynccontextmanager
async def serving(driver, server):
    """A driver that serves, with its first stream welcomed; drained at the end."""
    driver.address = server.address
    task = asyncio.create_task(driver.serve())
    stream = await server.stream()
    stream.welcome()
    try:
        yield stream
        driver.drain()
        await stream.until(lambda s: s.drains)
        stream.send(drained=Drained())
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_an_async_handler_gets_the_job_and_its_dict_becomes_the_result(work_server, assignment):
    driver = Driver("compile", definitions=["app"])

    @driver.reconcile
    async def compile(job: Job) -> dict:
        job.log("building %s", job.spec["repository"])
        return {"wheel": "shop.whl", "size": 3}

    async with work_server() as server, serving(driver, server) as stream:
        assert (stream.hello.driver, stream.hello.definitions, stream.hello.slots) == ("compile", ["app"], 1)
        stream.send(assignments=[assignment()])
        await stream.until(lambda s: s.results)
        [report] = stream.results
        assert (report.run, report.step, report.attempt, report.token) == ("run-1", "build", 1, "run-1/build/1")
        assert report.result.outcome == Outcome.OUTCOME_SUCCEEDED
        assert from_struct(report.result.data) == {"wheel": "shop.whl", "size": 3}
        [line] = stream.lines
        assert (line.text, line.seq, line.step) == ("building https://example.org/shop.git", 1, "build")
        stream.ack(report)
        stream.ack_lines()


async def test_a_plain_function_runs_in_a_thread(work_server, assignment):
    driver = Driver("compile")

    @driver.reconcile
    def compile(job: Job) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()

    async with work_server() as server, serving(driver, server) as stream:
        stream.send(assignments=[assignment()])
        await stream.until(lambda s: s.results)
        assert stream.results[0].result.outcome == Outcome.OUTCOME_SUCCEEDED
        assert not stream.results[0].result.HasField("data")
        stream.ack(stream.results[0])

"""The SDK's drivers over a real broker; the test is the engine, with the engine's own codec."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StreamConfig

from conveyor.bus import loglines, subjects, wire
from conveyor.bus.events import ResultArrived
from conveyor.sdk import Driver, Job
from conveyor.sdk.values import from_struct, to_struct
from conveyor.v1 import result_pb2, run_pb2
from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.worker_pb2 import Assignment, StepResult
from tests.support.nats import NatsServer


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()


class Engine:
    """What the test needs of one: streams, tickets out, results and lines in."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.js = client.jetstream()
        self.results: asyncio.Queue[ResultArrived] = asyncio.Queue()
        self.lines: list[LogLine] = []
        self.new_lines = asyncio.Event()

    async def start(self) -> None:
        for name, retention in {
            subjects.PIPELINE_STREAM: RetentionPolicy.WORK_QUEUE,
            subjects.MESSAGES_STREAM: RetentionPolicy.INTEREST,
            subjects.LOGS_STREAM: RetentionPolicy.LIMITS,
        }.items():
            await self.js.add_stream(StreamConfig(name, subjects=subjects.STREAM_SUBJECTS[name], retention=retention))
        await self.client.subscribe("pipelines.>", cb=self._take_result)
        await self.client.subscribe("ns.*.pipelines.>", cb=self._take_result)
        await self.client.subscribe("logs.>", cb=self._take_lines)

    async def until_pulling(self, consumer: str) -> None:
        """Wait until somebody pulls from a consumer."""
        while True:
            try:
                if (await self.js.consumer_info(subjects.MESSAGES_STREAM, consumer)).num_waiting:
                    return
            except nats.js.errors.NotFoundError:
                pass
            await asyncio.sleep(0.01)

    async def until_lines(self, count: int) -> None:
        """Wait until so many lines have come."""
        while len(self.lines) < count:
            await self.new_lines.wait()
            self.new_lines.clear()

    async def send(self, assignment: Assignment) -> None:
        subject = subjects.ticket(assignment.namespace, assignment.driver, assignment.resource.definition)
        await self.js.publish(subject, wire.encode_ticket(assignment, first=True))

    async def until_acked(self, consumer: str) -> None:
        """Wait until nothing of a consumer is unacked."""
        while True:
            info = await self.js.consumer_info(subjects.MESSAGES_STREAM, consumer)
            if not info.num_ack_pending and not info.num_pending:
                return
            await asyncio.sleep(0.01)

    async def _take_result(self, message: Msg) -> None:
        event = wire.decode(message.subject, message.data)
        assert isinstance(event, ResultArrived)
        self.results.put_nowait(event)

    async def _take_lines(self, message: Msg) -> None:
        self.lines += [stored.line for stored in loglines.decode_lines(message.subject, message.data)]
        self.new_lines.set()


@asynccontextmanager
async def engine_on(broker: NatsServer) -> AsyncIterator[Engine]:
    client = await nats.connect(broker.url, max_reconnect_attempts=-1, reconnect_time_wait=0)
    try:
        engine = Engine(client)
        await engine.start()
        yield engine
    finally:
        await client.close()


@asynccontextmanager
async def serving(driver: Driver) -> AsyncIterator[None]:
    task = asyncio.create_task(driver.serve())
    try:
        yield
        driver.drain()
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


def assignment(run: str = "run-1", **fields: Any) -> Assignment:
    given = Assignment(
        namespace="default",
        run=run,
        step="build",
        attempt=1,
        token=f"token of {run}",
        driver="compile",
        pipeline="release",
        resource=Resource(name="shop", definition="app", generation=4, spec=to_struct({"size": 3, "tags": ["a"]})),
        context=to_struct({"registry": "r.example"}),
        max_attempts=2,
        run_state=run_pb2.RUN_STATE_RUNNING,
    )
    given.MergeFrom(Assignment(**fields))
    return given


def echoing(broker: NatsServer, **options: Any) -> Driver:
    driver = Driver("compile", definitions=["app"], transport="jetstream", nats=broker.url, **options)

    @driver.reconcile
    async def reconcile(job: Job) -> dict[str, object]:
        job.log("first")
        job.log("second")
        return {"spec": job.spec}

    return driver


async def test_a_ticket_becomes_a_job_and_its_answer_a_result_after_its_lines(broker: NatsServer) -> None:
    jobs: list[Job] = []
    driver = Driver("compile", definitions=["app"], transport="jetstream", nats=broker.url)

    @driver.reconcile
    async def reconcile(job: Job) -> dict[str, object]:
        jobs.append(job)
        job.log("first\nsecond")
        return {"spec": job.spec}

    earlier = {"clone": StepResult(state=run_pb2.STEP_STATE_SUCCEEDED, driver="git", data=to_struct({"commit": "abc"}))}
    async with engine_on(broker) as engine, serving(driver):
        await engine.until_pulling("compile")
        sent = assignment(results=earlier)
        await engine.send(sent)
        result = await engine.results.get()
        assert [line.text for line in engine.lines] == ["first", "second"]
        assert [(line.seq, line.attempt, line.step, line.driver) for line in engine.lines] == [
            (1, 1, "build", "compile"),
            (2, 1, "build", "compile"),
        ]
        await engine.until_acked("compile")
    assert (result.run, result.step, result.attempt, result.token) == ("run-1", "build", 1, "token of run-1")
    assert result.result is not None
    assert result.result.outcome == result_pb2.OUTCOME_SUCCEEDED
    assert from_struct(result.result.data) == {"spec": {"size": 3, "tags": ["a"]}}
    [job] = jobs
    assert job.context == {"registry": "r.example"}
    assert job.results["clone"].data == {"commit": "abc"}
    assert (job.pipeline, job.resource.generation, job.max_attempts, job.run_state) == ("release", 4, 2, "RUNNING")


async def test_other_namespaces_have_their_own_subjects(broker: NatsServer) -> None:
    driver = echoing(broker, namespace="team-a")
    async with engine_on(broker) as engine, serving(driver):
        await engine.until_pulling("team-a_compile")
        await engine.send(assignment(namespace="team-a"))
        result = await engine.results.get()
        assert (result.namespace, result.run) == ("team-a", "run-1")


async def test_a_job_is_cancelled_and_confirms(broker: NatsServer) -> None:
    started = asyncio.Event()
    driver = Driver("compile", transport="jetstream", nats=broker.url)

    @driver.reconcile
    async def reconcile(job: Job) -> None:
        started.set()
        await asyncio.Event().wait()

    async with engine_on(broker) as engine, serving(driver):
        await engine.until_pulling("compile")
        await engine.send(assignment())
        await started.wait()
        for token in ("another", "token of run-1"):
            body = json.dumps({"attempt": 1, "token": token, "message": f"by {token}", "grace": 30})
            await engine.client.publish(subjects.cancel("default", "run-1", "build"), body.encode())
        result = await engine.results.get()
        assert result.result is not None
        assert result.result.outcome == result_pb2.OUTCOME_CANCELLED
        assert result.result.message == "by token of run-1"


@pytest.mark.parametrize("end", [NatsServer.stop, NatsServer.kill])
async def test_a_driver_goes_on_after_the_broker_was_restarted(
    broker: NatsServer, end: Callable[[NatsServer], None]
) -> None:
    release = asyncio.Event()
    started = asyncio.Event()
    starts = 0
    driver = Driver("compile", transport="jetstream", nats=broker.url)

    @driver.reconcile
    async def reconcile(job: Job) -> None:
        nonlocal starts
        starts += 1
        started.set()
        await release.wait()

    async with engine_on(broker) as engine, serving(driver):
        await engine.until_pulling("compile")
        await engine.send(assignment())
        await started.wait()
        await asyncio.to_thread(end, broker)
        release.set()
        await asyncio.to_thread(broker.start)
        assert (await engine.results.get()).run == "run-1"
        await engine.until_pulling("compile")
        await engine.send(assignment("run-2"))
        assert (await engine.results.get()).run == "run-2"
        await engine.until_acked("compile")
    assert starts == 2


AGAIN = "[this attempt was given out again: the driver that had it went away]"


async def lines_of_two_deliveries(broker: NatsServer, *, before: int) -> list[tuple[int, str]]:
    """The lines of a ticket whose first driver goes away after so many."""
    started = asyncio.Event()
    first = Driver("compile", definitions=["app"], transport="jetstream", nats=broker.url)

    @first.reconcile
    async def reconcile(job: Job) -> None:
        for number in range(before):
            job.log("before %d", number)
        started.set()
        await asyncio.Event().wait()

    async with engine_on(broker) as engine:
        going = asyncio.create_task(first.serve())
        await engine.until_pulling("compile")
        await engine.send(assignment())
        await started.wait()
        await engine.until_lines(before)
        going.cancel()
        await asyncio.wait([going])
        async with serving(echoing(broker)):
            await engine.results.get()
        return [(line.seq, line.text) for line in engine.lines]


async def test_a_ticket_that_is_delivered_again_goes_on_with_the_numbers_of_its_lines(broker: NatsServer) -> None:
    assert await lines_of_two_deliveries(broker, before=2) == [
        (1, "before 0"),
        (2, "before 1"),
        (3, AGAIN),
        (4, "first"),
        (5, "second"),
    ]


async def test_a_ticket_that_is_delivered_again_begins_at_one_when_it_has_no_lines(broker: NatsServer) -> None:
    assert await lines_of_two_deliveries(broker, before=0) == [(1, AGAIN), (2, "first"), (3, "second")]


async def test_a_ticket_that_is_delivered_again_begins_at_one_when_its_lines_cannot_be_read(
    broker: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*args: object) -> None:
        raise nats.errors.TimeoutError

    monkeypatch.setattr(JetStreamContext, "get_last_msg", silent)
    lines = await lines_of_two_deliveries(broker, before=1)
    assert lines == [(1, "before 0"), (1, AGAIN), (2, "first"), (3, "second")]


async def test_a_deleted_consumer_is_made_anew(broker: NatsServer) -> None:
    driver = echoing(broker)
    async with engine_on(broker) as engine, serving(driver):
        await engine.until_pulling("compile")
        await engine.js.delete_consumer(subjects.MESSAGES_STREAM, "compile")
        await engine.until_pulling("compile")
        await engine.send(assignment())
        assert (await engine.results.get()).run == "run-1"


async def test_a_driver_waits_for_broker_and_streams(broker: NatsServer) -> None:
    driver = echoing(broker)
    await asyncio.to_thread(broker.stop)
    async with serving(driver):
        await asyncio.to_thread(broker.start)
        async with engine_on(broker) as engine:
            await engine.until_pulling("compile")
            await engine.send(assignment())
            assert (await engine.results.get()).run == "run-1"


async def test_a_driver_drains_also_while_the_broker_is_away(broker: NatsServer) -> None:
    driver = echoing(broker)
    await asyncio.to_thread(broker.stop)
    async with serving(driver):
        await asyncio.sleep(0)
    await asyncio.to_thread(broker.start)
    async with engine_on(broker) as engine:
        async with serving(driver):
            await engine.until_pulling("compile")
            await asyncio.to_thread(broker.stop)
        await asyncio.to_thread(broker.start)


async def test_a_result_that_the_broker_does_not_take_fails_the_step(tmp_path: Path) -> None:
    small = NatsServer(tmp_path / "small", max_payload=1 << 20).start()
    driver = Driver("compile", transport="jetstream", nats=small.url)

    @driver.reconcile
    async def reconcile(job: Job) -> dict[str, object]:
        return {"output": "x" * (2 << 20)}

    try:
        async with engine_on(small) as engine, serving(driver):
            await engine.until_pulling("compile")
            await engine.send(assignment())
            result = (await engine.results.get()).result
            assert result is not None
            assert result.outcome == result_pb2.OUTCOME_FAILED
            assert "the limit is" in result.message
    finally:
        small.stop()


async def test_two_workers_share_the_tickets_and_each_is_done_once(broker: NatsServer) -> None:
    done: list[str] = []

    def worker() -> Driver:
        driver = Driver("compile", slots=3, transport="jetstream", nats=broker.url)

        @driver.reconcile
        def reconcile(job: Job) -> None:
            done.append(job.run)

        return driver

    runs = {f"run-{number}" for number in range(50)}
    async with engine_on(broker) as engine, serving(worker()), serving(worker()):
        await engine.until_pulling("compile")
        for run in runs:
            await engine.send(assignment(run))
        assert {(await engine.results.get()).run for _ in runs} == runs
        await engine.until_acked("compile")
    assert sorted(done) == sorted(runs)

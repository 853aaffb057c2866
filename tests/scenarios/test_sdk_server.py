"""The Python client and its drivers against a real server process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from conveyor.sdk import (
    Aborted,
    AlreadyExists,
    Client,
    Driver,
    FailedPrecondition,
    InvalidArgument,
    Job,
    NotFound,
    WaitTimeout,
    from_struct,
    to_struct,
)
from conveyor.v1.apply_pb2 import ApplyOutcome
from conveyor.v1.pipeline_pb2 import Order, Pipeline, RetryPolicy, Step
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.result_pb2 import Outcome
from conveyor.v1.run_pb2 import Run, RunState, StepReason, StepState
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    broker = NatsServer(tmp_path / "nats").start()
    yield broker
    broker.stop()


@pytest.fixture
def server(tmp_path: Path, broker: NatsServer) -> Iterator[ConveyorServer]:
    server = ConveyorServer(tmp_path / "server", ["--nats", broker.url, "--session-ttl", "3s"]).start()
    yield server
    server.kill()


def driver(name: str, server: ConveyorServer, handler: Callable[[Job], Any], **options: Any) -> Driver:
    made = Driver(name, address=server.address, **options)
    made.reconcile(handler)
    return made


@asynccontextmanager
async def serving(*drivers: Driver) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.serve()) for each in drivers]
    try:
        yield
        for each in drivers:
            each.drain()
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def set_up(client: Client, *steps: Step, order: Order.ValueType = Order.ORDER_LIST) -> None:
    await client.definitions.apply(ResourceDefinition(name="app"))
    await client.pipelines.apply(
        Pipeline(name="release", order=order, steps=steps, context=to_struct({"registry": "r.example", "retries": 3}))
    )


def shop(**spec: object) -> Resource:
    return Resource(name="shop", definition="app", pipeline="release", spec=to_struct(spec))


def states(run: Run) -> dict[str, str]:
    return {step.step: StepState.Name(step.state).removeprefix("STEP_STATE_") for step in run.steps}


async def test_a_resource_moves_through_drivers_of_both_transports(server: ConveyorServer, broker: NatsServer) -> None:
    async def clone(job: Job) -> dict[str, object]:
        job.log("cloning %s", job.spec["repository"])
        await job.subprocess("sh", "-c", "echo from git; echo warning >&2")
        return {"commit": "abc", "files": 3}

    def build(job: Job) -> dict[str, object]:
        assert job.context == {"registry": "r.example", "retries": 3}
        job.run_subprocess("echo", "building")
        return {"of": job.results["clone"].data}

    async def upload(job: Job) -> Any:
        job.log("uploading after %s", sorted(job.results))
        return job.succeed("uploaded", {"all": {step: result.data for step, result in job.results.items()}})

    drivers = [
        driver("clone", server, clone),
        driver("build", server, build, definitions=["app"]),
        driver("upload", server, upload, transport="jetstream", nats=broker.url),
    ]
    async with Client(server.address) as client, serving(*drivers):
        await set_up(client, *(Step(id=name, driver=name) for name in ("clone", "build", "upload")))
        _, run = await client.resources.create(shop(repository="https://example.org/shop.git"))
        assert run is not None
        seen = [RunState.Name(update.run.state) async for update in client.runs.watch(run.id)]
        assert seen[-1] == "RUN_STATE_SUCCEEDED"
        run = await client.runs.get(run.id)
        assert set(states(run).values()) == {"SUCCEEDED"}
        clone_data = {"commit": "abc", "files": 3}
        assert run.steps[2].result.message == "uploaded"
        assert from_struct(run.steps[2].result.data) == {"all": {"clone": clone_data, "build": {"of": clone_data}}}
        lines = [(line.step, line.text) async for line in client.logs.read(run.id, follow=True)]
        assert lines[0] == ("clone", "cloning https://example.org/shop.git")
        assert sorted(lines[1:3]) == [("clone", "from git"), ("clone", "warning")]
        assert lines[3:] == [("build", "building"), ("upload", "uploading after ['build', 'clone']")]
        assert [line.text async for line in client.logs.read(run.id, step="build")] == ["building"]
        assert [line.text async for line in client.logs.read(run.id, tail=1)] == [lines[-1][1]]
        names = {each.name async for each in client.drivers.list()}
        assert names >= {"clone", "build"}


async def test_failures_retries_and_cancellations(server: ConveyorServer) -> None:
    started = asyncio.Event()

    async def flaky(job: Job) -> None:
        if job.attempt < 2:
            raise job.fail("not yet", {"attempt": job.attempt})

    async def strict(job: Job) -> None:
        if job.spec.get("break"):
            raise job.fail("broken by request", retryable=False)

    async def slow(job: Job) -> None:
        started.set()
        if job.spec.get("wait"):
            await asyncio.Event().wait()

    retry = RetryPolicy(max_attempts=3)
    retry.initial_backoff.FromMilliseconds(10)
    drivers = [driver("flaky", server, flaky), driver("strict", server, strict), driver("slow", server, slow)]
    async with Client(server.address) as client, serving(*drivers):
        await set_up(
            client,
            Step(id="a", driver="flaky", retry=retry),
            Step(id="b", driver="strict", retry=retry),
            Step(id="c", driver="slow"),
        )
        _, run = await client.resources.create(shop(**{"break": True}))
        assert run is not None
        failed = await client.runs.wait(run.id)
        assert failed.state == RunState.RUN_STATE_FAILED
        assert states(failed) == {"a": "SUCCEEDED", "b": "FAILED", "c": "SKIPPED"}
        assert [attempt.number for attempt in failed.steps[0].attempts] == [1, 2]
        assert (failed.steps[1].attempt, failed.steps[1].result.message) == (1, "broken by request")
        with pytest.raises(FailedPrecondition) as caught:
            await client.runs.cancel(run.id)
        assert caught.value.reason == "RUN_FINISHED"

        again = await client.runs.retry(run.id, labels={"why": "again"})
        assert again.parent_run == run.id
        assert (await client.runs.wait(again.id)).state == RunState.RUN_STATE_FAILED

        _, run = await client.resources.update(shop(wait=True))
        assert run is not None
        await started.wait()
        with pytest.raises(WaitTimeout, match="its state is RUNNING"):
            await client.runs.wait(run.id, timeout=0.5)
        await client.runs.cancel(run.id, "enough")
        cancelled = await client.runs.wait(run.id)
        assert cancelled.state == RunState.RUN_STATE_CANCELLED
        assert cancelled.cancel_message == "enough"
        assert states(cancelled)["c"] == "CANCELLED"
        assert cancelled.steps[2].result.outcome == Outcome.OUTCOME_CANCELLED


async def test_objects_and_their_errors(server: ConveyorServer) -> None:
    async with Client(server.address) as client:
        await set_up(client, Step(id="a", driver="nobody"))
        resource, run = await client.resources.create(shop(n=1))
        assert run is not None
        with pytest.raises(AlreadyExists):
            await client.resources.create(shop(n=1))
        unchanged = await client.resources.apply(shop(n=1))
        assert (unchanged.outcome, unchanged.run) == (ApplyOutcome.APPLY_OUTCOME_UNCHANGED, None)
        changed = await client.resources.apply(shop(n=2))
        assert changed.outcome == ApplyOutcome.APPLY_OUTCOME_CHANGED
        assert changed.run is not None
        with pytest.raises(Aborted) as stale:
            await client.resources.delete("app", "shop", resource.etag)
        assert stale.value.reason == "ETAG_MISMATCH"
        generations = [each.generation async for each in client.resources.generations("app", "shop", page_size=1)]
        assert generations == [2, 1]
        assert from_struct((await client.resources.get("app", "shop", 1)).spec) == {"n": 1}
        listed = [each.id async for each in client.runs.list(resource="shop", definition="app", page_size=1)]
        assert listed == [changed.run.id, run.id]
        waiting = await client.runs.get(run.id)
        assert waiting.steps[0].reason == StepReason.STEP_REASON_NO_WORKER
        with pytest.raises(NotFound) as missing:
            await client.pipelines.get("other")
        assert missing.value.reason == "NOT_FOUND"
        cycle = Pipeline(
            name="cycle",
            order=Order.ORDER_GRAPH,
            steps=[Step(id="a", driver="d", needs=["b"]), Step(id="b", driver="d", needs=["a"])],
        )
        with pytest.raises(InvalidArgument) as refused:
            await client.pipelines.create(cycle)
        assert refused.value.reason == "CYCLE"
        checked = await client.pipelines.create(
            Pipeline(name="checked", steps=[Step(id="a", driver="d")]), validate_only=True
        )
        assert checked.name == "checked"
        with pytest.raises(NotFound):
            await client.pipelines.get("checked")
        info = await client.server_info()
        assert info.store == "sqlite"


async def test_one_request_id_starts_one_run(server: ConveyorServer) -> None:
    async with Client(server.address) as client:
        await set_up(client, Step(id="a", driver="nobody"))
        await client.resources.create(shop())
        runs = await asyncio.gather(*(client.runs.start("app", "shop", request_id="same") for _ in range(20)))
        assert len({run.id for run in runs}) == 1
        with pytest.raises(AlreadyExists) as reused:
            await client.runs.start("app", "shop", labels={"a": "b"}, request_id="same")
        assert reused.value.reason == "REQUEST_ID_REUSED"


async def test_everything_goes_on_over_a_restart_of_the_server(server: ConveyorServer) -> None:
    release, started = asyncio.Event(), asyncio.Event()
    attempts: list[int] = []

    async def slow(job: Job) -> dict[str, object]:
        attempts.append(job.attempt)
        job.log("before")
        started.set()
        await release.wait()
        job.log("after")
        return {"n": 1}

    async with Client(server.address) as client, serving(driver("slow", server, slow)):
        await set_up(client, Step(id="a", driver="slow"))
        _, run = await client.resources.create(shop())
        assert run is not None
        run_id = run.id
        waiting = asyncio.create_task(client.runs.wait(run_id))

        async def read() -> list[str]:
            return [line.text async for line in client.logs.read(run_id, follow=True)]

        reading = asyncio.create_task(read())
        await started.wait()
        await asyncio.to_thread(server.kill)
        release.set()
        await asyncio.to_thread(server.start)
        assert (await waiting).state == RunState.RUN_STATE_SUCCEEDED
        assert await reading == ["before", "after"]
    assert attempts == [1]


async def test_all_runs_are_watched_over_a_restart(server: ConveyorServer) -> None:
    async def quick(job: Job) -> None:
        pass

    async with Client(server.address) as client:
        await set_up(client, Step(id="a", driver="quick"))
        await client.resources.create(shop())
        runs = {run.id async for run in client.runs.list()}
        runs |= {(await client.runs.start("app", "shop")).id for _ in range(4)}
        ended: set[str] = set()
        seen = asyncio.Event()

        async def watch() -> None:
            async for update in client.runs.watch_all(pipeline="release"):
                seen.set()
                if update.run.state == RunState.RUN_STATE_SUCCEEDED:
                    ended.add(update.run.id)
                if ended == runs:
                    return

        watching = asyncio.create_task(watch())
        await seen.wait()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        async with serving(driver("quick", server, quick, slots=2)):
            await watching


async def test_a_fallen_worker_is_replaced_by_another(server: ConveyorServer) -> None:
    """What a worker gives up as it drains is retried elsewhere, on a budget of its own."""
    first_started, done = asyncio.Event(), asyncio.Event()

    async def hanging(job: Job) -> None:
        first_started.set()
        await asyncio.Event().wait()

    async def working(job: Job) -> dict[str, object]:
        done.set()
        return {"worker": "second"}

    async with Client(server.address) as client:
        retry = RetryPolicy(max_attempts=1)
        await set_up(client, Step(id="a", driver="work", retry=retry))
        first = driver("work", server, hanging, drain_timeout=0.01, worker="first")
        serve_first = asyncio.create_task(first.serve())
        _, run = await client.resources.create(shop())
        assert run is not None
        await first_started.wait()
        async with serving(driver("work", server, working, worker="second")):
            first.drain()
            await serve_first
            ended = await client.runs.wait(run.id)
        assert done.is_set()
        assert ended.state == RunState.RUN_STATE_SUCCEEDED
        assert from_struct(ended.steps[0].result.data) == {"worker": "second"}
        lost, counted = ended.steps[0].attempts
        assert (lost.worker, lost.reason) == ("first", StepReason.STEP_REASON_WORKER_LOST)
        assert counted.worker == "second"

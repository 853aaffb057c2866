"""A server that dies between two steps of the engine or the gateway: after a restart all goes on, and nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conveyor.sdk import Job
from conveyor.v1.pipeline_pb2 import Concurrency, ConcurrencyPolicy
from tests.support.behaviour import Counted, ok
from tests.support.belt import Belt, Site, state, step, step_reason
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until

QUICK = ["--session-ttl", "3s", "--lease-ttl", "2s"]


@pytest.fixture
def environment() -> dict[str, str]:
    """What the server finds when it starts."""
    return {"CONVEYOR_FAILPOINTS": ""}


@pytest.fixture
def own_site(tmp_path: Path, environment: dict[str, str]) -> Iterator[Site]:
    """A server and a broker of the test's own, not started yet."""
    nats = NatsServer(tmp_path / "nats").start()
    server = ConveyorServer(tmp_path / "server", ["--nats", nats.url, *QUICK], environment=environment)
    yield Site(server, nats)
    if server.running:
        server.kill()
    nats.kill()


@pytest.fixture
async def belt(
    own_site: Site, tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> AsyncIterator[Belt]:
    """The server is to die at the point that the test names."""
    environment["CONVEYOR_FAILPOINTS"] = request.getfixturevalue("point")
    await asyncio.to_thread(own_site.server.start)
    async with Belt(own_site, tmp_path) as belt:
        yield belt


async def died_and_back(belt: Belt, environment: dict[str, str]) -> None:
    """Wait until the server has died at its point, and start it without one."""
    server = belt.site.server
    await until(lambda: not server.running, "the server to die at its failpoint")
    await asyncio.to_thread(server.kill)  # only to be done with the process that is dead
    environment["CONVEYOR_FAILPOINTS"] = ""
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize(
    "point",
    [
        "engine.before_commit=kill:1",
        "engine.before_commit=kill:2",
        "engine.after_commit=kill:1",
        "engine.after_commit=kill:2",
        "gateway.before_ack=kill:1",
        "gateway.before_ack=kill:2",
    ],
)
async def test_a_result_counts_once_wherever_the_server_dies(
    belt: Belt, environment: dict[str, str], point: str
) -> None:
    counted = Counted(ok)
    belt.drive("work", counted)
    await belt.pipeline(step("a", "work"), step("b", "work"))
    await belt.connected("work")
    run = await belt.start()
    await died_and_back(belt, environment)
    ended = await belt.ended(run)
    assert state(ended) == "SUCCEEDED"
    assert counted.steps == ["a", "b"]
    assert [len(each.attempts) for each in ended.steps] == [1, 1]


@pytest.mark.parametrize("point", ["engine.before_inbox_ack=kill:1"])
async def test_a_jetstream_result_counts_once_when_its_ack_is_lost(
    belt: Belt, environment: dict[str, str], point: str
) -> None:
    counted = Counted(ok)
    belt.drive("work", counted, transport="jetstream")
    await belt.pipeline(step("a", "work"), step("b", "work"))
    run = await belt.start()
    await died_and_back(belt, environment)
    ended = await belt.ended(run)
    assert state(ended) == "SUCCEEDED"
    assert counted.steps == ["a", "b"]


@pytest.mark.parametrize("point", ["gateway.before_loss=kill:1", "gateway.after_loss=kill:1"])
async def test_a_lost_worker_loses_its_step_once_wherever_the_server_dies(
    belt: Belt, environment: dict[str, str], point: str
) -> None:
    gone = belt.spawn("work", "sleep", "600")
    await belt.pipeline(step("a", "work"))
    await belt.connected("work")
    run = await belt.start()
    await belt.until_step(run, "a", "RUNNING")
    gone.kill()
    await died_and_back(belt, environment)
    belt.drive("work", ok)
    ended = await belt.ended(run)
    assert state(ended) == "SUCCEEDED"
    assert [step_reason(attempt) for attempt in ended.steps[0].attempts] == ["WORKER_LOST", "UNSPECIFIED"]


@pytest.mark.parametrize("point", [f"engine.after_commit=kill:{n}" for n in range(1, 5)])
async def test_the_next_in_a_lane_gets_its_turn_wherever_the_server_dies(
    belt: Belt, environment: dict[str, str], point: str
) -> None:
    counted, gate = Counted(ok), asyncio.Event()

    async def work(job: Job) -> object:
        await gate.wait()
        return await counted(job)

    belt.drive("work", work)
    queue = Concurrency(policy=ConcurrencyPolicy.CONCURRENCY_POLICY_QUEUE)
    await belt.pipeline(step("a", "work"), concurrency=queue)
    await belt.connected("work")
    first = await belt.start()
    runs = [first, *[await belt.client.runs.start("app", first.resource) for _ in range(2)]]
    gate.set()
    await died_and_back(belt, environment)
    for run in runs:
        assert state(await belt.ended(run)) == "SUCCEEDED"
    assert [job.run for job in counted.jobs] == [run.id for run in runs]

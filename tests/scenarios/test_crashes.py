"""Servers and workers that are killed, on both stores: what was acknowledged holds, and nothing is done twice."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conveyor.sdk import Job
from conveyor.v1.pipeline_pb2 import LabelSelector
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import RunState
from tests.support.behaviour import Counted, fail, ok
from tests.support.belt import Belt, Site, state, step, step_reason
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until

QUICK = ["--session-ttl", "3s", "--lease-ttl", "2s"]
"""Lost workers and dead replicas are noticed sooner."""


@pytest.fixture(scope="module", params=["sqlite", "etcd"])
def own_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of this module's own, on each store, to be killed."""
    directory = tmp_path_factory.mktemp("crashes")
    nats = NatsServer(directory / "nats").start()
    if request.param == "sqlite":
        etcd = None
        server = ConveyorServer(directory / "server", ["--nats", nats.url, *QUICK])
    else:
        etcd = request.getfixturevalue("etcd_server")
        arguments = ["--etcd", etcd.url, "--nats", nats.url, *QUICK]
        server = ConveyorServer(directory / "server", arguments, mode="start")
    server.start()
    yield Site(server, nats, etcd)
    server.kill()
    nats.stop()


@pytest.fixture
async def belt(own_site: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(own_site, tmp_path) as belt:
        yield belt


def rounds(belt: Belt) -> int:
    """The embedded store has more to lose by a kill than a server before etcd."""
    return 10 if belt.site.etcd is None else 4


async def killed(belt: Belt) -> None:
    """kill -9, and start again."""
    await asyncio.to_thread(belt.site.server.kill)
    await asyncio.to_thread(belt.site.server.start)


async def test_f60_runs_survive_a_kill_at_any_moment(belt: Belt) -> None:
    """Each run has an acknowledged start, and no step is done again once its success was acknowledged."""
    done: dict[str, list[str]] = {}

    async def once(job: Job) -> None:
        done.setdefault(job.run, []).append(job.step)

    belt.drive("grpc", once)
    belt.drive("jetstream", once, transport="jetstream")
    await belt.pipeline(step("a", "grpc"), step("b", "jetstream"), step("c", "grpc"))
    await belt.client.resources.create(Resource(name="shop", definition="app"))
    chance = random.Random(4)
    runs = []
    for _ in range(rounds(belt)):
        runs.append(await belt.client.runs.start("app", "shop", "release"))
        await asyncio.sleep(chance.uniform(0, 0.03))
        await killed(belt)
    for run in runs:
        ended = await belt.ended(run)
        assert state(ended) == "SUCCEEDED"
        # More than once only where the server died before it had the first answer.
        assert sorted(set(done[run.id])) == ["a", "b", "c"]
        for each in ended.steps:
            assert [a.state for a in each.attempts].count(5) == 1


async def test_f31_attempts_are_counted_over_a_kill(belt: Belt) -> None:
    counted = Counted(fail)
    belt.drive("fail", counted)
    await belt.pipeline(step("a", "fail", attempts=4, backoff=0.5))
    run = await belt.start()
    await until(lambda: counted.count == 2)
    await belt.until_step(run, "a", "RETRYING")
    await killed(belt)
    ended = await belt.ended(run)
    assert (state(ended), counted.count) == ("FAILED", 4)
    assert [attempt.number for attempt in ended.steps[0].attempts] == [1, 2, 3, 4]


@pytest.mark.parametrize("back", [False, True])
async def test_f63_a_killed_worker_loses_its_step(belt: Belt, back: bool) -> None:
    """It is given to another worker, or to the same one that came back: a new process does not own the attempt."""
    first = belt.spawn("work", "sleep", "600")
    await belt.pipeline(step("a", "work"))
    await belt.connected("work")
    run = await belt.start()
    await belt.until_step(run, "a", "RUNNING")
    first.kill()
    if back:
        belt.spawn("work", "ok")
        await belt.connected("work")
    else:
        await belt.until_step(run, "a", "QUEUED")
        belt.drive("work", ok)
    ended = await belt.ended(run)
    assert state(ended) == "SUCCEEDED"
    assert [step_reason(attempt) for attempt in ended.steps[0].attempts] == ["WORKER_LOST", "UNSPECIFIED"]
    assert ended.steps[0].max_attempts == 1


async def test_a_step_waits_on_for_its_kind_of_worker_after_a_kill(belt: Belt) -> None:
    """What its selector came to is stored, and so is who would not do."""
    had: list[str] = []

    def drive(system: str) -> None:
        async def work(job: Job) -> None:
            had.append(system)

        belt.drive("build", work, labels={"os": system})

    drive("amd64")
    await belt.connected("build")
    selector = LabelSelector(match_labels={"os": "${{ resource.spec.arch }}64"})
    await belt.pipeline(step("a", "build", worker_selector=selector))
    run = await belt.start(arch="arm")
    await belt.until_step(run, "a", "QUEUED", reason="NO_WORKER")
    await killed(belt)
    waiting = await belt.until_step(run, "a", "QUEUED", reason="NO_WORKER")
    assert waiting.worker_selector.match_labels == {"os": "arm64"}
    # The pipeline is another one by now, and the amd64 worker is there again.
    await belt.pipeline(step("a", "build"))
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"
    drive("arm64")
    assert state(await belt.ended(run)) == "SUCCEEDED"
    assert had == ["amd64", "arm64"]


async def test_f65_what_was_acknowledged_is_there_after_a_kill(belt: Belt) -> None:
    await belt.pipeline(step("a", "nobody"))
    runs = [(await belt.start(resource="shop")).id]
    for _ in range(rounds(belt) - 1):
        runs.append((await belt.client.runs.start("app", "shop")).id)
        await killed(belt)
        assert [run.id async for run in belt.client.runs.list()] == runs[::-1]
    live = [run.id async for run in belt.client.runs.list(states=[RunState.RUN_STATE_RUNNING])]
    assert sorted(live) == runs
    if belt.site.etcd is None:
        await asyncio.to_thread(belt.site.server.kill)
        try:
            for file in (belt.site.server.directory / "data" / "store").glob("*.db"):
                with sqlite3.connect(file) as connection:
                    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
                connection.close()
        finally:
            await asyncio.to_thread(belt.site.server.start)

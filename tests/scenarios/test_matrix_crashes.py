"""A server that is killed while a matrix is expanded and given out: all of it goes on, and nothing counts twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conveyor.sdk import Job, to_struct
from conveyor.v1.run_pb2 import Run
from tests.support.behaviour import Hold
from tests.support.belt import Belt, Site, matrix, one, state, states, step, step_reason
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until

QUICK = ["--session-ttl", "3s", "--lease-ttl", "2s"]
COUNT = 130


@pytest.fixture
def environment() -> dict[str, str]:
    """What the server finds when it starts."""
    return {"CONVEYOR_FAILPOINTS": ""}


@pytest.fixture
def own_site(tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Site]:
    """A server and a broker of the test's own; it is to die at the point that the test names."""
    environment["CONVEYOR_FAILPOINTS"] = request.getfixturevalue("point")
    nats = NatsServer(tmp_path / "nats").start()
    if request.getfixturevalue("store") == "etcd":
        etcd = request.getfixturevalue("etcd_server")
        arguments = ["--etcd", etcd.url, "--nats", nats.url, *QUICK]
        server = ConveyorServer(tmp_path / "server", arguments, mode="start", environment=environment)
    else:
        etcd = None
        server = ConveyorServer(tmp_path / "server", ["--nats", nats.url, *QUICK], environment=environment)
    server.start()
    yield Site(server, nats, etcd)
    if server.running:
        server.kill()
    nats.kill()


@pytest.fixture
async def belt(own_site: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(own_site, tmp_path) as belt:
        yield belt


async def died_and_back(belt: Belt, environment: dict[str, str]) -> None:
    """Wait until the server has died at its point, and start it without one."""
    server = belt.site.server
    await until(lambda: not server.running, "the server to die at its failpoint")
    await asyncio.to_thread(server.kill)
    environment["CONVEYOR_FAILPOINTS"] = ""
    await asyncio.to_thread(server.start)


class Seen:
    """Counts the instances that came, with the number that each was given."""

    def __init__(self) -> None:
        self.came: Counter[tuple[str, int]] = Counter()

    async def __call__(self, job: Job) -> dict[str, object]:
        self.came[job.step, int(job.params["n"])] += 1
        return {"n": job.params["n"]}


async def fan_out(belt: Belt, tested: Seen, transport: str) -> Run:
    """Start a run whose matrix is over the result of its first step."""

    async def plan(job: Job) -> dict[str, object]:
        return {"numbers": [n * n for n in range(COUNT)]}

    belt.drive("plan", plan)
    belt.drive("test", tested, transport=transport)
    await belt.pipeline(
        step("plan"),
        step(
            "test",
            matrix=matrix({"n": "${{ steps.plan.data.numbers }}"}),
            params=to_struct({"n": "${{ matrix.n }}"}),
        ),
        step("sum", "plan", params=to_struct({"n": "${{ size(steps.test.data) }}"})),
    )
    await belt.connected("plan", *(["test"] if transport == "grpc" else []))
    return await belt.start()


def check(ended: Run, tested: Seen) -> None:
    """Each instance was of its own value, and succeeded once."""
    assert state(ended) == "SUCCEEDED"
    assert list(states(ended)) == ["plan", "test", "sum", *(f"test[{i}]" for i in range(COUNT))]
    assert dict(tested.came.keys()) == {f"test[{i}]": i * i for i in range(COUNT)}
    for i in range(COUNT):
        each = one(ended.steps, f"test[{i}]")
        assert each.result.data["n"] == each.matrix["n"] == i * i
        assert [attempt.state for attempt in each.attempts].count(5) == 1


@pytest.mark.parametrize(
    ("store", "point", "transport"),
    [
        # The first commit is that of the expansion: it has room for some of the instances.
        ("sqlite", "engine.before_commit=kill:1", "grpc"),
        ("sqlite", "engine.after_commit=kill:1", "grpc"),
        ("etcd", "engine.after_commit=kill:2", "jetstream"),
    ],
)
async def test_the_server_dies_in_the_expansion(
    belt: Belt, environment: dict[str, str], store: str, point: str, transport: str
) -> None:
    tested = Seen()
    run = await fan_out(belt, tested, transport)
    await died_and_back(belt, environment)
    check(await belt.ended(run), tested)


@pytest.mark.parametrize(("store", "point"), [("sqlite", "")])
async def test_the_server_dies_at_any_time(belt: Belt, store: str, point: str) -> None:
    chance = random.Random(11)
    tested = Seen()
    run = await fan_out(belt, tested, "grpc")
    for _ in range(2):
        await asyncio.sleep(chance.uniform(0.0, 0.1))
        await asyncio.to_thread(belt.site.server.kill)
        await asyncio.to_thread(belt.site.server.start)
    check(await belt.ended(run), tested)


@pytest.mark.parametrize(("store", "point"), [("sqlite", "engine.after_commit=kill:2")])
async def test_an_instance_is_told_to_stop_by_the_next_server(
    belt: Belt, environment: dict[str, str], store: str, point: str
) -> None:
    """The server dies when it has stored that one failed, and told nobody."""
    hold = Hold()

    async def test(job: Job) -> object:
        if job.step == "test[1]":
            await hold.started.wait()
            raise job.fail("it is broken")
        return await hold(job)

    belt.drive("test", test)
    await belt.pipeline(step("test", matrix=matrix({"n": [1, 2]})))
    await belt.connected("test")
    run = await belt.start()
    await died_and_back(belt, environment)
    ended = await belt.ended(run)
    assert states(ended) == {"test": "FAILED", "test[0]": "CANCELLED", "test[1]": "FAILED"}
    assert step_reason(one(ended.steps, "test[0]")) == "INSTANCE_FAIL_FAST"
    assert hold.count == 1

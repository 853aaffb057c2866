"""Servers that die between a run and the runs within it: what one commit promised, whoever is there next keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.behaviour import Counted, Hold, ok
from tests.support.belt import Belt, Site, state, states, step
from tests.support.calls import call, children, there
from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until

QUICK = ["--session-ttl", "3s", "--lease-ttl", "2s"]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A broker for all servers of this module."""
    server = NatsServer(tmp_path_factory.mktemp("calls") / "nats").start()
    yield server
    server.stop()


@pytest.fixture
def point(request: pytest.FixtureRequest) -> str:
    """Where the server is to die; the test says it."""
    return str(request.param)


@pytest.fixture
def environment(point: str) -> dict[str, str]:
    """What the server finds when it starts."""
    return {"CONVEYOR_FAILPOINTS": point}


def dying_at(*points: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("point", points, indirect=True)


@pytest.fixture
async def belt(nats: NatsServer, tmp_path: Path, environment: dict[str, str]) -> AsyncIterator[Belt]:
    """On a server of the test's own."""
    server = ConveyorServer(tmp_path / "server", ["--nats", nats.url, *QUICK], environment=environment)
    await asyncio.to_thread(server.start)
    async with Belt(Site(server, nats), tmp_path) as belt:
        yield belt
    await asyncio.to_thread(server.kill)


async def died(server: ConveyorServer) -> None:
    """Wait until the server has died at its point."""
    await until(lambda: not server.running, "the server to die at its failpoint")
    await asyncio.to_thread(server.kill)  # only to be done with the process that is dead


async def died_and_back(belt: Belt, environment: dict[str, str]) -> None:
    """The same, and start it without one."""
    await died(belt.site.server)
    environment["CONVEYOR_FAILPOINTS"] = ""
    await asyncio.to_thread(belt.site.server.start)


@dying_at(
    "calls.before_creation=kill:1",
    "calls.after_creation=kill:1",
    "calls.child_ended=kill:1",
)
async def test_one_run_is_made_and_told_of_wherever_the_server_dies(belt: Belt, environment: dict[str, str]) -> None:
    counted = Counted(ok)
    belt.drive("work", counted)
    await belt.pipeline(step("inner", "work"), name="within")
    await belt.pipeline(step("before", "work"), call("run", "within"), step("after", "work"))
    await belt.connected("work")
    run = await belt.start()
    await died_and_back(belt, environment)
    ended = await belt.ended(run)
    assert state(ended) == "SUCCEEDED"
    assert counted.steps == ["before", "inner", "after"]
    assert [child.id for child in await children(belt, run)] == [ended.steps[1].child_run]


@pytest.mark.parametrize("force", [False, True])
@dying_at("calls.before_cancel=kill:1")
async def test_a_cancel_reaches_the_run_within_after_a_kill(
    belt: Belt, environment: dict[str, str], force: bool
) -> None:
    """With force the outer run has ended by then: the one within finds that nobody waits for it."""
    hold = Hold()
    belt.drive("work", hold)
    belt.drive("tidy", ok)
    await belt.pipeline(step("inner", "work"), name="within", finally_steps=[step("tidy")])
    await belt.pipeline(call("run", "within"))
    run = await belt.start()
    await hold.started.wait()
    told = asyncio.create_task(belt.client.runs.cancel(run.id, message="enough", force=force))
    await died_and_back(belt, environment)
    await asyncio.gather(told, return_exceptions=True)  # its answer may be lost
    ended = await belt.ended(run)
    assert state(ended) == "CANCELLED"
    child = await belt.ended(ended.steps[0].child_run)
    assert states(child) == {"inner": "CANCELLED", "tidy": "SKIPPED" if force else "SUCCEEDED"}
    assert child.cancel_message == f"step run of run {run.id} was stopped: enough"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    etcd = Etcd(binary(VERSIONS[-1]), tmp_path_factory.mktemp("calls") / "etcd")
    etcd.start()
    yield etcd
    etcd.stop()


@pytest.fixture
async def pair(
    etcd: Etcd, nats: NatsServer, tmp_path: Path, environment: dict[str, str]
) -> AsyncIterator[tuple[Belt, Belt]]:
    """Two servers on one store; the first is to die at the point that the test names, the other has the drivers."""
    arguments = ["--etcd", etcd.url, "--nats", nats.url, *QUICK]
    mortal = ConveyorServer(tmp_path / "mortal", arguments, mode="start", environment=environment)
    other = ConveyorServer(tmp_path / "other", arguments, mode="start")
    for server in (mortal, other):
        await asyncio.to_thread(server.start)
    async with Belt(Site(mortal, nats, etcd), tmp_path) as first:
        address = other.address
        async with Belt(Site(other, nats, etcd), tmp_path, address=address, namespace=first.namespace) as second:
            yield first, second
    for server in (mortal, other):
        await asyncio.to_thread(server.kill)


@dying_at("calls.before_creation=kill:1")
async def test_another_replica_makes_the_run_that_a_dead_one_promised(pair: tuple[Belt, Belt]) -> None:
    mortal, other = pair
    counted = Counted(ok)
    other.drive("work", counted)
    await other.pipeline(step("inner", "work"), name="within")
    await other.pipeline(call("run", "within"), step("after", "work"))
    await other.connected("work")
    run = await mortal.start()
    await died(mortal.site.server)
    ended = await other.ended(run)
    assert (state(ended), counted.steps) == ("SUCCEEDED", ["inner", "after"])
    assert [child.id for child in await children(other, run)] == [ended.steps[0].child_run]


@dying_at("")
async def test_replicas_work_on_one_run_and_those_within(pair: tuple[Belt, Belt]) -> None:
    """Each has a driver; one is told to cancel what the other one moves."""
    first, second = pair
    hold = Hold()
    first.drive("here", ok)
    second.drive("there", hold)
    await first.pipeline(step("a", "here"), step("b", "there"), name="within")
    await first.pipeline(call("run", "within"), step("after", "here"))
    await first.connected("here", "there")
    runs = [await belt.start() for belt in (first, second) for _ in range(3)]
    await until(lambda: hold.count == len(runs), "all runs to be at their second step")
    await second.client.runs.cancel(runs[0].id)
    await first.client.runs.cancel(runs[-1].id)
    for run in (runs[0], runs[-1]):
        ended = await first.ended(run)
        assert (state(ended), states(ended)["run"]) == ("CANCELLED", "CANCELLED")
        assert state(await second.ended(ended.steps[0].child_run)) == "CANCELLED"
    hold.released.set()
    for run in runs[1:-1]:
        ended = await second.ended(run)
        assert state(ended) == "SUCCEEDED"
        child = await there(first, ended.steps[0].child_run)
        assert states(child) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}

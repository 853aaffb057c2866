"""Gates while servers die, and decisions that race each other at two of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conveyor.sdk import Client, ConveyorError, FailedPrecondition
from conveyor.v1.run_pb2 import Run, StepRun
from tests.support.behaviour import Counted
from tests.support.belt import Belt, Site, one, state, states, step
from tests.support.cli import Cli
from tests.support.etcd import Etcd
from tests.support.gates import APPROVED, REJECTED, gate, opened
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until

QUICK = ["--session-ttl", "3s", "--lease-ttl", "2s"]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What a server finds when it starts."""
    return {"CONVEYOR_FAILPOINTS": ""}


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Site]:
    """A server of this module's own, on SQLite, to be killed."""
    directory = tmp_path_factory.mktemp("gates")
    nats = NatsServer(directory / "nats").start()
    server = ConveyorServer(directory / "server", ["--nats", nats.url, *QUICK], environment=environment).start()
    yield Site(server, nats)
    server.kill()
    nats.stop()


@pytest.fixture
async def belt(mortal: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(mortal, tmp_path) as belt:
        yield belt


async def killed(belt: Belt, environment: dict[str, str], points: str = "") -> None:
    """kill -9, and start again."""
    environment["CONVEYOR_FAILPOINTS"] = points
    await asyncio.to_thread(belt.site.server.kill)
    await asyncio.to_thread(belt.site.server.start)


async def test_a_gate_is_approved_by_hand_while_its_server_is_killed(belt: Belt, environment: dict[str, str]) -> None:
    """The command may hear of a lost connection; given again, it counts once."""
    deploy = Counted()
    belt.drive("deploy", deploy)
    cli = Cli(belt.address, belt.namespace)
    await belt.pipeline(gate("ask", message="Deploy?"), step("deploy"))
    for pause in (0.1, 0.5):
        run = await belt.start()
        await belt.until_step(run, "ask", "QUEUED")
        command = cli.start("run", "approve", run.id, "ask", "--as", "ann")
        await asyncio.sleep(pause)
        await killed(belt, environment)
        await asyncio.to_thread(command.communicate, timeout=60)
        if command.returncode:
            again = await asyncio.to_thread(cli, "run", "approve", run.id, "ask", "--as", "ann")
            assert again.code == 0, again.err
        ended = await belt.ended(run)
        assert states(ended) == {"ask": "SUCCEEDED", "deploy": "SUCCEEDED"}
        assert [made.by for made in one(ended.steps, "ask").decisions] == ["ann"]
    assert deploy.count == 2


@pytest.mark.parametrize("point", ["engine.before_commit", "engine.after_commit"])
async def test_a_decision_counts_once_wherever_the_server_dies(
    belt: Belt, environment: dict[str, str], point: str
) -> None:
    deploy = Counted()
    run = await opened(belt, gate("ask", approvals=2), step("deploy"))
    await belt.client.runs.approve(run.id, "ask", "ann")
    # The first commit of the server that starts now is that of the decision.
    await killed(belt, environment, f"{point}=kill:1")
    deciding = asyncio.create_task(belt.client.runs.approve(run.id, "ask", "bob", request_id="bob"))
    await until(lambda: not belt.site.server.running, "the server to die at its failpoint")
    await killed(belt, environment)
    try:
        said = await deciding
    except ConveyorError:
        said = await belt.client.runs.approve(run.id, "ask", "bob", request_id="bob")
    assert [made.by for made in said.decisions] == ["ann", "bob"]
    belt.drive("deploy", deploy)
    assert state(await belt.ended(run)) == "SUCCEEDED"
    assert deploy.count == 1


async def test_a_timeout_that_passes_while_no_server_is_there(belt: Belt, environment: dict[str, str]) -> None:
    run = await opened(belt, gate("ask", timeout=1, default_decision=APPROVED), gate("then"))
    due = one((await belt.client.runs.get(run.id)).steps, "ask").next_time
    await killed(belt, environment)
    then = await belt.until_step(run, "then", "QUEUED")
    assert then.queue_time.ToDatetime() >= due.ToDatetime()
    (made,) = one((await belt.client.runs.get(run.id)).steps, "ask").decisions
    assert (made.decision, made.by) == (APPROVED, "")
    await belt.client.runs.reject(run.id, "then", "ann")
    assert state(await belt.ended(run)) == "FAILED"


# Two replicas


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, etcd_server: Etcd) -> Iterator[list[ConveyorServer]]:
    """Two servers on one etcd and one broker."""
    directory = tmp_path_factory.mktemp("pair")
    nats = NatsServer(directory / "nats").start()
    arguments = ["--etcd", etcd_server.url, "--nats", nats.url, *QUICK]
    servers = [ConveyorServer(directory / str(n), arguments, mode="start") for n in range(2)]
    for server in servers:
        server.spawn()
    for server in servers:
        server.wait_ready()
    yield servers
    for server in servers:
        server.kill()
    nats.stop()


@pytest.fixture
async def both(pair: list[ConveyorServer], tmp_path: Path) -> AsyncIterator[tuple[Belt, Client]]:
    """A namespace as the first server sees it, and a client of the other one."""
    for server in pair:
        if not server.running:
            await asyncio.to_thread(server.start)
    site = Site(pair[0], None)  # type: ignore[arg-type]  # nobody takes part over JetStream
    async with Belt(site, tmp_path) as belt, Client(pair[1].address, namespace=belt.namespace) as other:
        yield belt, other


async def outcomes(*decisions: asyncio.Future[StepRun] | asyncio.Task[StepRun]) -> list[str]:
    """What became of decisions: empty for one that counts, else the reason."""
    said = await asyncio.gather(*decisions, return_exceptions=True)
    for each in said:
        if isinstance(each, BaseException) and not isinstance(each, FailedPrecondition):
            raise each
    return [each.reason if isinstance(each, FailedPrecondition) else "" for each in said]


async def test_decisions_of_two_people_race_at_two_replicas(both: tuple[Belt, Client]) -> None:
    belt, other = both
    await belt.pipeline(gate("ask"))
    for _ in range(5):
        run = await belt.start()
        said = await outcomes(
            asyncio.ensure_future(belt.client.runs.approve(run.id, "ask", "ann")),
            asyncio.ensure_future(other.runs.reject(run.id, "ask", "bob")),
        )
        assert sorted(said) == ["", "RUN_FINISHED"]
        ended = await belt.ended(run)
        (made,) = ended.steps[0].decisions
        won = said.index("")
        assert (made.by, made.decision) == (("ann", APPROVED), ("bob", REJECTED))[won]
        assert state(ended) == ("SUCCEEDED", "FAILED")[won]


async def test_one_person_decides_both_ways_at_two_replicas(both: tuple[Belt, Client]) -> None:
    belt, other = both
    await belt.pipeline(gate("ask", approvals=2))
    for _ in range(5):
        run = await belt.start()
        said = await outcomes(
            asyncio.ensure_future(belt.client.runs.approve(run.id, "ask", "ann")),
            asyncio.ensure_future(other.runs.reject(run.id, "ask", "ann")),
        )
        assert sorted(said) == ["", "ALREADY_DECIDED"]
        assert len((await belt.client.runs.get(run.id)).steps[0].decisions) == 1


async def test_people_approve_at_either_replica(both: tuple[Belt, Client]) -> None:
    belt, other = both
    run: Run = await opened(belt, gate("ask", approvals=10))
    clients = [(belt.client, other)[n % 2] for n in range(10)]
    await asyncio.gather(*(each.runs.approve(run.id, "ask", f"p{n}") for n, each in enumerate(clients)))
    ended = await belt.ended(run)
    assert state(ended) == "SUCCEEDED"
    assert {made.by for made in ended.steps[0].decisions} == {f"p{n}" for n in range(10)}


async def test_the_other_replica_keeps_the_time_of_a_gate(
    both: tuple[Belt, Client], pair: list[ConveyorServer]
) -> None:
    belt, other = both
    run = await opened(belt, gate("ask", timeout=1, default_decision=APPROVED))
    await asyncio.to_thread(pair[0].kill)
    assert state(await other.runs.wait(run.id, 60)) == "SUCCEEDED"

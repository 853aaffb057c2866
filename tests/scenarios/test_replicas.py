"""Three servers on one etcd and one broker: killed, frozen and restarted one by one while runs move."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from conveyor.sdk import Client, Job
from conveyor.v1.pipeline_pb2 import Concurrency, ConcurrencyPolicy, LabelSelector
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run, StepState
from tests.support.behaviour import Counted, Hold, fail, ok, sleep
from tests.support.belt import Belt, Site, one, state, step
from tests.support.cli import Cli
from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until

QUEUE = Concurrency(policy=ConcurrencyPolicy.CONCURRENCY_POLICY_QUEUE)
QUICK = ["--session-ttl", "4s", "--lease-ttl", "2s"]


@dataclass
class Trio:
    """The servers, and what they share."""

    servers: list[ConveyorServer]
    site: Site

    @property
    def addresses(self) -> str:
        """All of them, as CONVEYOR_ADDRESS has it."""
        return ",".join(server.address for server in self.servers)

    async def leader(self, other_than: ConveyorServer | None = None) -> ConveyorServer:
        """The server that looks after what dead ones left, once that is another one."""

        def latest() -> ConveyorServer | None:
            said = {server: re.findall(r"(\S+) \[info +\] leading ", server.log.read_text()) for server in self.servers}
            leading = {server: times[-1] for server, times in said.items() if times}
            last = max(leading, key=lambda server: leading[server], default=None)
            return None if last is other_than else last

        found = await until(latest, "a leader")
        assert found is not None
        return found


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    directory = tmp_path_factory.mktemp("replicas")
    etcd = Etcd(binary(VERSIONS[-1]), directory / "etcd")
    etcd.start()
    nats = NatsServer(directory / "nats").start()
    arguments = ["--etcd", etcd.url, "--nats", nats.url, *QUICK]
    servers = [ConveyorServer(directory / str(n), arguments, mode="start") for n in range(3)]
    for server in servers:
        server.spawn()
    for server in servers:
        server.wait_ready()
    yield Trio(servers, Site(servers[0], nats, etcd))
    for server in servers:
        server.kill()
    nats.stop()
    etcd.stop()


@pytest.fixture
async def belt(trio: Trio, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(trio.site, tmp_path, address=trio.addresses) as belt:
        yield belt


class Load:
    """Clients that start runs one after another, each until it is told to end."""

    def __init__(self, belt: Belt, clients: int) -> None:
        self.runs: list[Run] = []
        self._belt = belt
        self._ending = False
        self._tasks = [asyncio.create_task(self._start()) for _ in range(clients)]

    async def _start(self) -> None:
        while not self._ending:
            self.runs.append(await self._belt.start())
            await asyncio.sleep(0.05)

    async def more(self, count: int) -> None:
        """Wait until so many more runs were acknowledged."""
        wanted = len(self.runs) + count
        await until(lambda: len(self.runs) >= wanted or any(task.done() for task in self._tasks))

    async def ended(self) -> list[Run]:
        """The runs once they have ended. A call that failed is raised here."""
        self._ending = True
        await asyncio.gather(*self._tasks)
        return [await self._belt.ended(run) for run in self.runs]


def told(run: Run) -> list[object]:
    """What is true of a run for good; a late result may still be added to the history of its attempt."""
    return [run.state, run.end_time, run.step_states, [(each.attempt, each.end_time) for each in run.steps]]


async def both_transports(belt: Belt) -> None:
    """Two drivers of each transport; steps that take a moment."""

    async def work(job: Job) -> None:
        job.log("%s", job.step)
        await asyncio.sleep(0.02)

    for _ in range(2):
        belt.drive("grpc", work, slots=16)
        belt.drive("jetstream", work, transport="jetstream", slots=16)
    await belt.pipeline(step("a", "grpc"), step("b", "jetstream"), step("c", "grpc"))
    await belt.connected("grpc", "jetstream")


async def test_each_is_killed_in_turn_while_runs_move(trio: Trio, belt: Belt) -> None:
    await both_transports(belt)
    load = Load(belt, 8)
    for server in trio.servers:
        await load.more(20)
        await asyncio.to_thread(server.kill)
        await load.more(20)
        await asyncio.to_thread(server.start)
    for run in await load.ended():
        assert state(run) == "SUCCEEDED"
        for each in run.steps:
            assert sum(attempt.state == StepState.STEP_STATE_SUCCEEDED for attempt in each.attempts) == 1


async def test_a_rolling_restart_costs_no_call_and_no_attempt(trio: Trio, belt: Belt) -> None:
    await both_transports(belt)
    load = Load(belt, 8)
    for server in trio.servers:
        await load.more(20)
        assert await asyncio.to_thread(server.stop) == 0
        await asyncio.to_thread(server.start)
    await load.more(20)
    for run in await load.ended():
        assert state(run) == "SUCCEEDED"
        assert [len(each.attempts) for each in run.steps] == [1, 1, 1]


async def test_drivers_restarted_one_by_one_finish_and_hand_back(trio: Trio, belt: Belt) -> None:
    """Before a driver ends it finishes what runs; what has not begun goes to the others."""
    grpc = [belt.spawn("grpc", "sleep", "0.05") for _ in range(2)]
    broker = {"CONVEYOR_TRANSPORT": "jetstream", "CONVEYOR_NATS": trio.site.nats.url}
    jetstream = [belt.spawn("jetstream", "sleep", "0.05", **broker) for _ in range(2)]
    await belt.pipeline(step("a", "grpc"), step("b", "jetstream"))
    await belt.connected("grpc", "jetstream")
    load = Load(belt, 4)
    for old, name, environment in ((grpc, "grpc", {}), (jetstream, "jetstream", broker)):
        for process in old:
            await load.more(5)
            belt.spawn(name, "sleep", "0.05", **environment)
            process.terminate()
            assert await asyncio.to_thread(process.wait) == 0
    for run in await load.ended():
        assert state(run) == "SUCCEEDED"
        assert [len(each.attempts) for each in run.steps] == [1, 1]


async def test_workers_of_all_servers_are_chosen_by_label(trio: Trio, belt: Belt) -> None:
    """Whichever server began the run, and the one that has the step's worker is killed once."""
    had: list[tuple[str, str]] = []

    def drive(server: int, system: str) -> None:
        async def work(job: Job) -> None:
            had.append((job.step, system))

        addresses = [each.address for each in (trio.servers[server:] + trio.servers[:server])]
        belt.drive("build", work, labels={"os": system}, address=addresses)

    drive(0, "amd64")
    await belt.connected("build")
    steps = [
        step(name, "build", worker_selector=LabelSelector(match_labels={"os": name})) for name in ("amd64", "arm64")
    ]
    await belt.pipeline(*steps)
    clients = [Client(server.address, namespace=belt.namespace) for server in trio.servers]
    made = [Resource(name=f"app-{n}", definition="app", pipeline="release") for n in range(3)]
    runs = [(await client.resources.create(each))[1] for client, each in zip(clients, made, strict=True)]
    for run, client in zip(runs, clients, strict=True):
        assert run is not None
        waiting = await belt.until_step(run, "arm64", "QUEUED", reason="NO_WORKER")
        assert waiting.message == "no worker with os=arm64 (1 connected: os=amd64)"
        (shown,) = [each for each in (await client.runs.get(run.id)).steps if each.step == "arm64"]
        assert (shown.wait.workers, shown.wait.other_workers) == (0, 1)
    await asyncio.to_thread(trio.servers[1].kill)
    drive(2, "arm64")
    assert [state(await belt.ended(run.id)) for run in runs if run is not None] == ["SUCCEEDED"] * 3
    await asyncio.to_thread(trio.servers[1].start)
    assert set(had) == {("amd64", "amd64"), ("arm64", "arm64")}
    for client in clients:
        await client.close()


async def test_a_watch_and_a_follower_go_on_elsewhere(trio: Trio, belt: Belt) -> None:
    """Nothing is lost, and nothing printed twice, by the commands that were attached to the killed server."""
    hold = Hold()

    async def talk(job: Job) -> None:
        for number in range(20):
            job.log("line %s", number)
            await asyncio.sleep(0.01)

    belt.drive("talk", talk)
    belt.drive("hold", hold)
    await belt.pipeline(step("a", "talk"), step("b", "hold"), step("c", "talk"))
    for first in range(3):
        order = ",".join(server.address for server in trio.servers[first:] + trio.servers[:first])
        hold.started.clear()
        hold.released.clear()
        run = await belt.start()
        watch = Cli(order, belt.namespace).start("run", "watch", run.id)
        follow = Cli(order, belt.namespace).start("run", "logs", "-f", run.id)
        await hold.started.wait()
        await belt.until_step(run, "b", "RUNNING")
        assert watch.stdout is not None
        seen = ""
        while not re.search(r"\bb\b.*RUNNING", seen):
            seen += await asyncio.to_thread(watch.stdout.readline)
        await asyncio.to_thread(trio.servers[first].kill)
        hold.released.set()
        rest, said = await asyncio.to_thread(watch.communicate, None, 60)
        lines, complaints = await asyncio.to_thread(follow.communicate, None, 60)
        await asyncio.to_thread(trio.servers[first].start)
        assert (watch.returncode, follow.returncode) == (0, 0), (said, complaints)
        shown = (seen + rest).splitlines()
        assert len(shown) == len(set(shown)), shown
        texts = [line.rpartition("line ")[2] for line in lines.splitlines() if "line " in line]
        assert texts == [str(number) for number in range(20)] * 2


async def test_a_lane_goes_on_when_the_server_and_the_worker_of_its_first_run_die(trio: Trio, belt: Belt) -> None:
    starter, *others = trio.servers
    worker = belt.spawn("work", "sleep", "600", CONVEYOR_ADDRESS=starter.address)
    await belt.pipeline(step("a", "work"), concurrency=QUEUE)
    await belt.connected("work")
    async with Client(starter.address, namespace=belt.namespace) as client:
        first = await belt.start()
        await belt.until_step(first, "a", "RUNNING")
        runs = [first, await client.runs.start("app", first.resource)]
    async with Client(others[0].address, namespace=belt.namespace) as client:
        runs.append(await client.runs.start("app", first.resource))
    await asyncio.to_thread(starter.kill)
    await asyncio.to_thread(worker.kill)
    counted = Counted(ok)
    belt.drive("work", counted, address=others[0].address)
    ended = [await belt.ended(run) for run in runs]
    await asyncio.to_thread(starter.start)
    assert [state(run) for run in ended] == ["SUCCEEDED"] * 3
    assert [job.run for job in counted.jobs] == [run.id for run in runs]


async def test_runs_of_one_resource_from_all_servers_go_one_after_the_other(trio: Trio, belt: Belt) -> None:
    counted = Counted(sleep(0.05))
    belt.drive("work", counted)
    await belt.pipeline(step("a", "work"), concurrency=QUEUE)
    first = await belt.start()

    async def start_some(server: ConveyorServer) -> list[Run]:
        async with Client(server.address, namespace=belt.namespace) as client:
            return list(await asyncio.gather(*(client.runs.start("app", first.resource) for _ in range(8))))

    runs = [first]
    for made in await asyncio.gather(*map(start_some, trio.servers)):
        runs += made
    await until(lambda: counted.count >= 3)
    await asyncio.to_thread(trio.servers[0].kill)
    ended = sorted([await belt.ended(run) for run in runs], key=lambda run: run.start_time.ToNanoseconds())
    await asyncio.to_thread(trio.servers[0].start)
    assert [state(run) for run in ended] == ["SUCCEEDED"] * 25
    for before, after in pairwise(ended):
        assert before.end_time.ToNanoseconds() <= after.start_time.ToNanoseconds()
    assert len(counted.jobs) == 25


async def test_timers_go_on_when_their_leader_is_killed(trio: Trio, belt: Belt) -> None:
    counted = Counted(fail)
    belt.drive("fail", counted)
    await belt.pipeline(step("a", "fail", attempts=3, backoff=0.5))
    runs = [await belt.start() for _ in range(5)]
    leader = await trio.leader()
    await until(lambda: counted.count >= len(runs))
    await asyncio.to_thread(leader.kill)
    all_ended = [await belt.ended(run) for run in runs]
    await trio.leader(other_than=leader)
    await asyncio.to_thread(leader.start)
    for ended in all_ended:
        assert (state(ended), [each.number for each in ended.steps[0].attempts]) == ("FAILED", [1, 2, 3])


async def test_a_server_that_slept_past_its_lease_changes_nothing(trio: Trio, belt: Belt) -> None:
    frozen, *others = trio.servers
    hold = Hold(cancellable=False)
    belt.drive("work", hold, address=frozen.address)
    await belt.pipeline(step("a", "work"), step("b", "work"))
    run = await belt.start()
    await belt.until_step(run, "a", "RUNNING")
    frozen.freeze()
    async with Belt(trio.site, belt._directory, address=others[0].address, namespace=belt.namespace) as rest:
        # Its worker answers meanwhile, to a server that hears nothing.
        hold.released.set()
        await rest.until_step(run, "a", "QUEUED", "RETRYING")
        rest.drive("work", ok)
        ended = await rest.ended(run)
        frozen.thaw()
        # It has taken part again when it shows what happened meanwhile.
        async with Belt(trio.site, belt._directory, address=frozen.address, namespace=belt.namespace) as thawed:
            seen = await thawed.ended(run)
            assert told(seen) == told(ended)
            assert state(await thawed.ended(await thawed.start())) == "SUCCEEDED"
            assert told(await thawed.client.runs.get(run.id)) == told(ended)
    assert state(ended) == "SUCCEEDED"
    assert [each.state for each in one(seen.steps, "a").attempts] == [6, 5]
    assert [each.state for each in one(seen.steps, "b").attempts] == [5]

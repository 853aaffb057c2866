"""Older drivers and a server process: what they take part in, and what either may lose on the way.

`older` makes such drivers inside of the test. Where `both_peers` is said, it also makes processes of one in Go, which
shares no code with anything here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats import connect
from nats.aio.msg import Msg

from conveyor.sdk import Job
from conveyor.v1.resource_pb2 import Resource
from tests.support.behaviour import Counted, Hold, ok
from tests.support.belt import Belt, Site, matrix, state, states, step
from tests.support.nats import NatsServer
from tests.support.older import Held, Older
from tests.support.older_go import GoOlder
from tests.support.server import ConveyorServer
from tests.support.vectors import vectors
from tests.support.wait import until

MakeOlder = Callable[..., Any]

# The first build of the peer in Go takes a while.
pytestmark = pytest.mark.timeout(300)
both_peers = pytest.mark.parametrize("older", ["python", "go"], indirect=True)


@pytest.fixture
def environment() -> dict[str, str]:
    """What the server finds when it starts; the test may change it."""
    return {"CONVEYOR_FAILPOINTS": ""}


@pytest.fixture
def own_site(tmp_path: Path, environment: dict[str, str]) -> Iterator[Site]:
    """A server that sweeps at its fastest, and a broker; the test may break both."""
    nats = NatsServer(tmp_path / "nats").start()
    server = ConveyorServer(tmp_path / "server", ["--nats", nats.url, "--sweep-period", "1s"], environment=environment)
    yield Site(server, nats)
    server.kill()
    nats.kill()


async def consumer_info(nats: NatsServer, consumer: str) -> dict[str, Any]:
    """What JetStream says of a driver's consumer."""
    async with await connect(nats.url) as client:
        answer = await client.request(f"$JS.API.CONSUMER.INFO.messages.{consumer}")
    info: dict[str, Any] = json.loads(answer.data)
    return info


@asynccontextmanager
async def served(site: Site, directory: Path) -> AsyncIterator[Belt]:
    """Namespace `default`, the only one that older drivers know."""
    await asyncio.to_thread(site.server.start)
    async with Belt(site, directory, namespace="default") as belt:
        yield belt


@pytest.fixture
async def belt(own_site: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    async with served(own_site, tmp_path) as belt:
        yield belt


@pytest.fixture
async def older(own_site: Site, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[MakeOlder]:
    made: list[Older | GoOlder] = []
    peer: Callable[..., Older | GoOlder] = Older
    if getattr(request, "param", "python") == "go":
        peer = partial(GoOlder, directory=tmp_path)

    def make(name: str, *arguments: Any, **kind: Any) -> Older | GoOlder:
        made.append(peer(own_site.nats.url, name, *arguments, **kind))
        return made[-1]

    yield make
    await asyncio.gather(*(driver.stop() for driver in made))


@both_peers
async def test_older_and_newer_drivers_in_one_pipeline(belt: Belt, older: MakeOlder) -> None:
    """By JetStream and by gRPC, one twice, one that drops the metadata, and two that share a consumer."""
    first, mute = await older("first").start(), await older("mute", echo=False).start()
    shared = [await older("shared").start() for _ in range(2)]
    grpc, js = Counted(), Counted()
    belt.drive("grpc", grpc)
    belt.drive("js", js, transport="jetstream")
    names = ["first", "mute", "grpc", "shared", "js", "first", "mute", "shared"]
    await belt.pipeline(*(step(f"s{i}", name) for i, name in enumerate(names)))
    runs = await asyncio.gather(*(belt.start() for _ in range(10)))
    ended = await asyncio.gather(*(belt.ended(run) for run in runs))
    assert {state(run) for run in ended} == {"SUCCEEDED"}
    ids = sorted(run.id for run in runs)
    for driver in (first, mute):
        assert sorted(driver.runs) == sorted(ids * 2)
    assert sorted(shared[0].runs + shared[1].runs) == sorted(ids * 2)
    assert sorted(job.run for job in grpc.jobs) == ids
    assert sorted(job.run for job in js.jobs) == ids
    assert set(js.jobs[0].results) == {"s0", "s1", "s2", "s3"}


@both_peers
async def test_the_instances_of_a_matrix(belt: Belt, older: MakeOlder) -> None:
    """A driver that drops the metadata says not which instance it means: it gets one at a time."""
    first, mute = await older("first").start(), await older("mute", echo=False).start()
    numbers = list(range(5))
    await belt.pipeline(
        step("all", "first", matrix=matrix({"n": numbers})),
        step("each", "mute", matrix=matrix({"n": numbers}, max_parallel=1)),
        step("after", "first"),
    )
    run = await belt.ended(await belt.start())
    assert set(states(run).values()) == {"SUCCEEDED"}
    assert len(run.steps) == 13
    assert (len(first.runs), len(mute.runs)) == (6, 5)


@both_peers
async def test_a_driver_that_was_away_while_work_was_waiting(belt: Belt, older: MakeOlder) -> None:
    before = await older("a", Held()).start()
    await belt.pipeline(step("s", "a"), step("t", "a"))
    running = await belt.start()
    await until(lambda: before.tickets)
    await belt.until_step(running, "s", "RUNNING")
    await before.stop()

    async def left() -> dict[str, Any] | None:
        info = await consumer_info(belt.site.nats, "a")
        return None if info["num_waiting"] else info

    # JetStream would delete what it asked for after 5 s; the stream's own limit keeps it.
    info: dict[str, Any] | None = await until(left, "the broker to see that nobody pulls")
    assert info is not None
    assert timedelta(microseconds=info["config"]["inactive_threshold"] / 1000) == timedelta(days=1)
    waiting = [await belt.start() for _ in range(3)]
    for run in waiting:
        await belt.until_step(run, "s", "QUEUED")
    after = await older("a").start()
    await after.answer(before.tickets[0], {"success": True})
    for run in [running, *waiting]:
        ended = await belt.ended(run)
        assert (state(ended), [each.attempt for each in ended.steps]) == ("SUCCEEDED", [1, 1])
    assert before.steps + sorted(after.steps) == ["s"] * 4 + ["t"] * 4
    assert sorted(after.runs) == sorted([running.id, *[run.id for run in waiting] * 2])


async def test_a_driver_that_was_away_finds_its_work(belt: Belt, older: MakeOlder) -> None:
    """It begins where it was, with what was published for it and with what came meanwhile."""
    held = Held()
    before = await older("a", held).start()
    await belt.pipeline(step("s", "a"), step("t", "a"))
    running = await belt.start()
    await until(lambda: before.tickets)
    await belt.until_step(running, "s", "RUNNING")
    waiting = await asyncio.gather(*(belt.start() for _ in range(3)))
    answers = list(before.tickets)
    await before.stop()
    for run in waiting:
        await belt.until_step(run, "s", "QUEUED", "RUNNING")
    taken = [ticket["run_id"] for ticket in before.tickets[1:]]
    after = await older("a").start()
    await after.answer(answers[0], {"success": True})
    for run in [running, *(run for run in waiting if run.id not in taken)]:
        assert state(await belt.ended(run)) == "SUCCEEDED"
    assert (before.runs + after.runs).count(running.id) == 2
    for run in waiting:
        if run.id not in taken:
            assert after.runs.count(run.id) == 2


@both_peers
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_broker_that_ends_while_work_waits_and_runs(belt: Belt, older: MakeOlder, how: str) -> None:
    held, quick = Held(), await older("quick").start()
    slow = await older("slow", held).start()
    await belt.pipeline(step("s", "quick"), step("t", "slow"), step("u", "quick"))
    runs = [await belt.start() for _ in range(3)]
    await until(lambda: held.started)
    await belt.until_step(runs[0], "t", "RUNNING")
    nats = belt.site.nats
    await asyncio.to_thread(nats.stop if how == "stop" else nats.kill)
    await belt.until_broker_is_missed()
    late = await belt.start()
    await belt.until_step(late, "s", "QUEUED", reason="BROKER_UNAVAILABLE")
    held.released.set()
    await asyncio.to_thread(nats.start)
    for run in [*runs, late]:
        # A ticket whose ack a killed broker lost comes again after 30 s, and holds those behind it up until then.
        ended = await belt.ended(run, within=200)
        assert state(ended) == "SUCCEEDED"
        assert [each.attempt for each in ended.steps] == [1, 1, 1]
    if how == "stop":
        assert sorted(slow.runs) == sorted(run.id for run in [*runs, late])
        assert sorted(quick.runs) == sorted([run.id for run in [*runs, late]] * 2)


@pytest.mark.parametrize("what", ["STREAM.DELETE.messages", "CONSUMER.DELETE.messages.a"])
async def test_what_is_deleted_on_the_broker_comes_again(belt: Belt, older: MakeOlder, what: str) -> None:
    held = Held()
    driver = await older("a", held).start()
    await belt.pipeline(step("s", "a"), step("t", "a"))
    run = await belt.start()
    await belt.until_step(run, "s", "RUNNING")
    await driver.call(what)
    held.released.set()
    await driver.create()
    assert state(await belt.ended(run)) == "SUCCEEDED"
    assert driver.steps == ["s", "t"]


@pytest.mark.parametrize("point", ["engine.before_publish", "engine.after_publish"])
async def test_a_server_killed_around_a_publish_gives_nothing_out_twice(
    own_site: Site, older: MakeOlder, tmp_path: Path, environment: dict[str, str], point: str
) -> None:
    server = own_site.server
    environment["CONVEYOR_FAILPOINTS"] = f"{point}=kill:2"
    async with served(own_site, tmp_path) as belt:
        driver = await older("a").start()
        await belt.pipeline(step("s", "a"), step("t", "a"), step("u", "a"))
        run = await belt.start()
        await until(lambda: not server.running)
        await asyncio.to_thread(server.kill)  # only to be done with the process that is dead
        environment["CONVEYOR_FAILPOINTS"] = ""
        await asyncio.to_thread(server.start)
        ended = await belt.ended(run)
        assert state(ended) == "SUCCEEDED"
        assert driver.steps == ["s", "t", "u"]


@both_peers
async def test_a_server_killed_at_any_time_loses_and_repeats_nothing(belt: Belt, older: MakeOlder) -> None:
    drivers = [await older(name).start() for name in "ab"]
    await belt.pipeline(step("s", "a"), step("t", "b"), step("u", "a"))
    runs = [await belt.start() for _ in range(10)]
    for _ in range(3):
        await asyncio.to_thread(belt.site.server.kill)
        await asyncio.to_thread(belt.site.server.start)
        runs += [await belt.start() for _ in range(5)]
    for run in runs:
        assert state(await belt.ended(run)) == "SUCCEEDED"
    ids = [run.id for run in runs]
    assert sorted(drivers[0].runs) == sorted(ids * 2)
    assert sorted(drivers[1].runs) == sorted(ids)


async def test_a_cancel_takes_back_what_waits_and_tells_who_works(belt: Belt, older: MakeOlder) -> None:
    held = Held()
    driver = await older("a", held).start()
    await belt.pipeline(step("s", "a"))
    run = await belt.start()
    await belt.until_step(run, "s", "RUNNING")
    await belt.client.runs.cancel(run.id, message="enough")
    await until(lambda: driver.told)
    subject, told = driver.told[0]
    assert (subject, told["message"]) == (f"cancel.{run.id}.s", "enough")
    await driver.answer(driver.tickets[0], {"success": False, "outcome": "CANCELLED", "message": "stopped"})
    ended = await belt.ended(run)
    assert (state(ended), states(ended)) == ("CANCELLED", {"s": "CANCELLED"})


async def test_a_worker_by_grpc_takes_over_from_a_driver_that_is_away(belt: Belt, older: MakeOlder) -> None:
    driver = await older("a").connect()
    await driver.pull(1)
    await belt.pipeline(step("s", "a"))
    first = await belt.start()
    assert state(await belt.ended(first)) == "SUCCEEDED"
    second = await belt.start()
    worker = Counted(ok)
    belt.drive("a", worker)
    assert state(await belt.ended(second)) == "SUCCEEDED"
    assert [job.run for job in worker.jobs] == [second.id]
    assert driver.runs == [first.id]


@both_peers
async def test_without_the_filter_of_tickets_there_are_broadcasts_only(belt: Belt, older: MakeOlder) -> None:
    driver = await older("a", filters=("resources.app",)).start()
    await belt.pipeline(step("s", "a"))
    waiting = await belt.start()
    queued = await belt.until_step(waiting, "s", "QUEUED", reason="CONSUMER_MISMATCH")
    assert queued.message == "JetStream consumer a has no filter that matches drivers.a.resources.app"
    await belt.connected("a")
    _, broadcast = await belt.client.resources.create(Resource(name="alone", definition="app"))
    assert broadcast is not None
    assert state(await belt.ended(broadcast)) == "SUCCEEDED"
    assert driver.runs == [broadcast.id]


async def test_the_peer_in_go_says_what_was_recorded(belt: Belt, own_site: Site, tmp_path: Path) -> None:
    """But for names and times, and what our tickets have in their metadata besides. Its line is in the log once."""
    heard: dict[str, dict[str, Any]] = {}

    async def hear(message: Msg) -> None:
        heard[message.subject] = json.loads(message.data)

    async with await connect(own_site.nats.url) as client:
        for subject in ("$JS.API.CONSUMER.CREATE.messages.>", "logs.>", "live.logs.>", "pipelines.driver.result"):
            await client.subscribe(subject, cb=hear)
        await client.flush()
        driver = await GoOlder(own_site.nats.url, "d1", directory=tmp_path).start()
        await belt.pipeline(step("s", "d1"), name="p3")
        run = await belt.ended(await belt.start("p3", resource="run1", x="a"))
        await until(lambda: len(heard) == 4, "all that it says")
        await driver.stop()
    assert (state(run), run.steps[0].result.message) == ("SUCCEEDED", "ok")
    assert await belt.lines(run) == ["hello from d1"]

    (asked,) = vectors("js-api-request", "$JS.API.CONSUMER.CREATE.messages.d1")
    assert heard[asked["subject"]] == json.loads(json.dumps(asked["body"]).replace("load", "app"))
    told = heard["pipelines.driver.result"]
    recorded = deepcopy(vectors("js-publish", "pipelines.driver.result")[0]["body"])
    assert set(told["resource"]["metadata"]) > set(recorded["resource"]["metadata"])
    for body in (told, recorded):
        body["resource"] |= {"id": "", "metadata": {}, "resource": ""}
    assert told == recorded | {"run_id": run.id}
    line = vectors("js-publish", "logs.")[0]["body"] | {"runid": run.id}
    for subject in (f"logs.{run.id}", f"live.logs.{run.id}.d1"):
        assert heard[subject] == line | {"timestamp": heard[subject]["timestamp"]}


async def test_newer_drivers_over_jetstream_in_a_namespace(belt: Belt, own_site: Site, tmp_path: Path) -> None:
    deadlines: list[float] = []

    async def handler(job: Job) -> None:
        assert job.deadline is not None
        deadlines.append(job.deadline.timestamp())
        job.log("at it")

    async with Belt(own_site, tmp_path) as other:
        other.drive("a", handler, transport="jetstream")
        hold = Hold()
        other.drive("b", hold, transport="jetstream")
        await other.pipeline(step("s", "a"), step("t", "b"))
        run = await other.start()
        await until(lambda: hold.jobs)
        assert await other.lines(run, step="s") == ["at it"]
        await other.client.runs.cancel(run.id)
        ended = await other.ended(run)
        assert (state(ended), states(ended)) == ("CANCELLED", {"s": "SUCCEEDED", "t": "CANCELLED"})
        # The run may end before it is seen that the ticket was delivered; its driver is told then.
        await until(lambda: hold.jobs[0].cancelled)
        assert len(deadlines) == 1

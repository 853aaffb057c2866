"""Schedules over kills, time away, restores and several servers: each time starts one run, or is counted as missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from conveyor.v1.schedule_pb2 import MissedRuns, Overlap, Schedule
from tests.support.behaviour import Counted, Hold, ok
from tests.support.belt import Belt, Site, reason
from tests.support.cli import Cli
from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.nats import NatsServer
from tests.support.schedules import HOUR, MINUTE, TurnedClock, decided, runs, schedule, started
from tests.support.server import ConveyorServer
from tests.support.wait import until

QUICK = ["--session-ttl", "3s", "--lease-ttl", "2s"]


@pytest.fixture
def clock(tmp_path: Path) -> TurnedClock:
    return TurnedClock(tmp_path)


@pytest.fixture
def point() -> str:
    """Where the server is to die; tests name it by a parameter."""
    return ""


@pytest.fixture
def environment(point: str) -> dict[str, str]:
    """What the server finds when it starts."""
    return {"CONVEYOR_FAILPOINTS": point}


@pytest.fixture
def site(tmp_path: Path, clock: TurnedClock, environment: dict[str, str]) -> Iterator[Site]:
    """A server of the test's own."""
    nats = NatsServer(tmp_path / "nats").start()
    arguments = ["--nats", nats.url, *QUICK]
    server = ConveyorServer(tmp_path / "server", arguments, environment=environment, program=clock.program).start()
    yield Site(server, nats)
    if server.running:
        server.kill()
    nats.stop()


@pytest.fixture
async def belt(site: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(site, tmp_path) as belt:
        yield belt


async def died_and_back(belt: Belt, environment: dict[str, str]) -> None:
    """Wait until the server has died at its point, and start it without one."""
    server = belt.site.server
    await until(lambda: not server.running, "the server to die at its failpoint")
    await asyncio.to_thread(server.kill)  # only to be done with the process that is dead
    environment["CONVEYOR_FAILPOINTS"] = ""
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize("point", ["schedules.before_fire=kill", "schedules.after_fire=kill"])
async def test_a_kill_around_a_run_makes_no_second_one(
    belt: Belt, clock: TurnedClock, environment: dict[str, str]
) -> None:
    counted = Counted(ok)
    belt.drive("pack", counted)
    await schedule(belt)
    await belt.connected("pack")
    clock.turn(HOUR)
    await died_and_back(belt, environment)
    (run,) = await started(belt, 1)
    await belt.ended(run)
    assert (await decided(belt, clock.hour)).status.last_time.ToSeconds() == clock.hour
    clock.turn(HOUR)
    await belt.ended((await started(belt, 2))[-1])
    assert counted.count == 2


@pytest.mark.parametrize("point", ["schedules.after_fire=kill:2"])
async def test_who_is_replaced_is_cancelled_by_the_next_server(
    belt: Belt, clock: TurnedClock, environment: dict[str, str]
) -> None:
    hold = Hold()
    belt.drive("pack", hold)
    await schedule(belt, overlap=Overlap.OVERLAP_REPLACE)
    clock.turn(HOUR)
    (first,) = await started(belt, 1)
    clock.turn(HOUR)
    await died_and_back(belt, environment)
    _, second = await started(belt, 2)
    assert reason(await belt.ended(first)) == "REPLACED"
    hold.released.set()
    await belt.ended(second)


async def test_what_passed_while_no_server_was_there(belt: Belt, clock: TurnedClock, tmp_path: Path) -> None:
    belt.drive("pack", ok)
    day = timedelta(days=1)
    allow = Overlap.OVERLAP_ALLOW
    await schedule(belt, name="late")
    await schedule(belt, name="once", deadline=day)
    await schedule(belt, name="all", missed=MissedRuns.MISSED_RUNS_RUN_ALL, deadline=day, overlap=allow)
    await schedule(belt, name="none", missed=MissedRuns.MISSED_RUNS_SKIP)
    await schedule(belt, name="paused", deadline=day, paused=True)
    backup = tmp_path / "backup"
    data = str(belt.site.server.directory / "data")
    done = await asyncio.to_thread(Cli(), "server", "backup", "--data-dir", data, str(backup))
    assert done.code == 0, done.err
    await asyncio.to_thread(belt.site.server.kill)
    clock.turn(3 * HOUR + 10 * MINUTE)
    await asyncio.to_thread(belt.site.server.start)

    async def counts(name: str) -> tuple[int, int]:
        status = (await decided(belt, clock.hour, name)).status
        return status.started, status.missed

    assert {name: await counts(name) for name in ("late", "once", "all", "none")} == {
        "late": (0, 3),
        "once": (1, 2),
        "all": (3, 0),
        "none": (0, 3),
    }
    due = [run.schedule_time.ToSeconds() for run in await runs(belt, "all")]
    assert due == [clock.hour - 2 * HOUR, clock.hour - HOUR, clock.hour]
    assert await runs(belt, "paused") == []

    # Restored to what was before, nothing is made up for a second time.
    await asyncio.to_thread(belt.site.server.kill)
    done = await asyncio.to_thread(Cli(), "server", "restore", "--data-dir", data, str(backup), "--force")
    assert done.code == 0, done.err
    await asyncio.to_thread(belt.site.server.start)
    assert {name: await counts(name) for name in ("late", "once", "all", "none")} == dict.fromkeys(
        ("late", "once", "all", "none"), (0, 0)
    )
    clock.turn(HOUR)
    assert await counts("all") == (1, 0)


@pytest.fixture
def pair(tmp_path: Path, clock: TurnedClock) -> Iterator[list[Site]]:
    """Two servers on one etcd and one broker."""
    etcd = Etcd(binary(VERSIONS[-1]), tmp_path / "etcd")
    etcd.start()
    nats = NatsServer(tmp_path / "nats").start()
    arguments = ["--etcd", etcd.url, "--nats", nats.url, *QUICK]
    servers = [ConveyorServer(tmp_path / name, arguments, mode="start", program=clock.program) for name in ("a", "b")]
    for server in servers:
        server.spawn()
    for server in servers:
        server.wait_ready()
    yield [Site(server, nats, etcd) for server in servers]
    for server in servers:
        if server.running:
            server.kill()
    nats.stop()
    etcd.stop()


async def test_two_servers_start_each_run_once_and_one_goes_on_alone(
    pair: list[Site], clock: TurnedClock, tmp_path: Path
) -> None:
    addresses = ",".join(site.server.address for site in pair)
    async with Belt(pair[0], tmp_path, address=addresses) as belt:
        belt.drive("pack", ok)
        await schedule(belt)
        one = Belt(pair[1], tmp_path, namespace=belt.namespace)
        async with one:
            # A change at one of them takes effect at whichever leads.
            await one.client.schedules.create(Schedule(name="other", definition="app", resource="shop", cron="@hourly"))
            for count in (1, 2):
                clock.turn(HOUR)
                for name in ("nightly", "other"):
                    await belt.ended((await started(belt, count, name))[-1])
        leader = next(site for site in pair if " leading " in site.server.log.read_text())
        await asyncio.to_thread(leader.server.kill)
        clock.turn(HOUR)
        for name in ("nightly", "other"):
            await belt.ended((await started(belt, 3, name))[-1])
            status = (await decided(belt, clock.hour, name)).status
            assert (status.started, status.missed, status.failed) == (3, 0, 0)

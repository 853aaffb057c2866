"""How a server starts, what is in its way, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conveyor.sdk import Client, Unavailable
from conveyor.v1.run_pb2 import RunState
from tests.support.behaviour import Counted, Hold, ok
from tests.support.belt import Belt, Site, one, state, step
from tests.support.cli import Cli
from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.metrics import scrape
from tests.support.nats import NatsServer
from tests.support.ports import free_port
from tests.support.server import ConveyorServer
from tests.support.wait import until, until_sync


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[ConveyorServer]:
    """`conveyor server dev` with its own broker."""
    server = ConveyorServer(tmp_path / "dev").start()
    yield server
    server.kill()


def broker_pid(server: ConveyorServer) -> int:
    return int((server.directory / "data" / "nats" / "nats-server.pid").read_text())


def lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_what_is_taken_is_told(dev: ConveyorServer, tmp_path: Path) -> None:
    cli = Cli()
    port = cli("server", "dev", "--data-dir", str(tmp_path / "other"), "--listen", dev.address)
    assert (port.code, port.out) == (1, "")
    assert f"error: cannot listen on {dev.address}" in port.err
    assert "Traceback" not in port.err
    data = cli(
        "server", "dev", "--data-dir", str(dev.directory / "data"), "--listen", "127.0.0.1:0", "--metrics-listen", ""
    )
    assert (data.code, data.out) == (1, "")
    assert str(dev.directory / "data") in data.err
    assert "Traceback" not in data.err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        metrics = cli(
            *("server", "dev", "--data-dir", str(tmp_path / "third"), "--listen", "127.0.0.1:0"),
            *("--metrics-listen", address),
        )
    assert (metrics.code, metrics.out) == (1, "")
    assert "--metrics-listen" in metrics.err
    both = cli("server", "dev", "--ephemeral", "--data-dir", str(tmp_path / "fourth"))
    assert (both.code, "exclude each other" in both.err) == (1, True)
    # It goes on serving.
    assert Cli(dev.address)("list", "pipelines").code == 0


async def test_a_restart_goes_on_where_it_was(dev: ConveyorServer, tmp_path: Path) -> None:
    site = Site(dev, NatsServer(tmp_path / "unused"))
    async with Belt(site, tmp_path) as belt:
        belt.drive("a", ok)
        await belt.pipeline(step("a"), step("b"))
        run = await belt.start(size=3)
        await belt.until_step(run, "b", "QUEUED")
        assert await asyncio.to_thread(dev.stop) == 0
        await asyncio.to_thread(dev.start)
        kept = await belt.client.runs.get(run.id)
        assert (state(kept), one(kept.steps, "a").state) == ("RUNNING", 5)
        belt.drive("b", ok)
        assert state(await belt.ended(run)) == "SUCCEEDED"


def test_an_ephemeral_server_leaves_nothing(tmp_path: Path) -> None:
    places = tmp_path / "tmp"
    places.mkdir()
    environment = {"TMPDIR": str(places), "XDG_DATA_HOME": str(tmp_path / "home")}
    process = Cli(**environment).start(
        *("server", "dev", "--ephemeral", "--listen", "127.0.0.1:0", "--metrics-listen", "")
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready: ")
    assert list(places.glob("conveyor-*"))
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert list(places.iterdir()) == []
    assert not (tmp_path / "home").exists()


def test_data_is_kept_below_the_data_home(tmp_path: Path) -> None:
    process = Cli(XDG_DATA_HOME=str(tmp_path)).start("server", "dev", "--listen", "127.0.0.1:0", "--metrics-listen", "")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready: ")
    process.terminate()
    process.communicate(timeout=60)
    assert (tmp_path / "conveyor" / "store" / "conveyor.db").exists()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_broker_goes_with_its_server(dev: ConveyorServer, how: str) -> None:
    pid = broker_pid(dev)
    assert lives(pid)
    getattr(dev, how)()
    until_sync(lambda: not lives(pid), "the broker to end")


async def test_a_broker_that_dies_is_started_again(dev: ConveyorServer, tmp_path: Path) -> None:
    pid = broker_pid(dev)
    os.kill(pid, 9)
    await until(lambda: broker_pid(dev) != pid and lives(broker_pid(dev)), "another broker")

    async with Client(dev.address) as client:

        async def available() -> bool:
            return (await client.server_info()).broker_available

        await until(available, "the server to have it")


async def test_etcd_and_nats_are_away_at_the_start(tmp_path: Path) -> None:
    """Without its store it says so to everybody; without its broker gRPC drivers go on."""
    etcd = Etcd(binary(VERSIONS[-1]), tmp_path / "etcd")
    await asyncio.to_thread(etcd.start)
    await asyncio.to_thread(etcd.stop)
    nats = NatsServer(tmp_path / "nats")
    await asyncio.to_thread(nats.start)
    await asyncio.to_thread(nats.stop)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = ConveyorServer(tmp_path / "server", ["--etcd", etcd.url, "--nats", nats.url], mode="start")
    server.address = address
    await asyncio.to_thread(server.spawn)
    try:
        async with Belt(Site(server, nats, etcd), tmp_path) as belt:

            async def told() -> bool:
                try:
                    await belt.client.server_info()
                except Unavailable as error:
                    return error.reason == "STORE_UNAVAILABLE"
                return False

            await until(told, "calls to be told of the store")
            async with grpc.aio.insecure_channel(address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                health = await check(health_pb2.HealthCheckRequest())
                assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
            await until(lambda: "etcd_unavailable" in server.log.read_text(), "the log to tell of it")
            await asyncio.to_thread(etcd.start)
            await asyncio.to_thread(server.wait_ready)
            later = Counted()
            belt.drive("here", ok)
            belt.drive("there", later, transport="jetstream")
            await belt.pipeline(step("a", "here"), step("b", "there"))
            info = await belt.client.server_info()
            assert (info.store, info.store_available, info.broker_available) == ("etcd", True, False)
            run = await belt.start()
            await belt.until_step(run, "a", "SUCCEEDED")
            await asyncio.to_thread(nats.start)
            assert state(await belt.ended(run)) == "SUCCEEDED"
            assert later.count == 1
    finally:
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(nats.stop)
        await asyncio.to_thread(etcd.stop)


KILLS_ETCD = """
import functools, os, pkgutil, select, signal

from conveyor.cli.main import main

place, name = os.environ["AT"].rsplit(".", 1)
owner, etcd = pkgutil.resolve_name(place), [int(os.environ["ETCD"])]
read = getattr(owner, name)

@functools.wraps(read)
async def after_the_kill(*arguments):
    while etcd:
        process = os.pidfd_open(etcd.pop())
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [])
    return await read(*arguments)

setattr(owner, name, after_the_kill)
main()
"""


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(binary(VERSIONS[-1]), tmp_path / "etcd")
    server.start()
    yield server
    server.stop()


@pytest.fixture(
    params=[
        "conveyor.watch.feed.Feed.start",
        "conveyor.engine.remote.SessionsWatch.read",
        "conveyor.engine.restored.take_up",
    ]
)
def bereft(request: pytest.FixtureRequest, tmp_path: Path, etcd: Etcd) -> Iterator[ConveyorServer]:
    """A server whose etcd, which answered when it was opened, is killed before it is read from."""
    server = ConveyorServer(
        tmp_path / "server",
        ["--etcd", etcd.url, "--nats", f"nats://127.0.0.1:{free_port()}"],
        mode="start",
        environment={"AT": request.param, "ETCD": str(etcd.pid)},
        program=[sys.executable, "-c", KILLS_ETCD],
    )
    server.address = f"127.0.0.1:{free_port()}"
    server.spawn()
    until_sync(lambda: "store_unavailable" in server.log.read_text() or not server.running, "the log to tell of it")
    yield server
    server.kill()


async def test_etcd_that_is_killed_during_the_start_is_waited_for(bereft: ConveyorServer, etcd: Etcd) -> None:
    async with Client(bereft.address) as client:
        with pytest.raises(Unavailable) as caught:
            await client.server_info()
        assert caught.value.reason == "STORE_UNAVAILABLE"
        await asyncio.to_thread(etcd.kill)  # It is dead; that is for the helper to know.
        await asyncio.to_thread(etcd.start)
        await asyncio.to_thread(bereft.wait_ready)
        assert (await client.server_info()).store_available
    # However often it was tried.
    assert bereft.log.read_text().count("store_unavailable") == 1
    assert await asyncio.to_thread(bereft.stop) == 0


def test_a_server_that_waits_for_etcd_ends_when_it_is_told(bereft: ConveyorServer) -> None:
    assert bereft.running
    assert bereft.stop() == 0
    assert "Traceback" not in bereft.log.read_text()


async def test_metrics_count_without_names(tmp_path: Path) -> None:
    server = ConveyorServer(tmp_path / "server", ["--metrics-listen", "127.0.0.1:0"])
    await asyncio.to_thread(server.start)
    try:
        async with Belt(Site(server, NatsServer(tmp_path / "unused")), tmp_path) as belt:
            hold = Hold()
            belt.drive("hold", hold)
            await belt.pipeline(step("a", "hold"))
            run = await belt.start()
            await hold.started.wait()
            found = await asyncio.to_thread(scrape, server)
            assert (found["conveyor_active_runs"], found["conveyor_workers"]) == (1, 1)
            hold.released.set()
            ended = await belt.ended(run)
            assert ended.state == RunState.RUN_STATE_SUCCEEDED
            found = await asyncio.to_thread(scrape, server)
        assert found["conveyor_runs_created_total"] == 1
        assert found['conveyor_runs_finished_total{state="succeeded"}'] == 1
        assert found['conveyor_results_total{disposition="accepted"}'] == 1
        assert found["conveyor_queue_seconds_count"] == 1
        assert found["conveyor_commit_seconds_count"] > 0
        for name in (run.id, belt.namespace, "hold", "release"):
            assert not any(name in sample for sample in found)
    finally:
        await asyncio.to_thread(server.kill)

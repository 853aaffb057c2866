"""What the same machine does without Conveyor: taken in the same run, so that a ratio holds when its speed drifts."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import nats

from bench.store_floor import latency, throughput
from conveyor.store import open_etcd, open_sqlite
from tests.support.etcd import Etcd, find
from tests.support.nats import NatsServer

_SECONDS = 3.0


def commits_per_s(store: str) -> float:
    """Commits per second of the bare store."""

    async def measure(folder: Path) -> float:
        if store == "sqlite":
            opened = await open_sqlite(folder / "store")
            try:
                return await throughput(opened, 64, _SECONDS)
            finally:
                await opened.close()
        program = find("3.7") or find("3.4")
        if program is None:
            raise SystemExit("no etcd is here: run scripts/fetch_etcd.py")
        etcd = Etcd(program, folder / "etcd")
        try:
            await asyncio.to_thread(etcd.start)
            remote = await open_etcd([etcd.url])
            try:
                return await throughput(remote, 64, _SECONDS)
            finally:
                await remote.close()
        finally:
            await asyncio.to_thread(etcd.stop)

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(measure(Path(folder)))


def commit_p50_ms() -> float:
    """One commit of the bare SQLite store, alone."""

    async def measure(folder: Path) -> float:
        store = await open_sqlite(folder / "store")
        try:
            await latency(store, 50)
            return statistics.median(await latency(store, 300)) * 1e3
        finally:
            await store.close()

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(measure(Path(folder)))


def jetstream_publishes_per_s() -> float:
    """Messages per second that one process publishes and has acknowledged, 64 at a time."""

    async def measure(url: str) -> float:
        connection = await nats.connect(url)
        stream = connection.jetstream()
        await stream.add_stream(name="floor", subjects=["floor"])
        end = time.perf_counter() + _SECONDS
        count = 0

        async def publish() -> None:
            nonlocal count
            while time.perf_counter() < end:
                await stream.publish("floor", b"x" * 500)
                count += 1

        await asyncio.gather(*(publish() for _ in range(64)))
        await connection.close()
        return count / _SECONDS

    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        server.start()
        try:
            return asyncio.run(measure(server.url))
        finally:
            server.stop()


def echo_p50_ms() -> float:
    """There and back on one gRPC stream between two processes."""
    code = "import asyncio, bench.floors as f; asyncio.run(f.serve_echo())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        try:
            if child.stdout is None:
                raise RuntimeError("the echo server has no output")
            return asyncio.run(_measure_echo(int(child.stdout.readline())))
        finally:
            child.kill()


async def _measure_echo(port: int) -> float:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream("/floor/Echo")()
        taken = []
        for _ in range(1000):
            began = time.perf_counter()
            await call.write(b"x" * 200)
            await call.read()
            taken.append(time.perf_counter() - began)
        call.cancel()
    return statistics.median(taken[100:]) * 1e3


async def serve_echo() -> None:
    """Send back whatever comes."""

    async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = grpc.aio.server()
    handlers = {"Echo": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def whole_process_ms(command: list[str], times: int = 21) -> float:
    """The median time of a command from its start to its end."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e3

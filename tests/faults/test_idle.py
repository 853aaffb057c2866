"""Something on the way cuts connections on which nothing passes for half a minute: nobody who waits in peace notices.

It takes over a minute of waiting, hence only when asked for:

    CONVEYOR_SLOW_TESTS=1 make test ARGS=tests/faults/test_idle.py
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from conveyor.sdk import Client
from tests.faults.cluster import Cluster, Layout
from tests.support.behaviour import Hold
from tests.support.belt import Belt, Site, state, step
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until

pytestmark = [
    pytest.mark.skipif(not os.environ.get("CONVEYOR_SLOW_TESTS"), reason="takes a minute: CONVEYOR_SLOW_TESTS=1"),
    pytest.mark.timeout(300),
]

_PATIENCE = 30.0
"""Seconds without a byte either way after which a connection is cut."""
_QUIET = 75.0
"""Seconds for which nobody does anything: long enough for a second cut of whoever came back after the first."""

# As they are by default: a round's short ones would keep connections busy.
_DEFAULTS = ("--session-ttl", "15s", "--lease-ttl", "5s", "--sweep-period", "60s")


@asynccontextmanager
async def _own_client(cluster: Cluster, belt: Belt) -> AsyncIterator[tuple[Client, TcpProxy]]:
    """A client whose connection nobody shares: gRPC would share one among all that know the same address."""
    async with TcpProxy(cluster.servers[0].address) as way, Client(way.address, namespace=belt.namespace) as client:
        yield client, way


@pytest.mark.parametrize("store", ["sqlite", "etcd"])
async def test_whoever_waits_in_peace_is_not_cut(store: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            Cluster(tmp_path / "cluster", Layout(store, server_arguments=_DEFAULTS))
        )
        site = Site(cluster.servers[0], cluster.nats, cluster.etcd)
        belt = await stack.enter_async_context(Belt(site, tmp_path, address=cluster.driver_addresses))
        broker = await stack.enter_async_context(TcpProxy(f"127.0.0.1:{cluster.nats.port}"))
        watching, watch_way = await stack.enter_async_context(_own_client(cluster, belt))
        following, follow_way = await stack.enter_async_context(_own_client(cluster, belt))
        calling, call_way = await stack.enter_async_context(_own_client(cluster, belt))

        grpc, jetstream = Hold(), Hold()
        belt.drive("a", grpc)
        belt.drive("b", jetstream, transport="jetstream", nats=f"nats://{broker.address}")
        belt.drive("idle", Hold())
        await belt.pipeline(step("a"), step("b"), graph=True)
        await belt.connected("a", "idle")
        run = await belt.start()
        await until(lambda: grpc.started.is_set() and jetstream.started.is_set(), "both to be at work")

        updates: list[tuple[bool, int]] = []
        lines: list[str] = []

        async def watch() -> None:
            async for update in watching.runs.watch(run.id):
                updates.append((update.reset, update.skipped))  # noqa: PERF401 (looked at meanwhile)

        async def follow() -> None:
            async for line in following.logs.read(run.id, follow=True):
                lines.append(line.text)  # noqa: PERF401 (the same)

        waiting: list[Awaitable[None]] = [asyncio.create_task(watch()), asyncio.create_task(follow())]
        await calling.runs.get(run.id)
        await until(lambda: updates, "the watch to begin")
        ways = {**cluster.proxies, "broker-b": broker, "watch": watch_way, "follow": follow_way, "call": call_way}
        before = {name: way.connections for name, way in ways.items()}
        for way in ways.values():
            way.cut_idle(_PATIENCE)
        await asyncio.sleep(_QUIET)

        assert {name: way.idle_cuts for name, way in ways.items()} == dict.fromkeys(ways, 0)
        assert {name: way.connections for name, way in ways.items()} == before
        grpc.jobs[0].log("done")
        grpc.released.set()
        jetstream.released.set()
        ended = await belt.ended(run)
        assert state(ended) == "SUCCEEDED"
        assert [len(each.attempts) for each in ended.steps] == [1, 1]
        await asyncio.wait_for(asyncio.gather(*waiting), 60)
        assert updates[-1] == (False, 0)
        assert not any(reset for reset, _ in updates)
        assert "done" in lines
        log = cluster.servers[0].log.read_text()
        assert "worker_lost" not in log
        assert "worker_reconnected" not in log

"""That faults of the environment strike for real, and what users see meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conveyor.sdk import Client, ResourceExhausted
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run
from tests.faults import disk, store
from tests.faults.clock import HOUR, set_clock
from tests.faults.cluster import Cluster, Layout
from tests.support.wait import until


def _client(cluster: Cluster) -> Client:
    return Client(cluster.addresses, namespace="faults", timeout=30)


async def _create(client: Client, name: str) -> Run:
    run = (await client.resources.create(Resource(name=name, definition="app"))).run
    assert run is not None
    return run


async def _without_room(cluster: Cluster, fill: Callable[[], int], clear: Callable[[], None]) -> None:
    async with _client(cluster) as client:
        await client.definitions.apply(ResourceDefinition(name="app"))
        before = await _create(client, "before")
        process = cluster.servers[0].pid
        assert await asyncio.to_thread(fill) > 0
        with pytest.raises(ResourceExhausted):
            await _create(client, "during")
        assert (await client.runs.get(before.id)).etag
        await asyncio.to_thread(clear)

        async def there_is_room() -> str:
            try:
                return (await _create(client, "after")).id
            except ResourceExhausted:
                return ""

        after: str = await until(there_is_room, "room to be made use of")
        assert {run.id async for run in client.runs.list()} == {before.id, after}
        assert cluster.servers[0].running
        assert cluster.servers[0].pid == process


async def test_etcd_at_its_quota_refuses_writes_and_goes_on_without_a_restart(tmp_path: Path) -> None:
    layout = Layout("etcd", etcd_arguments=("--quota-backend-bytes", str(16 << 20)))
    async with Cluster(tmp_path / "cluster", layout) as cluster:
        await _without_room(cluster, lambda: store.fill(cluster), lambda: store.clear(cluster))


async def test_a_full_disk_refuses_writes_and_goes_on_without_a_restart(tmp_path: Path) -> None:
    place = tmp_path / "cluster" / "server-0" / "data"
    try:
        small = disk.small_disk(place, 24)
        small.__enter__()
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"no file system of its own can be mounted: {error}")
    try:
        async with Cluster(tmp_path / "cluster", Layout("sqlite")) as cluster:
            await _without_room(cluster, lambda: disk.fill(place), lambda: disk.clear(place))
    finally:
        small.__exit__(None, None, None)


async def test_the_servers_clock_steps_and_is_where_it_was_told_after_a_restart(tmp_path: Path) -> None:
    async with (
        Cluster(tmp_path / "cluster", Layout("sqlite", stepping_clock=True)) as cluster,
        _client(cluster) as client,
    ):
        assert cluster.clock is not None
        await client.definitions.apply(ResourceDefinition(name="app"))
        for number, seconds in enumerate((HOUR, -HOUR)):
            set_clock(cluster.clock, seconds)
            await cluster.restart(cluster.servers[0])
            run = await _create(client, f"r{number}")
            ahead = run.create_time.ToNanoseconds() / 1e9 - time.time()
            assert abs(ahead - seconds) < HOUR / 2

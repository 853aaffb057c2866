"""The stores that the contract tests run on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from conveyor.store import open_sqlite
from conveyor.store.port import Store
from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.jetstream import Belted
from tests.support.nats import NatsServer
from tests.support.older import Older
from tests.support.rig import Behaviour, Replica, Worker, ok
from tests.support.stores import BACKENDS, Backend, EtcdBackend, SqliteBackend

StartEtcd = Callable[..., Etcd]
StartReplica = Callable[..., Awaitable[Replica]]


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Etcd]]:
    """One server of each version for all tests that only read and write."""
    servers: dict[str, Etcd] = {}

    def get(version: str) -> Etcd:
        if version not in servers:
            server = Etcd(binary(version), tmp_path_factory.mktemp(f"etcd-{version}"))
            server.start()
            servers[version] = server
        return servers[version]

    yield get
    for server in servers.values():
        server.stop()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, shared_etcd: Callable[[str], Etcd]) -> Backend:
    """Each driver in turn, on a place of its own."""
    if request.param == "sqlite":
        return SqliteBackend(tmp_path / "data")
    version = request.param.removeprefix("etcd-")
    return EtcdBackend(version, shared_etcd(version))


@pytest_asyncio.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    """An open store of each driver in turn."""
    opened = await backend.open()
    yield opened
    await opened.close()


@pytest.fixture
def prefix(backend: Backend) -> str:
    """Where the test's keys live."""
    return backend.prefix


@pytest.fixture(params=VERSIONS)
def start_etcd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartEtcd]:
    """Starts servers, of each version in turn, that the test may break: `start_etcd(*arguments, scheme=…)`."""
    program = binary(request.param)
    with ExitStack() as running:
        count = 0

        def start(*arguments: str, scheme: str = "http") -> Etcd:
            nonlocal count
            count += 1
            server = Etcd(program, tmp_path / f"etcd-{count}", arguments, scheme)
            running.callback(server.stop)
            server.start()
            return server

        yield start


@pytest_asyncio.fixture
async def etcd(start_etcd: StartEtcd) -> Etcd:
    """A server, of each version in turn, that the test may break."""
    return await asyncio.to_thread(start_etcd)


@pytest_asyncio.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Store]:
    """An open SQLite store."""
    opened = await open_sqlite(tmp_path / "data")
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def start_replica(embedded: Store) -> AsyncIterator[StartReplica]:
    """Starts replicas on one SQLite store: `start_replica(name, shared=…, …)`."""
    started: list[Replica] = []

    async def start(name: str = "r1", *, shared: bool = False, store: Store | None = None, **kind: Any) -> Replica:
        replica = Replica(store or embedded, name, **kind)
        started.append(replica)
        return await replica.start(shared=shared)

    with capture_logs():
        yield start
        for replica in started:
            replica.store.hold = None
            await replica.kill()


@pytest_asyncio.fixture
async def replica(start_replica: StartReplica) -> Replica:
    """The only one."""
    return await start_replica()


@pytest_asyncio.fixture
async def workers() -> AsyncIterator[Callable[..., Awaitable[Worker]]]:
    """Connects workers: `workers(replica, driver, behaviour, …)`; all are cut at the end."""
    connected: list[Worker] = []

    async def connect(replica: Replica, driver: str, behaviour: Behaviour = ok, **kind: Any) -> Worker:
        worker = Worker(replica, driver, behaviour, **kind)
        connected.append(worker)
        return await worker.connect()

    yield connect
    for worker in connected:
        await worker.cut()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    """A broker that the test may break."""
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.kill()


@pytest_asyncio.fixture
async def belted(embedded: Store, broker: NatsServer) -> AsyncIterator[Belted]:
    """A replica with a broker."""
    with capture_logs():
        replica = await Belted(embedded, broker).start()
        yield replica
        await replica.kill()


@pytest_asyncio.fixture
async def older(broker: NatsServer) -> AsyncIterator[Callable[..., Older]]:
    """Makes older drivers: `older(name, work, …)`; all are gone at the end."""
    made: list[Older] = []

    def make(name: str, *arguments: Any, **kind: Any) -> Older:
        made.append(Older(broker.url, name, *arguments, **kind))
        return made[-1]

    yield make
    await asyncio.gather(*(driver.stop() for driver in made))

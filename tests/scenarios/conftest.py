"""Servers that tests share: one on SQLite, one on etcd, each with its own broker. Tests keep to their namespace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.belt import Belt, Site
from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.golang import Go, Held, build
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer

PORTS = ["--metrics-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]


@pytest.fixture(scope="session")
def sqlite_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`conveyor server dev` on a broker."""
    directory = tmp_path_factory.mktemp("sqlite")
    nats = NatsServer(directory / "nats").start()
    server = ConveyorServer(directory / "server", ["--nats", nats.url, *PORTS]).start()
    yield Site(server, nats)
    server.kill()
    nats.stop()


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """The newest etcd that is here."""
    etcd = Etcd(binary(VERSIONS[-1]), tmp_path_factory.mktemp("etcd"))
    etcd.start()
    yield etcd
    etcd.stop()


@pytest.fixture(scope="session")
def etcd_site(tmp_path_factory: pytest.TempPathFactory, etcd_server: Etcd) -> Iterator[Site]:
    """`conveyor server start` on etcd and a broker."""
    directory = tmp_path_factory.mktemp("production")
    nats = NatsServer(directory / "nats").start()
    server = ConveyorServer(
        directory / "server", ["--etcd", etcd_server.url, "--nats", nats.url, *PORTS], mode="start"
    ).start()
    yield Site(server, nats, etcd_server)
    server.kill()
    nats.stop()


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Site:
    """The shared server on SQLite, or the one that `on_both_stores` names."""
    found: Site = request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_site")
    return found


@pytest.fixture
async def belt(site: Site, tmp_path: Path) -> AsyncIterator[Belt]:
    """A namespace of the shared server for this test alone."""
    async with Belt(site, tmp_path) as belt:
        yield belt


@pytest.fixture(scope="session")
def go_programs() -> Path:
    """The test programs of clients/go."""
    return build("./internal/testdriver", "./internal/testclient")


@pytest.fixture
def go(go_programs: Path, tmp_path: Path) -> Iterator[Go]:
    """Drivers and clients in Go for this test."""
    go = Go(go_programs, tmp_path)
    yield go
    go.close()


@pytest.fixture
def held(tmp_path: Path) -> Held:
    """The files of a driver in Go that waits to be released."""
    return Held(tmp_path)

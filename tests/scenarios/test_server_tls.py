"""TLS and mutual TLS between server, clients and drivers, with certificates made for the test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conveyor.sdk import Client, SyncClient, Tls, Unavailable
from tests.support.belt import Belt, Site, state, step
from tests.support.certificates import Authority
from tests.support.cli import Cli
from tests.support.grpcurl import grpcurl
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer


@dataclass
class Secured:
    """A server, its authority, and files that a client has."""

    site: Site
    ca: Path
    cert: Path
    key: Path
    stranger: tuple[Path, Path]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    directory = tmp_path_factory.mktemp("pki")
    return Authority(directory, "authority"), Authority(directory / "other", "other")


@pytest.fixture(params=["tls", "mtls"])
def secured(request: pytest.FixtureRequest, tmp_path: Path, pki: tuple[Authority, Authority]) -> Iterator[Secured]:
    ours, other = pki
    cert, key = ours.issue("server", "DNS:localhost", "IP:127.0.0.1")
    arguments = ["--tls-cert", str(cert), "--tls-key", str(key)]
    if request.param == "mtls":
        arguments += ["--tls-client-ca", str(ours.certificate)]
    server = ConveyorServer(tmp_path / "server", arguments).start()
    site = Site(server, NatsServer(tmp_path / "unused"))
    yield Secured(site, ours.certificate, *ours.issue("client"), other.issue("stranger"))
    server.kill()


async def test_a_run_over_tls(secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client, driver process and command line find their certificates in the environment."""
    files = {
        "CONVEYOR_TLS_CA": str(secured.ca),
        "CONVEYOR_TLS_CERT": str(secured.cert),
        "CONVEYOR_TLS_KEY": str(secured.key),
    }
    for name, value in files.items():
        monkeypatch.setenv(name, value)
    # Settings are read when a client is made: blocking, hence not on the loop.
    async with await asyncio.to_thread(Belt, secured.site, tmp_path) as belt:
        belt.spawn("work", "ok")
        await belt.pipeline(step("a", "work"))
        run = await belt.start()
        assert state(await belt.ended(run)) == "SUCCEEDED"
        listed = await asyncio.to_thread(Cli(belt.address, belt.namespace, **files), "run", "list", "-o", "name")
        assert (listed.code, listed.out) == (0, f"run/{run.id}\n")
        assert await asyncio.to_thread(store_by_blocking_call, belt.address) == "sqlite"


def store_by_blocking_call(address: str) -> str:
    with SyncClient(address) as client:
        return client.server_info().store


async def test_who_is_refused(request: pytest.FixtureRequest, secured: Secured) -> None:
    address = secured.site.server.address
    mutual = "mtls" in request.node.name

    async def reached(tls: Tls | None, timeout: float) -> bool:
        async with Client(address, tls=tls, timeout=timeout) as client:
            try:
                await client.server_info()
            except Unavailable:
                return False
            return True

    async def check(expected: bool, *files: Path, name: str | None = None) -> None:
        tls = await asyncio.to_thread(Tls.from_files, *files, server_name=name) if files else None
        assert await reached(tls, 30 if expected else 1) is expected

    own = (secured.cert, secured.key)
    await check(True, secured.ca, *own)
    await check(not mutual, secured.ca)
    await check(not mutual, secured.ca, *secured.stranger)
    await check(False)
    await check(False, secured.stranger[0].parent / "other.pem", *own)
    await check(False, secured.ca, *own, name="elsewhere.example")


def test_grpcurl_over_tls(secured: Secured) -> None:
    flags = ("-cacert", str(secured.ca), "-cert", str(secured.cert), "-key", str(secured.key))
    done = grpcurl(*flags, secured.site.server.address, "conveyor.v1.ServerService/GetServerInfo")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_command_line_says_without_a_certificate(secured: Secured) -> None:
    done = Cli(secured.site.server.address)("list", "pipelines")
    assert done.code == 7
    assert "cannot reach" in done.err
    assert "TLS" in done.err


def test_a_key_that_is_none_is_told(tmp_path: Path, pki: tuple[Authority, Authority]) -> None:
    cert, _ = pki[0].issue("server2", "DNS:localhost")
    done = Cli()(
        *("server", "dev", "--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", "--metrics-listen", ""),
        *("--tls-cert", str(cert), "--tls-key", str(cert)),
    )
    assert (done.code, done.out, "Traceback" in done.err) == (1, "", False)
    assert "are no certificate with its key" in done.err


def test_any_address_with_a_certificate_or_at_ones_own_risk(tmp_path: Path, pki: tuple[Authority, Authority]) -> None:
    cert, key = pki[0].issue("server3", "DNS:localhost", "IP:127.0.0.1")
    for arguments in (["--tls-cert", str(cert), "--tls-key", str(key)], ["--insecure"]):
        server = ConveyorServer(tmp_path / str(len(arguments)), ["--listen", "0.0.0.0:0", *arguments]).start()
        assert server.address.startswith("0.0.0.0:")
        assert ("insecure" in server.log.read_text()) is (len(arguments) == 1)
        assert server.stop() == 0

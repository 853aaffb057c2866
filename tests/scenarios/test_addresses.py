"""Where a server listens and how clients get there: loopback of both kinds, default addresses, proxies."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from conveyor.sdk import Client
from conveyor.sdk.config import DEFAULT_ADDRESS
from conveyor.server.config import Config
from tests.support.belt import Belt, Site, state, step
from tests.support.cli import Cli
from tests.support.server import ConveyorServer

DEAD_PROXY = dict.fromkeys(
    ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:1"
)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.mark.parametrize("no_proxy", [None, "10.0.0.0/8", "example.org"])
async def test_f98_loopback_never_goes_through_a_proxy(
    belt: Belt, monkeypatch: pytest.MonkeyPatch, no_proxy: str | None
) -> None:
    environment = {**DEAD_PROXY, **({"no_proxy": no_proxy} if no_proxy else {})}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    belt.spawn("work", "ok")
    await belt.pipeline(step("a", "work"))
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"
    port = belt.address.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        listed = await asyncio.to_thread(Cli(f"{host}:{port}", belt.namespace, **environment), "list", "pipelines")
        assert (listed.code, listed.err) == (0, "")


def test_f98_elsewhere_the_error_names_the_proxy() -> None:
    done = Cli("conveyor.example:7460", **DEAD_PROXY)("list", "pipelines")
    assert done.code == 7
    assert "through the proxy http://127.0.0.1:1" in done.err
    assert "CONVEYOR_NO_PROXY=1" in done.err
    direct = Cli("conveyor.example:7460", **DEAD_PROXY, CONVEYOR_NO_PROXY="1")("list", "pipelines")
    assert direct.code == 7
    assert "proxy" not in direct.err


def test_f99_the_defaults_match() -> None:
    assert Config().listen == (DEFAULT_ADDRESS,)


@pytest.mark.parametrize(
    ("listen", "targets"),
    [
        ("127.0.0.1", ["127.0.0.1", "localhost"]),
        ("localhost", ["127.0.0.1", "localhost"]),
        ("0.0.0.0", ["127.0.0.1", "localhost"]),
        pytest.param("[::1]", ["[::1]"], marks=ipv6),
        pytest.param("[::]", ["[::1]", "127.0.0.1", "localhost"], marks=ipv6),
    ],
)
async def test_f99_where_a_server_listens(tmp_path: Path, sqlite_site: Site, listen: str, targets: list[str]) -> None:
    arguments = ["--listen", f"{listen}:0", *(["--insecure"] if listen in ("0.0.0.0", "[::]") else [])]
    server = ConveyorServer(tmp_path, arguments)
    await asyncio.to_thread(server.start)
    try:
        host, _, port = server.address.rpartition(":")
        assert (host, port != "0") == (listen, True)
        for target in targets:
            async with Client(f"{target}:{port}") as client:
                assert (await client.server_info()).store == "sqlite"
    finally:
        assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.parametrize("address", ["203.0.113.1:0", "no.such.host.example:0"])
def test_f99_an_address_of_another_machine(tmp_path: Path, address: str) -> None:
    done = Cli()(
        *("server", "dev", "--data-dir", str(tmp_path), "--listen", address, "--insecure", "--metrics-listen", "")
    )
    assert (done.code, done.out) == (1, "")
    assert f"error: cannot listen on {address}" in done.err


@ipv6
@pytest.mark.parametrize(("taken", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_f99_a_name_of_which_one_address_is_taken(tmp_path: Path, taken: str, family: socket.AddressFamily) -> None:
    with socket.create_server((taken, 0), family=family) as other:
        address = f"localhost:{other.getsockname()[1]}"
        done = Cli()("server", "dev", "--data-dir", str(tmp_path), "--listen", address, "--metrics-listen", "")
    assert (done.code, done.out) == (1, "")
    assert f"error: cannot listen on {address}" in done.err

"""The HTTP port: where it listens, who may come in, and how it ends."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.belt import Belt, Site, step
from tests.support.certificates import Authority
from tests.support.cli import Cli
from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.http import Http, begin, http_url, much_news
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until

PATH = "/conveyor.v1.RunService/ListRuns"
JSON = {"Content-Type": "application/json"}
FREE = ["--http-listen", "127.0.0.1:0"]


def serve(directory: Path, *arguments: str) -> ConveyorServer:
    return ConveyorServer(directory / "server", [*FREE, *arguments]).start()


def post(url: str, **headers: str) -> httpx.Response:
    sent = JSON | {name.replace("_", "-"): text for name, text in headers.items()}
    return httpx.post(url + PATH, content="{}", headers=sent, trust_env=False)


def test_dev_has_it_and_production_must_ask_for_it() -> None:
    given = Cli()
    given.environment = {name: text for name, text in given.environment.items() if name != "CONVEYOR_HTTP_LISTEN"}
    dev = given("server", "dev", "--data-dir", "/nowhere", "--check-config").out
    assert 'http_listen = "127.0.0.1:7462"' in dev
    urls = ("--etcd", "http://127.0.0.1:2379", "--nats", "nats://127.0.0.1:4222")
    assert 'http_listen = ""' in given("server", "start", *urls, "--check-config").out


def test_a_server_without_it_does_not_load_it() -> None:
    program = "import sys, conveyor.server.app; print({'starlette', 'uvicorn', 'conveyor.http'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--http-listen", "0.0.0.0:7462"), "--insecure"),
        (("--http-listen", "7462"), "is not an address"),
        (("--http-allow-origin", "https://ci.example/path"), "is not an origin"),
        (("--http-allow-origin", "ci.example"), "is not an origin"),
    ],
)
def test_wrong_settings(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = Cli()("server", "dev", "--data-dir", str(tmp_path), "--check-config", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert told in done.err


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ports = ("--listen", "127.0.0.1:0", "--metrics-listen", "", "--http-listen", address)
        done = Cli()("server", "dev", "--data-dir", str(tmp_path), *ports)
    assert (done.code, done.out) == (1, "")
    assert f"error: cannot listen on {address} for HTTP" in done.err
    assert "--http-listen" in done.err
    assert "Traceback" not in done.err


def test_pages_of_others(tmp_path: Path) -> None:
    server = serve(tmp_path)
    url = http_url(server)
    try:
        for host in ("localhost:7462", "127.0.0.1", "[::1]:7462", "app.localhost"):
            assert post(url, Host=host).status_code == 200
        for host in ("evil.example", "evil.example:7462", "localhost.evil.example", "", "[x"):
            refused = post(url, Host=host)
            assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
        # Without the header in the answer a browser shows the page nothing, and asks before it sends JSON.
        assert "access-control-allow-origin" not in post(url, Origin="https://evil.example").headers
        asked = httpx.options(url + PATH, headers={"Origin": "https://evil.example"}, trust_env=False)
        assert asked.status_code == 405
        assert httpx.post(url + PATH, content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    finally:
        assert server.stop() == 0


def test_pages_that_are_allowed(tmp_path: Path) -> None:
    server = serve(tmp_path, "--http-allow-origin", "https://ci.example, http://localhost:3000")
    url = http_url(server)
    try:
        for origin in ("https://ci.example", "http://localhost:3000"):
            answer = post(url, Origin=origin)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
            asking = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type,connect-protocol-version,connect-timeout-ms",
            }
            asked = httpx.options(url + PATH, headers=asking, trust_env=False)
            assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, origin)
        assert post(url, Host="ci.example").status_code == 200
        assert "access-control-allow-origin" not in post(url, Origin="https://evil.example").headers
        errors = post(url, Origin="https://ci.example", Connect_Protocol_Version="2")
        assert (errors.status_code, errors.headers["access-control-allow-origin"]) == (400, "https://ci.example")
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_as_on_the_grpc_port(tmp_path: Path, mutual: bool) -> None:
    authority = Authority(tmp_path / "pki", "authority")
    cert, key = authority.issue("server", "DNS:localhost", "IP:127.0.0.1")
    arguments = ["--tls-cert", str(cert), "--tls-key", str(key), "--http-listen", "0.0.0.0:0"]
    server = serve(tmp_path, *arguments, *(["--tls-client-ca", str(authority.certificate)] if mutual else []))
    url = http_url(server).replace("http://0.0.0.0", "https://localhost")
    try:
        trusting = ssl.create_default_context(cafile=str(authority.certificate))
        known = ssl.create_default_context(cafile=str(authority.certificate))
        known.load_cert_chain(*authority.issue("client"))
        for context, welcome in ((known, True), (trusting, not mutual)):
            with httpx.Client(verify=context, trust_env=False) as client:
                if welcome:
                    assert client.post(url + PATH, content="{}", headers=JSON).status_code == 200
                else:
                    with pytest.raises(httpx.TransportError):
                        client.post(url + PATH, content="{}", headers=JSON)
        with pytest.raises(httpx.TransportError):
            post(url.replace("https:", "http:"))
    finally:
        assert server.stop() == 0


async def test_a_drain_ends_streams_and_says_why(tmp_path: Path) -> None:
    server = await asyncio.to_thread(serve, tmp_path)
    site = Site(server, NatsServer(tmp_path / "unused"))
    async with await asyncio.to_thread(Belt, site, tmp_path) as belt, Http(http_url(server), belt.namespace) as http:
        await belt.pipeline(step("a", "nobody"))
        run = await belt.start()
        async with asyncio.timeout(60), http.stream("RunService/WatchRun", {"id": run.id}) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            last = [line async for line in lines][-1]
        error = json.loads(last)["error"]
        assert (error["code"], error["details"][0]["debug"]["reason"]) == ("unavailable", "SHUTTING_DOWN")
        assert await stopping == 0
        with pytest.raises(httpx.ConnectError):
            await http.post("RunService/ListRuns", {})
    assert "Traceback" not in server.log.read_text()


async def test_a_call_that_has_begun_is_answered(tmp_path: Path) -> None:
    server = await asyncio.to_thread(serve, tmp_path)
    url = http_url(server)
    with await asyncio.to_thread(begin, url, "RunService/ListRuns", {}, sent=1) as connection:
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))

        async def closed() -> bool:
            try:
                await asyncio.to_thread(post, url)
            except httpx.ConnectError:
                return True
            return False

        await until(closed, "the port to close")
        connection.sendall(b"}")
        answer = await asyncio.to_thread(connection.recv, 4096)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert await stopping == 0


async def test_a_reader_that_never_reads_does_not_hold_up_the_end(tmp_path: Path) -> None:
    server = await asyncio.to_thread(serve, tmp_path, "--drain-timeout", "1s")
    site = Site(server, NatsServer(tmp_path / "unused"))
    async with await asyncio.to_thread(Belt, site, tmp_path) as belt:
        watch = {"namespace": belt.namespace}
        with await asyncio.to_thread(begin, http_url(server), "RunService/WatchRuns", watch):
            await much_news(belt)
            assert await asyncio.to_thread(server.stop) == 0
    assert "Traceback" not in server.log.read_text()


async def test_while_the_store_is_away(tmp_path: Path) -> None:
    etcd = Etcd(binary(VERSIONS[-1]), tmp_path / "etcd")
    await asyncio.to_thread(etcd.start)
    await asyncio.to_thread(etcd.stop)
    arguments = ["--etcd", etcd.url, "--nats", "nats://127.0.0.1:1", *FREE]
    server = ConveyorServer(tmp_path / "server", arguments, mode="start")

    def ask() -> tuple[int, str]:
        answer = post(http_url(server))
        details = answer.json().get("details", [])
        return answer.status_code, details[0]["debug"]["reason"] if details else ""

    async def answers(status: int, reason: str = "") -> None:
        async def as_wanted() -> bool:
            return await asyncio.to_thread(ask) == (status, reason)

        await until(as_wanted, f"{status} {reason}")

    await asyncio.to_thread(server.spawn)
    try:
        await until(lambda: " http=" in server.log.read_text(), "the port")
        await answers(503, "STORE_UNAVAILABLE")
        await asyncio.to_thread(etcd.start)
        await answers(200)
        await asyncio.to_thread(etcd.stop)
        await answers(503, "STORE_UNAVAILABLE")
    finally:
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(etcd.stop)

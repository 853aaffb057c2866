"""The client in Go: lists, errors, waiting, cancelling, and its own tests and examples."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from conveyor.v1.pipeline_pb2 import Lock
from conveyor.version import VERSION
from tests.support.belt import Belt, Site, state, step
from tests.support.certificates import Authority
from tests.support.golang import MODULE, ROOT, Go, Held, build, compiler, environment
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until

# The first build on a machine takes a minute.
pytestmark = pytest.mark.timeout(600)
UNKNOWN = "01a00000-0000-7000-8000-000000000000"


async def finished(go: Go, belt: Belt, *words: object, **more: str) -> tuple[int, list[str]]:
    process = go.client(belt, *words, **more)
    return await asyncio.to_thread(process.wait), process.output


async def test_lists_page_by_themselves(belt: Belt, go: Go) -> None:
    go.driver(belt, "work")
    await belt.pipeline(step("a", "work"))
    runs = [(await belt.start()).id for _ in range(5)]
    assert await finished(go, belt, "list", 2) == (0, runs[::-1])


async def test_locks_are_listed(belt: Belt, go: Go) -> None:
    for name in ("a", "b"):
        await belt.pipeline(step("deploy", lock=Lock(key=name)))
        for _ in range(2):
            await belt.start()

    async def held() -> bool:
        return [len(lock.holders) async for lock in belt.client.runs.locks()] == [1, 1]

    await until(held, "both locks to be held")
    assert await finished(go, belt, "locks") == (0, ["a deploy 1", "b deploy 1"])


async def test_schedules(belt: Belt, go: Go) -> None:
    await belt.pipeline(step("pack"))
    await belt.start(resource="shop")
    code, output = await finished(go, belt, "schedule", "shop")
    assert (code, output[0], output[2:]) == (0, "nightly 30", ["nightly 1"])
    assert "schedule.cron: never comes" in output[1]
    assert [each async for each in belt.client.schedules.list()] == []


async def test_errors_say_what_they_are(belt: Belt, go: Go) -> None:
    code, output = await finished(go, belt, "get", UNKNOWN)
    assert (code, output[0].startswith("error: NOT_FOUND: ")) == (1, True)
    assert output[1:] == ["is: NotFound", "reason: NOT_FOUND"]
    code, output = await finished(go, belt, "pipeline", "release")
    assert (code, output[1:3]) == (1, ["is: InvalidArgument", "reason: INVALID_FIELD"])
    assert output[3].startswith("violation: pipeline.steps[0].id: ")
    code, output = await finished(go, belt, "get", UNKNOWN, CONVEYOR_ADDRESS="127.0.0.1:1")
    assert (code, output[1:]) == (1, ["is: Unavailable", "reason: UNSPECIFIED"])
    assert "cannot reach the server at 127.0.0.1:1: connection refused; is it running?" in output[0]
    code, output = await finished(go, belt, "get", UNKNOWN, CONVEYOR_ADDRESS="127.0.0.1:1,127.0.0.1:2")
    assert "none of 127.0.0.1:1, 127.0.0.1:2 answers; the last one: " in output[0]
    code, output = await finished(go, belt, "watch", UNKNOWN, CONVEYOR_ADDRESS="127.0.0.1:1", GIVE_UP_AFTER="100ms")
    assert (code, output[0].startswith("error: given up after 100ms: "), output[1]) == (1, True, "is: Unavailable")
    code, output = await finished(go, belt, "list", 1, CONVEYOR_TLS="1")
    assert "check CONVEYOR_TLS_CA" in output[0]


async def test_waiting_ends_with_the_run_or_with_its_context(belt: Belt, go: Go, held: Held) -> None:
    go.driver(belt, "work", *held.behaviour)
    await belt.pipeline(step("a", "work"))
    run = await belt.start()
    await held.started()
    code, output = await finished(go, belt, "wait", run.id, "50ms")
    assert (code, output[1]) == (1, "is: DeadlineExceeded")
    assert output[0].startswith(f"error: run {run.id} has not ended, its state is ")
    assert (await finished(go, belt, "cancel", run.id))[0] == 0
    assert await finished(go, belt, "wait", run.id) == (0, [f"{run.id} CANCELLED"])
    code, output = await finished(go, belt, "cancel", run.id)
    assert output[1:3] == ["is: FailedPrecondition", "reason: RUN_FINISHED"]
    assert state(await belt.ended(run)) == "CANCELLED"


async def test_mutual_tls(tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = await asyncio.to_thread(Authority, tmp_path / "pki")
    cert, key = await asyncio.to_thread(authority.issue, "server", "DNS:localhost", "IP:127.0.0.1")
    mine = dict(
        zip(("CONVEYOR_TLS_CERT", "CONVEYOR_TLS_KEY"), await asyncio.to_thread(authority.issue, "me"), strict=True)
    )
    ca = {"CONVEYOR_TLS_CA": authority.certificate}
    for name, value in {**ca, **mine}.items():
        monkeypatch.setenv(name, str(value))
    arguments = ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", authority.certificate]
    server = ConveyorServer(tmp_path / "server", list(map(str, arguments)))
    await asyncio.to_thread(server.start)
    try:
        site = Site(server, NatsServer(tmp_path / "unused"))
        async with await asyncio.to_thread(Belt, site, tmp_path) as belt:
            go.driver(belt, "work")
            await belt.pipeline(step("a", "work"))
            run = await belt.start()
            assert await finished(go, belt, "wait", run.id) == (0, [f"{run.id} SUCCEEDED"])
            code, output = await finished(go, belt, "get", run.id, CONVEYOR_TLS_CERT="", CONVEYOR_TLS_KEY="")
            assert (code, output[1]) == (1, "is: Unavailable")
            plain = dict.fromkeys(("CONVEYOR_TLS_CA", *mine), "")
            code, output = await finished(go, belt, "get", run.id, **plain)
            assert "does it want TLS (CONVEYOR_TLS_CA)" in output[0]
    finally:
        await asyncio.to_thread(server.kill)


def test_the_module_has_the_version_of_the_others() -> None:
    assert f'const Version = "{VERSION}"' in (MODULE / "conveyor" / "doc.go").read_text()


async def test_the_modules_own_tests_and_examples_pass(belt: Belt) -> None:
    """The examples in its documentation run against the server that they are pointed at."""
    command = [compiler(), "test", "-race", "./..."]
    environ = {**os.environ, **environment(belt), "CONVEYOR_EXAMPLES": "1"}
    done = await asyncio.to_thread(subprocess.run, command, cwd=MODULE, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_the_page_shows_the_examples_and_they_run(belt: Belt, go: Go) -> None:
    page = (ROOT / "docs" / "go.md").read_text()
    for name in ("compile", "release"):
        assert f"```go\n{(MODULE / 'examples' / name / 'main.go').read_text()}```" in page
        assert f"go run ./examples/{name} " in page
    build("./examples/compile", "./examples/release")
    go.run("compile", belt)
    release = go.run("release", belt)
    assert await asyncio.to_thread(release.wait) == 0, release.log
    assert release.output[0] == "build building https://example.org/shop.git"
    assert release.output[1].startswith("build go version ")
    assert release.output[2].endswith(" RUN_STATE_SUCCEEDED")

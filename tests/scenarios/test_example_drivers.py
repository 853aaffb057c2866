"""The drivers of examples/drivers on a real server: all in one pipeline, and each by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyor.sdk import from_struct
from tests.support.belt import Belt, Site, state, states, step
from tests.support.cli import Cli
from tests.support.examples import COMMANDS, DRIVERS, Examples
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer

# The first build on a machine takes a minute.
pytestmark = pytest.mark.timeout(600)
NAMES = list(COMMANDS)


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[Examples]:
    """Starts drivers, and ends them with the test."""
    examples = Examples(tmp_path)
    yield examples
    examples.close()


def test_each_is_short() -> None:
    sources = [
        path for name in NAMES for path in (DRIVERS / name).glob("*.*") if path.suffix in (".py", ".go", ".js", ".sh")
    ]
    assert len(sources) >= len(NAMES)
    assert {path.name: lines for path in sources if (lines := len(path.read_text().splitlines())) >= 80} == {}


async def test_all_in_one_pipeline(belt: Belt, examples: Examples) -> None:
    for name in NAMES:
        examples.start(belt, name)
    cli = Cli(belt.address, belt.namespace)
    applied = await asyncio.to_thread(cli, "apply", "-f", str(DRIVERS / "relay.yaml"))
    assert applied.code == 0, applied.err
    first = [run.id async for run in belt.client.runs.list()]
    again = [(await belt.client.runs.start("parcel", "tea")).id for _ in range(3)]
    for run_id in first + again:
        run = await belt.ended(run_id)
        assert states(run) == dict.fromkeys(NAMES, "SUCCEEDED")
        for i, each in enumerate(run.steps):
            assert from_struct(each.result.data) == {"stamps": NAMES[: i + 1]}
        befores = [", ".join(NAMES[:i]) or "nobody" for i in range(len(NAMES))]
        said = [f"hello from {name}, after: {before}" for name, before in zip(NAMES, befores, strict=True)]
        assert await belt.lines(run) == said


@pytest.mark.parametrize("name", NAMES)
async def test_each_fails_stops_and_leaves_as_it_is_told(belt: Belt, examples: Examples, name: str) -> None:
    driver = examples.start(belt, name)
    await belt.pipeline(step("s", name))
    failed = await belt.ended(await belt.start(log=["one", "two"], fail="no more tea"))
    assert (state(failed), failed.steps[0].result.message) == ("FAILED", "no more tea")
    assert await belt.lines(failed) == ["one", "two"]

    run = await belt.start(seconds=600)
    await belt.until_step(run, "s", "RUNNING")
    await belt.client.runs.cancel(run.id)
    assert states(await belt.ended(run)) == {"s": "CANCELLED"}

    last = await belt.start(seconds=1, data={"size": 3})
    # That a ticket is worked on may be seen no sooner than its result.
    await belt.until_step(last, "s", "RUNNING", "SUCCEEDED")
    driver.terminate()
    assert await asyncio.to_thread(driver.wait) == 0
    assert from_struct((await belt.ended(last)).steps[0].result.data) == {"size": 3, "stamps": [name]}


async def test_all_come_back_to_a_server_and_a_broker_that_were_killed(tmp_path: Path, examples: Examples) -> None:
    """What they worked on is reported, in the same attempt, and they take more."""
    nats = NatsServer(tmp_path / "nats").start()
    server = ConveyorServer(tmp_path / "server", ["--nats", nats.url]).start()
    try:
        async with Belt(Site(server, nats), tmp_path) as belt:
            for name in NAMES:
                examples.start(belt, name)
            await belt.pipeline(*(step(name) for name in NAMES), graph=True)
            run = await belt.start(seconds=2)
            for name in NAMES:
                await belt.until_step(run, name, "RUNNING", "SUCCEEDED")
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(nats.kill)
            await asyncio.to_thread(nats.start)
            await asyncio.to_thread(server.start)
            ended = await belt.ended(run)
            assert states(ended) == dict.fromkeys(NAMES, "SUCCEEDED")
            assert [each.attempt for each in ended.steps] == [1] * len(NAMES)
            assert state(await belt.ended(await belt.start())) == "SUCCEEDED"
    finally:
        server.kill()
        nats.stop()


async def test_a_hello_that_is_refused_ends_them(belt: Belt, examples: Examples) -> None:
    belt.namespace = "NOT A NAME"
    for name in ("python", "go", "node", "bash"):
        driver = examples.start(belt, name)
        assert await asyncio.to_thread(driver.wait) == 1
        assert "namespace" in driver.log

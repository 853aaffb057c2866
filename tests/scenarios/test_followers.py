"""Those who follow runs and their logs: everything once, in order, and an end."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from conveyor.sdk import Client, Job
from tests.support.behaviour import Hold, flaky, raw
from tests.support.belt import Belt, on_both_stores, state, step
from tests.support.driver_process import ROOT
from tests.support.metrics import scrape
from tests.support.wait import until


async def _watched(belt: Belt, run: str) -> str:
    return [state(update.run) async for update in belt.client.runs.watch(run)][-1]


async def _followed(client: Client, run: str) -> list[str]:
    return [line.text async for line in client.logs.read(run, follow=True)]


async def test_f42_followers_return_whenever_they_come(belt: Belt) -> None:
    hold = Hold()
    belt.drive("flaky", flaky(1))
    belt.drive("hold", hold)
    await belt.pipeline(step("a", "flaky", attempts=2), step("b", "hold"))
    run = await belt.start()
    before = asyncio.gather(_watched(belt, run.id), _followed(belt.client, run.id))
    await hold.started.wait()
    during = asyncio.gather(_watched(belt, run.id), _followed(belt.client, run.id))
    hold.released.set()
    lines = ["attempt 1", "attempt 2"]
    assert await before == ["SUCCEEDED", lines]
    assert await during == ["SUCCEEDED", lines]
    assert await asyncio.gather(_watched(belt, run.id), _followed(belt.client, run.id)) == ["SUCCEEDED", lines]


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
async def test_f67_twenty_followers_have_every_line_once(belt: Belt, transport: str) -> None:
    count = 2_000

    async def writes(job: Job) -> None:
        for number in range(count):
            job.log("%d", number)
            if not number % 50:
                await asyncio.sleep(0.005)

    belt.drive("writes", writes, transport=transport)
    await belt.pipeline(step("a", "writes"))
    run = await belt.start()
    followers = []
    for number in range(20):
        followers.append(asyncio.create_task(_followed(belt.client, run.id)))
        await asyncio.sleep(0.01 * (number % 3))
    expected = [str(number) for number in range(count)]
    for follower in followers:
        assert await follower == expected


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
async def test_f71_lines_of_any_length(belt: Belt, tmp_path: Path, transport: str) -> None:
    lengths = (64 << 10, 1 << 20, 5 << 20)
    file = tmp_path / "output"
    file.write_text("".join(str(n) * length + "\n" for n, length in enumerate(lengths)) + "end\n")
    belt.drive("raw", raw(file), transport=transport)
    await belt.pipeline(step("a", "raw"))
    run = await belt.start()
    ended = await belt.ended(run)
    assert state(ended) == "SUCCEEDED"
    whole, parts = [], ""
    async for line in belt.client.logs.read(run.id):
        assert len(line.text) <= 256 << 10
        parts += line.text
        if not line.partial:
            whole.append(parts)
            parts = ""
    assert [len(text) for text in whole] == [*lengths, len("end")]
    assert whole[2] == "2" * lengths[2]
    assert await _watched(belt, run.id) == "SUCCEEDED"


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
async def test_f72_lines_before_the_result_are_there_at_the_end(belt: Belt, transport: str) -> None:
    async def bursts(job: Job) -> None:
        for number in range(1_000):
            job.log("%d", number)

    belt.drive("bursts", bursts, transport=transport)
    await belt.pipeline(step("a", "bursts"))
    run = await belt.start()
    follower = asyncio.create_task(_followed(belt.client, run.id))
    await belt.ended(run)
    expected = [str(number) for number in range(1_000)]
    assert await belt.lines(run) == expected
    assert await follower == expected


async def test_f73_the_lines_of_every_attempt(belt: Belt) -> None:
    hold = Hold()
    belt.drive("flaky", flaky(2))
    belt.drive("hold", hold)
    await belt.pipeline(step("a", "flaky", attempts=3), step("b", "hold"))
    run = await belt.start()
    await hold.started.wait()
    for _ in ("while it runs", "when it has ended"):
        lines = [(line.attempt, line.text) async for line in belt.client.logs.read(run.id)]
        assert lines == [(1, "attempt 1"), (2, "attempt 2"), (3, "attempt 3")]
        assert await belt.lines(run, step="a", attempt=2) == ["attempt 2"]
        hold.released.set()
        await belt.ended(run)


WATCHERS = """
import asyncio, sys
from conveyor.sdk import Client

async def one(client, run, seen):
    async for update in client.runs.watch(run):
        seen.release()

async def main(run, count):
    async with Client() as client:
        seen = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(one(client, run, seen)) for _ in range(count)]
        for _ in tasks:
            await seen.acquire()
        print("watching", flush=True)
        await asyncio.gather(*tasks)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@on_both_stores
async def test_f44_watchers_that_are_killed_leave_nothing_behind(belt: Belt) -> None:
    await belt.pipeline(step("a", "nobody"))
    run = await belt.start()
    files = Path(f"/proc/{belt.site.server.pid}/fd")

    def descriptors() -> int:
        return len(list(files.iterdir()))

    async def rounds(count: int) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CONVEYOR_ADDRESS": belt.address,
            "CONVEYOR_NAMESPACE": belt.namespace,
        }
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", WATCHERS, run.id, "100", env=environment, stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            assert await process.stdout.readline() == b"watching\n"
            process.kill()
            await process.wait()

    async def nobody_watches() -> bool:
        return (await asyncio.to_thread(scrape, belt.site.server))["conveyor_watchers"] == 0

    await until(nobody_watches, "earlier watches to end")
    before = descriptors()
    await rounds(2)
    await until(nobody_watches, "the watches to end")
    await until(lambda: descriptors() <= before, "the connections to be closed")

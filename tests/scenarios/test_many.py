"""Many at once: clients on the embedded store, steps in one run, timeouts of any length."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration

from conveyor.sdk import Client, InvalidArgument, Job
from conveyor.v1.resource_pb2 import Resource
from tests.support.behaviour import Counted, ok
from tests.support.belt import Belt, on_both_stores, state, step


async def test_f91_the_embedded_store_under_many_hands(belt: Belt) -> None:
    """Twenty workers, fifty starts at once, lists all the time: nobody is told of a lock."""
    for number in range(20):
        belt.drive("work", ok, worker=f"worker-{number}", slots=1)
    await belt.pipeline(step("a", "work"), step("b", "work"))
    await belt.client.resources.create(Resource(name="shop", definition="app"))
    clients = [Client(belt.address, namespace=belt.namespace) for _ in range(5)]
    listing = asyncio.Event()

    async def lists() -> int:
        count = 0
        while not listing.is_set():
            count += len([run async for run in belt.client.runs.list(page_size=50)])
        return count

    reader = asyncio.create_task(lists())
    try:
        for _ in range(4):
            runs = await asyncio.gather(*(clients[n % 5].runs.start("app", "shop", "release") for n in range(50)))
            ended = await asyncio.gather(*(clients[n % 5].runs.wait(run.id) for n, run in enumerate(runs)))
            assert {state(run) for run in ended} == {"SUCCEEDED"}
    finally:
        listing.set()
        for client in clients:
            await client.close()
    assert await reader > 0


@on_both_stores
async def test_f90_every_step_of_many_once(belt: Belt) -> None:
    names = [f"item-{number}" for number in range(500)]

    async def says(job: Job) -> dict[str, object]:
        job.log("%s", job.step)
        return {"step": job.step}

    counted = Counted(says)
    belt.drive("work", counted, slots=50)
    await belt.pipeline(*(step(name, "work") for name in names), graph=True)
    ended = await belt.ended(await belt.start())
    assert state(ended) == "SUCCEEDED"
    assert sorted(counted.steps) == sorted(names)
    assert {each.step: each.result.data["step"] for each in ended.steps} == {name: name for name in names}
    assert sorted(await belt.lines(ended)) == sorted(names)


LONGEST = 366 * 86_400


@pytest.mark.parametrize("seconds", [0.1, 2_147_484, LONGEST])
async def test_f88_timeouts_of_any_length(belt: Belt, seconds: float) -> None:
    belt.drive("a", ok)
    await belt.pipeline(step("a", timeout=seconds))
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"


@pytest.mark.parametrize("seconds", [LONGEST + 1, 9 * 10**15, 0, -1])
async def test_f88_timeouts_that_are_refused(belt: Belt, seconds: int) -> None:
    bounded = step("a")
    bounded.timeout.CopyFrom(Duration(seconds=seconds))
    with pytest.raises(InvalidArgument, match="timeout"):
        await belt.pipeline(bounded)


async def test_f88_a_long_wait_disturbs_nobody(belt: Belt) -> None:
    belt.drive("a", ok)
    year = Duration(seconds=LONGEST)
    await belt.pipeline(step("x", "nobody", timeout=LONGEST, queue_timeout=LONGEST), name="long", timeout=year)
    await belt.pipeline(step("a"))
    long = await belt.start("long")
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"
    assert state(await belt.client.runs.get(long.id)) == "RUNNING"
    await belt.client.runs.cancel(long.id)

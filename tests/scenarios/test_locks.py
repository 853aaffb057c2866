"""Locks: never more holders than the limit, first come first served, free however a holder ends."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from conveyor.sdk import Job
from conveyor.v1.pipeline_pb2 import Lock
from tests.support.behaviour import Hold, fail, ok
from tests.support.belt import Belt, on_both_stores, state, step
from tests.support.wait import until

DEPLOY = Lock(key="deploy")


class Shared:
    """Succeeds, and notes who came in which order and how many were at it at most."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.running = 0
        self.most = 0

    async def __call__(self, job: Job) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.order.append(job.run)
        await asyncio.sleep(0.01)
        self.running -= 1


async def nothing_left(belt: Belt) -> None:
    """No claim of this namespace is stored any more."""

    async def empty() -> bool:
        return not [lock async for lock in belt.client.runs.locks()]

    await until(empty, "all locks to be free")


@on_both_stores
@pytest.mark.parametrize("limit", [1, 3])
async def test_so_many_at_a_time_in_the_order_in_which_they_came(belt: Belt, limit: int) -> None:
    shared = Shared()
    belt.drive("deploy", shared, slots=20)
    await belt.pipeline(step("deploy", lock=Lock(key="deploy", limit=limit)))
    runs = [await belt.start() for _ in range(20)]
    for run in runs:
        assert state(await belt.ended(run)) == "SUCCEEDED"
    assert shared.most <= limit
    if limit == 1:
        assert shared.order == [run.id for run in runs]
    await nothing_left(belt)


@on_both_stores
@pytest.mark.parametrize("how", ["success", "failure", "cancel", "force", "timeout", "run timeout"])
async def test_a_lock_is_free_however_its_holder_ends(belt: Belt, how: str) -> None:
    hold = Hold()
    belt.drive("deploy", fail if how == "failure" else hold)
    await belt.pipeline(
        step("deploy", lock=DEPLOY, timeout=1 if how == "timeout" else 0),
        timeout=timedelta(seconds=1 if how == "run timeout" else 3600),
    )
    await belt.pipeline(step("tidy", lock=DEPLOY), name="tidy")
    belt.drive("tidy", ok)
    first = await belt.start()
    second = await belt.start("tidy")
    if how in ("cancel", "force"):
        await hold.started.wait()
        waiting = await belt.until_step(second, "tidy", "QUEUED", reason="WAITING_FOR_LOCK")
        assert (waiting.lock, waiting.wait.lock.holders[0].run, waiting.wait.lock.ahead) == ("deploy", first.id, 0)
        await belt.client.runs.cancel(first.id, force=how == "force")
    elif how == "success":
        hold.released.set()
    assert state(await belt.ended(second)) == "SUCCEEDED"
    await belt.ended(first)
    hold.released.set()
    await nothing_left(belt)

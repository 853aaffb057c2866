"""F58: runs of one resource go one after the other, however each of them ends, and whoever dies."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from conveyor.sdk import FailedPrecondition, Job
from conveyor.v1.pipeline_pb2 import Concurrency, ConcurrencyPolicy
from conveyor.v1.run_pb2 import Run
from tests.support.behaviour import Hold, fail, ok
from tests.support.belt import Belt, on_both_stores, reason, state, states, step
from tests.support.cli import Cli
from tests.support.wait import until

QUEUE = Concurrency(policy=ConcurrencyPolicy.CONCURRENCY_POLICY_QUEUE)
REPLACE = Concurrency(policy=ConcurrencyPolicy.CONCURRENCY_POLICY_REPLACE)


async def again(belt: Belt, first: Run, **options: object) -> Run:
    """One more run of the same resource."""
    return await belt.client.runs.start("app", first.resource, **options)


class Alone:
    """Succeeds, and notes in which order runs came and whether two were at it at a time."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.running = 0
        self.crowded = False

    async def __call__(self, job: Job) -> None:
        self.running += 1
        self.crowded = self.crowded or self.running > 1
        self.order.append(job.run)
        await asyncio.sleep(0.01)
        self.running -= 1


@on_both_stores
async def test_the_last_that_was_started_deploys_last(belt: Belt) -> None:
    alone = Alone()
    belt.drive("deploy", alone)
    await belt.pipeline(step("deploy"), concurrency=QUEUE)
    runs = [await belt.start()]
    runs += [await again(belt, runs[0]) for _ in range(19)]
    for run in runs:
        assert state(await belt.ended(run)) == "SUCCEEDED"
    assert alone.order == [run.id for run in runs]
    assert not alone.crowded


@on_both_stores
async def test_many_at_once_are_in_one_order(belt: Belt) -> None:
    alone = Alone()
    belt.drive("deploy", alone)
    await belt.pipeline(step("deploy"), concurrency=QUEUE)
    first = await belt.start()
    runs = await asyncio.gather(*(again(belt, first) for _ in range(50)))
    for run in runs:
        assert state(await belt.ended(run)) == "SUCCEEDED"
    assert sorted(alone.order) == sorted([first.id, *(run.id for run in runs)])
    assert not alone.crowded


@on_both_stores
@pytest.mark.parametrize("how", ["success", "failure", "cancel", "force", "timeout"])
async def test_a_place_is_free_however_its_run_ends(belt: Belt, how: str) -> None:
    hold, healthy = Hold(), Hold()
    limit = timedelta(seconds=1) if how == "timeout" else timedelta(hours=1)
    belt.drive("deploy", fail if how == "failure" else hold)
    belt.drive("check", healthy)
    await belt.pipeline(step("check"), step("deploy"), concurrency=QUEUE, timeout=limit)
    first = await belt.start()
    await healthy.started.wait()
    second = await again(belt, first)
    assert (state(second), reason(second)) == ("PENDING", "WAITING_FOR_RUN")
    shown = await belt.client.runs.get(second.id)
    assert (shown.wait.run, shown.wait.ahead) == (first.id, 1)
    if how == "cancel":
        await belt.client.runs.cancel(first.id)
    elif how == "force":
        await belt.client.runs.cancel(first.id, force=True)
    elif how != "timeout":
        healthy.released.set()
        hold.released.set()
    ended = await belt.ended(first)
    await until(lambda: healthy.count >= 2, "the second run to start")
    await belt.client.runs.delete(ended.id)
    healthy.released.set()
    hold.released.set()
    await belt.ended(second)


@on_both_stores
async def test_a_newer_one_replaces_one_that_is_slow_to_stop(belt: Belt) -> None:
    stubborn = Hold(cancellable=False)
    belt.drive("deploy", stubborn)
    belt.drive("tidy", ok)
    await belt.pipeline(step("deploy"), finally_steps=[step("tidy")], concurrency=REPLACE)
    first = await belt.start()
    await stubborn.started.wait()
    second, third = await again(belt, first), await again(belt, first)
    ended = await belt.ended(second)
    assert (state(ended), reason(ended), set(states(ended).values())) == ("CANCELLED", "REPLACED", {"SKIPPED"})
    assert state(await belt.client.runs.get(third.id)) == "PENDING"
    assert stubborn.count == 1
    stubborn.released.set()
    ended = await belt.ended(first)
    assert (state(ended), reason(ended), states(ended)["tidy"]) == ("CANCELLED", "REPLACED", "SUCCEEDED")
    assert state(await belt.ended(third)) == "SUCCEEDED"


async def test_a_retry_waits_for_its_turn(belt: Belt) -> None:
    hold = Hold()
    belt.drive("deploy", hold)
    await belt.pipeline(step("deploy"), concurrency=QUEUE)
    first = await belt.start()
    await hold.started.wait()
    second, third = await again(belt, first), await again(belt, first)
    await belt.client.runs.cancel(second.id)
    await belt.ended(second)
    retried = await belt.client.runs.retry(second.id)
    shown = await belt.client.runs.get(retried.id)
    assert (state(shown), shown.wait.run, shown.wait.ahead) == ("PENDING", first.id, 2)
    hold.released.set()
    assert [state(await belt.ended(run)) for run in (first, third, retried)] == ["SUCCEEDED"] * 3


async def test_one_that_waits_is_deleted_once_it_is_cancelled(belt: Belt) -> None:
    hold = Hold()
    belt.drive("deploy", hold)
    await belt.pipeline(step("deploy"), concurrency=QUEUE)
    first = await belt.start()
    await hold.started.wait()
    second, third = await again(belt, first), await again(belt, first)
    with pytest.raises(FailedPrecondition):
        await belt.client.runs.delete(second.id)
    await belt.client.runs.cancel(second.id)
    await belt.client.runs.delete(second.id)
    assert (await belt.client.runs.get(third.id)).wait.ahead == 1
    hold.released.set()
    assert state(await belt.ended(third)) == "SUCCEEDED"


async def test_a_watch_tells_of_the_wait_and_of_the_turn(belt: Belt) -> None:
    hold = Hold()
    belt.drive("deploy", hold)
    await belt.pipeline(step("deploy"), concurrency=QUEUE)
    first = await belt.start()
    second = await again(belt, first)
    told: list[tuple[str, str]] = []
    async for update in belt.client.runs.watch(second.id):
        said = (state(update.run), reason(update.run))
        if said not in told:
            told.append(said)
        hold.released.set()
    assert told == [("PENDING", "WAITING_FOR_RUN"), ("RUNNING", "UNSPECIFIED"), ("SUCCEEDED", "UNSPECIFIED")]


async def test_the_command_line_says_who_goes_first(belt: Belt) -> None:
    cli = Cli(belt.address, belt.namespace)
    await belt.pipeline(step("deploy"), concurrency=QUEUE)
    first = await belt.start()
    second, third = await again(belt, first), await again(belt, first)
    said = await asyncio.to_thread(cli, "run", "get", second.id)
    assert f"Waits for: run {first.id}\n" in said.out
    said = await asyncio.to_thread(cli, "run", "get", third.id)
    assert f"Waits for: run {first.id}, and 1 more before it\n" in said.out
    said = await asyncio.to_thread(cli, "run", "get", third.id, "-o", "json")
    assert json.loads(said.out)["wait"] == {"run": first.id, "ahead": 2}
    said = await asyncio.to_thread(cli, "run", "list")
    assert said.out.count("WAITING_FOR_RUN") == 2

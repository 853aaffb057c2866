"""In which order drivers get their turn, and what a run holds to while the world changes around it."""

from __future__ import annotations

import asyncio

import pytest

from conveyor.sdk import Job
from tests.support.behaviour import Counted, Hold, fail, ok
from tests.support.belt import Belt, on_both_stores, reason, state, states, step, step_reason


@on_both_stores
async def test_f01_same_driver_twice(belt: Belt) -> None:
    calls: list[tuple[str, str]] = []
    for name in ("x", "y"):
        belt.drive(name, Counted(lambda job: record(calls, job)))
    await belt.pipeline(step("s1", "x"), step("s2", "y"), step("s3", "x"))
    ended = await belt.ended(await belt.start())
    assert state(ended) == "SUCCEEDED"
    assert calls == [("s1", "x"), ("s2", "y"), ("s3", "x")]


async def record(calls: list[tuple[str, str]], job: Job) -> None:
    calls.append((job.step, job.driver))


@pytest.mark.parametrize("change", ["edited", "deleted"])
async def test_f02_pipeline_changes_under_a_run(belt: Belt, change: str) -> None:
    hold, others = Hold(), Counted()
    belt.drive("s1", hold)
    for name in ("s2", "s3", "s9"):
        belt.drive(name, others)
    await belt.pipeline(step("s1"), step("s2"), step("s3"))
    run = await belt.start(resource="shop")
    await hold.started.wait()
    if change == "edited":
        await belt.pipeline(step("s1"), step("s3"), step("s9"))
    else:
        await belt.client.pipelines.delete("release")
    hold.released.set()
    assert states(await belt.ended(run)) == {"s1": "SUCCEEDED", "s2": "SUCCEEDED", "s3": "SUCCEEDED"}
    assert others.steps == ["s2", "s3"]
    kept = await belt.client.runs.get(run.id)
    assert [each.id for each in kept.pipeline_snapshot.steps] == ["s1", "s2", "s3"]
    if change == "edited":
        again = await belt.ended(await belt.client.runs.start("app", "shop"))
        assert list(states(again)) == ["s1", "s3", "s9"]


@pytest.mark.parametrize("allowed", [True, False])
async def test_f08_a_failure_that_is_allowed(belt: Belt, allowed: bool) -> None:
    belt.drive("a", fail)
    belt.drive("b", ok)
    belt.drive("c", ok)
    await belt.pipeline(
        step("a", allow_failure=allowed),
        step("b", "b", "a"),
        step("c", "c"),
        graph=True,
        failure_policy="FAILURE_POLICY_CONTINUE",
    )
    ended = await belt.ended(await belt.start())
    outcome = "SUCCEEDED" if allowed else "SKIPPED"
    assert states(ended) == {"a": "FAILED", "b": outcome, "c": "SUCCEEDED"}
    assert (state(ended), reason(ended)) == (("SUCCEEDED", "UNSPECIFIED") if allowed else ("FAILED", "STEP_FAILED"))
    assert ended.steps[0].allow_failure is allowed
    if not allowed:
        assert step_reason(ended.steps[1]) == "NEED_FAILED"


async def test_f15_a_failed_step_ends_the_run_for_its_watchers(belt: Belt) -> None:
    later = Counted()
    belt.drive("first", fail)
    belt.drive("later", later)
    await belt.pipeline(step("s1", "first"), step("s2", "later"), step("s3", "later"))
    run = await belt.start()
    seen = [state(update.run) async for update in belt.client.runs.watch(run.id)]
    assert seen[-1] == "FAILED"
    ended = await belt.client.runs.get(run.id)
    assert states(ended) == {"s1": "FAILED", "s2": "SKIPPED", "s3": "SKIPPED"}
    assert later.count == 0


@on_both_stores
async def test_f51_a_join_after_fifty_parents_of_both_transports(belt: Belt) -> None:
    rounds, parents = 5, 50
    barrier, join = asyncio.Barrier(parents), Counted()

    async def together(job: Job) -> None:
        await barrier.wait()

    belt.drive("grpc", together, slots=parents)
    belt.drive("jetstream", together, slots=parents, transport="jetstream")
    belt.drive("join", join)
    names = [f"p{number}" for number in range(parents)]
    await belt.pipeline(
        *(step(name, ("grpc", "jetstream")[number % 2]) for number, name in enumerate(names)),
        step("join", "join", *names),
        graph=True,
    )
    for _ in range(rounds):
        assert state(await belt.ended(await belt.start())) == "SUCCEEDED"
    assert join.steps == ["join"] * rounds


async def test_f52_a_join_with_a_failed_parent_never_runs(belt: Belt) -> None:
    rounds, join = 40, Counted()
    belt.drive("bad", fail, slots=rounds)
    belt.drive("good", ok, slots=rounds)
    belt.drive("join", join)
    await belt.pipeline(step("a", "bad"), step("b", "good"), step("d", "join", "a", "b"), graph=True)
    await belt.connected("bad", "good", "join")
    runs = await asyncio.gather(*(belt.start() for _ in range(rounds)))
    ended = await asyncio.gather(*(belt.ended(run) for run in runs))
    assert {state(run) for run in ended} == {"FAILED"}
    assert {states(run)["d"] for run in ended} == {"SKIPPED"}
    assert join.count == 0

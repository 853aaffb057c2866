"""Locks: never more holders than the limit, first come first served, free however a holder ends."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from conveyor.sdk import InvalidArgument, Job
from conveyor.v1.pipeline_pb2 import Concurrency, ConcurrencyPolicy, Lock, Param, Step
from tests.support.behaviour import Handler, Hold, fail, ok
from tests.support.belt import Belt, on_both_stores, one, reason, state, states, step, step_reason
from tests.support.cli import Cli
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
@pytest.mark.parametrize("how", ["success", "failure", "cancel", "force", "timeout"])
async def test_a_lock_is_free_however_its_holder_ends(belt: Belt, how: str) -> None:
    hold = Hold()
    belt.drive("deploy", fail if how == "failure" else hold)
    await belt.pipeline(step("deploy", lock=DEPLOY, timeout=0.2 if how == "timeout" else 0))
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


async def test_a_run_holds_its_lock_from_before_its_first_step_to_after_its_last(belt: Belt) -> None:
    hold, tidy = Hold(), Hold()
    belt.drive("deploy", hold)
    belt.drive("tidy", tidy)
    await belt.pipeline(step("deploy"), finally_steps=[step("tidy")], lock=DEPLOY, timeout=timedelta(hours=1))
    first = await belt.start()
    await hold.started.wait()
    second, third = await belt.start(), await belt.start()
    assert (state(second), reason(second), second.lock) == ("PENDING", "WAITING_FOR_LOCK", "deploy")
    assert not second.HasField("deadline")
    cli = Cli(belt.address, belt.namespace)
    said = await asyncio.to_thread(cli, "run", "get", third.id)
    assert f"Waits for: lock deploy, held by run {first.id}, 1 ahead\n" in said.out
    said = await asyncio.to_thread(cli, "lock", "get", "deploy")
    assert [line.split() for line in said.out.splitlines()[-3:]] == [
        ["holds", first.id],
        ["1", second.id],
        ["2", third.id],
    ]
    # One that waits is cancelled and deleted, and nothing of it runs.
    await belt.client.runs.cancel(second.id)
    assert set(states(await belt.ended(second)).values()) == {"SKIPPED"}
    await belt.client.runs.delete(second.id)
    told: list[tuple[str, str]] = []
    hold.released.set()
    await tidy.started.wait()
    assert state(await belt.client.runs.get(third.id)) == "PENDING"
    tidy.released.set()
    async for update in belt.client.runs.watch(third.id):
        if (said_now := (state(update.run), reason(update.run))) not in told:
            told.append(said_now)
    assert told[-1] == ("SUCCEEDED", "UNSPECIFIED")
    assert (hold.count, tidy.count) == (2, 2)
    await nothing_left(belt)


async def test_keys_with_parameters_are_locks_of_their_own(belt: Belt) -> None:
    hold = Hold()
    belt.drive("deploy", hold)
    await belt.pipeline(
        step("deploy", lock=Lock(key="deploy-${{ params.env }}")), params=[Param(name="env")], name="release"
    )
    first = await belt.start()
    refused = await belt.ended(first)
    assert (state(refused), step_reason(refused.steps[0])) == ("FAILED", "INPUT_MISSING")
    assert refused.steps[0].message == "lock.key: params.env is not there"
    runs = [await belt.client.runs.start("app", first.resource, params={"env": env}) for env in ("a", "b", "a")]
    await until(lambda: hold.count == 2)
    assert {job.run for job in hold.jobs} == {runs[0].id, runs[1].id}
    assert [lock.key async for lock in belt.client.runs.locks(page_size=1)] == ["deploy-a", "deploy-b"]
    hold.released.set()
    for run in runs:
        assert state(await belt.ended(run)) == "SUCCEEDED"


async def test_a_run_whose_key_cannot_be_evaluated_is_refused(belt: Belt) -> None:
    await belt.pipeline(step("deploy"), params=[Param(name="env")], lock=Lock(key="deploy-${{ params.env }}"))
    with pytest.raises(InvalidArgument) as caught:
        await belt.start()
    ((field, said),) = [(each.field, each.description) for each in caught.value.violations]
    assert (field, said) == ("pipeline.lock.key", "cannot be evaluated: params.env is not there")


async def test_instances_and_runs_of_steps_hold_locks_too(belt: Belt) -> None:
    """Three instances of a matrix, and a step that runs a pipeline, in two runs at once: one at a time."""
    shared = Shared()
    belt.drive("deploy", shared)
    await belt.pipeline(step("deploy"), name="inner")
    fan = step("fan", "deploy", lock=DEPLOY)
    fan.matrix.axes["n"].list_value.extend([1, 2, 3])
    call = Step(id="call", lock=DEPLOY)
    call.runs.pipeline = "inner"
    await belt.pipeline(fan, call)
    for run in [await belt.start() for _ in range(2)]:
        assert state(await belt.ended(run)) == "SUCCEEDED"
    assert (len(shared.order), shared.most) == (8, 1)
    await nothing_left(belt)


SIX = ["pr-image", "unit", "compile-check", "testflight", "watsjs", "integration"]
OTHERS = ["validate-labels", "containerd-integration", "go-format-check"]


async def concourse(belt: Belt, shared: Shared, unit: Handler) -> None:
    """P07: nine jobs, of which six share a lock; three wait for pr-image."""
    belt.drive("job", shared, slots=32)
    belt.drive("other", ok, slots=32)
    belt.drive("unit", unit)
    lock = Lock(key="pr-heavy")

    def job(name: str) -> Step:
        needs = ["pr-image"] if name in SIX[3:] else []
        return step(name, "unit" if name == "unit" else "job", *needs, lock=lock)

    await belt.pipeline(*map(job, SIX), *(step(name, "other") for name in OTHERS), name="pr", graph=True)


async def test_p07_s1_never_two_of_the_six_at_once(belt: Belt) -> None:
    shared = Shared()
    await concourse(belt, shared, shared)
    for run in [await belt.start("pr") for _ in range(2)]:
        ended = await belt.ended(run)
        assert (state(ended), set(states(ended).values())) == ("SUCCEEDED", {"SUCCEEDED"})
    assert (len(shared.order), shared.most) == (2 * len(SIX), 1)
    await nothing_left(belt)


async def test_p07_s5_an_abort_during_unit_frees_the_lock_at_once(belt: Belt) -> None:
    shared, unit = Shared(), Hold()
    await concourse(belt, shared, unit)
    first, second = await belt.start("pr"), await belt.start("pr")
    await unit.started.wait()
    assert one((await belt.client.runs.get(first.id)).steps, "unit").lock == "pr-heavy"
    await belt.client.runs.cancel(first.id, grace=60)
    ended = await belt.ended(first)
    assert (state(ended), states(ended)["unit"]) == ("CANCELLED", "CANCELLED")
    unit.released.set()
    assert state(await belt.ended(second)) == "SUCCEEDED"
    assert shared.most == 1
    await nothing_left(belt)


@pytest.mark.parametrize("policy", ["QUEUE", "REPLACE"])
async def test_a_run_waits_for_its_turn_then_for_its_lock(belt: Belt, policy: str) -> None:
    hold, deploys = Hold(), Shared()
    belt.drive("hold", hold)
    belt.drive("deploy", deploys)
    await belt.pipeline(step("hold", lock=DEPLOY), name="other")
    concurrency = Concurrency(policy=ConcurrencyPolicy.Value(f"CONCURRENCY_POLICY_{policy}"))
    await belt.pipeline(step("deploy"), lock=DEPLOY, concurrency=concurrency)
    holder = await belt.start("other")
    await hold.started.wait()
    first = await belt.start()
    second = await belt.client.runs.start("app", first.resource)
    assert (reason(first), reason(second)) == ("WAITING_FOR_LOCK", "WAITING_FOR_RUN")
    if policy == "REPLACE":
        ended = await belt.ended(first)
        assert (state(ended), reason(ended)) == ("CANCELLED", "REPLACED")

    async def waits() -> bool:
        return reason(await belt.client.runs.get((second if policy == "REPLACE" else first).id)) == "WAITING_FOR_LOCK"

    await until(waits)
    hold.released.set()
    assert state(await belt.ended(second)) == "SUCCEEDED"
    assert deploys.order == ([second.id] if policy == "REPLACE" else [first.id, second.id])
    assert state(await belt.ended(holder)) == "SUCCEEDED"
    await nothing_left(belt)

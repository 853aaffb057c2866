"""Small or refused: nothing that was accepted gets stuck for its size."""

from __future__ import annotations

import asyncio

import pytest

from conveyor.sdk import ApiError, InvalidArgument, ResourceExhausted, from_struct, to_struct
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import RunView
from tests.support.behaviour import Counted, big, echo, ok
from tests.support.belt import Belt, on_both_stores, state, states, step, step_reason


@on_both_stores
async def test_f78_lists_of_many_runs_with_large_specs(belt: Belt) -> None:
    count, spec = 100, {"text": "x" * 20_000}
    await belt.pipeline(step("a", "nobody"))
    runs = []
    for _ in range(0, count, 20):
        runs += await asyncio.gather(*(belt.start(**spec) for _ in range(20)))
    ids = {run.id for run in runs}
    assert {run.id async for run in belt.client.runs.list(page_size=1_000)} == ids
    full = [run async for run in belt.client.runs.list(page_size=1_000, view=RunView.RUN_VIEW_FULL)]
    assert {run.id for run in full} == ids
    assert {from_struct(run.resource_snapshot.spec)["text"] for run in full} == {spec["text"]}
    assert len([each async for each in belt.client.resources.list("app", page_size=1_000)]) == count
    seen: set[str] = set()
    async for update in belt.client.runs.watch_all():
        seen.add(update.run.id)
        if seen == ids:
            break


@pytest.mark.parametrize("size", [300_000, 1_400_000, 3_900_000, 4_300_000, 20_000_000])
async def test_f78_f79_a_resource_that_is_too_large(belt: Belt, size: int) -> None:
    await belt.pipeline(step("a", "nobody"))
    large = Resource(name="large", definition="app", spec=to_struct({"text": "x" * size}))
    with pytest.raises(ApiError) as refused:
        await belt.client.resources.create(large)
    if size < 4 << 20:
        assert isinstance(refused.value, InvalidArgument)
        assert refused.value.reason == "TOO_LARGE"
        assert "256 KiB" in refused.value.message or "262144" in refused.value.message
    else:
        assert isinstance(refused.value, ResourceExhausted)
        assert "4194304" in refused.value.message or "4 MiB" in refused.value.message
    assert [each async for each in belt.client.resources.list("app")] == []


@on_both_stores
async def test_f79_a_run_of_many_steps_with_much_output(belt: Belt) -> None:
    """Its results fit; more would be refused by name."""
    steps = 200
    belt.drive("big", big(2_000), slots=16)
    await belt.pipeline(*(step(f"s{number}", "big") for number in range(steps)), graph=True)
    ended = await belt.ended(await belt.start())
    assert state(ended) == "SUCCEEDED"
    assert {len(str(from_struct(each.result.data)["text"])) for each in ended.steps} == {2_000}


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
@pytest.mark.parametrize("size", [900_000, 1_100_000, 5_000_000])
async def test_f81_a_result_that_is_too_large_fails_its_step(belt: Belt, transport: str, size: int) -> None:
    later = Counted()
    belt.drive("big", big(size), transport=transport)
    belt.drive("later", later)
    await belt.pipeline(step("a", "big"), step("b", "later"))
    ended = await belt.ended(await belt.start())
    assert states(ended) == {"a": "FAILED", "b": "SKIPPED"}
    assert "65536" in ended.steps[0].message
    assert str(size)[0] in ended.steps[0].message
    assert later.count == 0
    # The driver lives on.
    again = await belt.ended(await belt.start())
    assert states(again)["a"] == "FAILED"


async def test_f81_all_results_of_a_run_together(belt: Belt) -> None:
    belt.drive("big", big(60_000))
    await belt.pipeline(*(step(f"s{number}", "big") for number in range(12)))
    ended = await belt.ended(await belt.start())
    assert state(ended) == "FAILED"
    failed = next(each for each in ended.steps if each.state == 6)
    assert step_reason(failed) == "RESULT_TOO_LARGE"
    assert sum(len(str(from_struct(each.result.data).get("text", ""))) for each in ended.steps) <= 512 << 10


NUMBERS = {"a": 9007199254740992, "b": -1, "c": 3, "d": 3.0, "e": 0.1, "f": -0.0, "g": 1e300}


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
@on_both_stores
async def test_f27_numbers_come_through_as_they_are(belt: Belt, transport: str) -> None:
    read = Counted(echo)
    belt.drive("echo", read, transport=transport)
    await belt.pipeline(step("a", "echo"), step("b", "echo"), context=to_struct(NUMBERS))
    ended = await belt.ended(await belt.start(**NUMBERS))
    assert state(ended) == "SUCCEEDED"
    for job in read.jobs:
        assert (job.spec, job.context) == (NUMBERS, NUMBERS)
        assert {key: type(value) for key, value in job.spec.items()}["c"] is int
    data = from_struct(ended.steps[1].result.data)
    assert data["spec"] == NUMBERS
    assert data["results"]["a"]["spec"] == NUMBERS


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2**53 + 1])
async def test_f28_a_result_that_is_no_json_fails_its_step(belt: Belt, transport: str, bad: float) -> None:
    async def poison(job: object) -> dict[str, object]:
        return {"deep": [1, {"value": bad}]}

    belt.drive("poison", poison, transport=transport)
    belt.drive("ok", ok)
    await belt.pipeline(step("a", "poison"))
    await belt.pipeline(step("a", "ok"), name="good")
    poisoned = await belt.start()
    ended = await belt.ended(poisoned)
    assert state(ended) == "FAILED"
    assert "deep" in ended.steps[0].message
    good = await belt.ended(await belt.start("good"))
    assert state(good) == "SUCCEEDED"
    assert {run.id async for run in belt.client.runs.list()} == {poisoned.id, good.id}

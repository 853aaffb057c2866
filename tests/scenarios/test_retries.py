"""Attempts, time-outs and what a retried run takes over."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from conveyor.sdk import FailedPrecondition, InvalidArgument, Job, from_struct
from conveyor.v1.pipeline_pb2 import RetryPolicy
from tests.support.behaviour import Counted, Hold, fail, flaky, ok
from tests.support.belt import Belt, on_both_stores, one, reason, state, states, step, step_reason


@pytest.mark.parametrize(("policy", "attempts"), [(None, 1), (1, 1), (2, 2), (3, 3), (0, 3)])
async def test_f29_how_often_a_step_is_tried(belt: Belt, policy: int | None, attempts: int) -> None:
    """0 stands for a policy that says nothing of its attempts."""
    counted = Counted(fail)
    belt.drive("fail", counted)
    tried = step("a", "fail", attempts=policy or 0)
    if policy == 0:
        tried.retry.CopyFrom(RetryPolicy(initial_backoff=Duration(nanos=1_000_000)))
    await belt.pipeline(tried)
    ended = await belt.ended(await belt.start())
    assert state(ended) == "FAILED"
    assert counted.count == attempts
    assert (ended.steps[0].attempt, ended.steps[0].max_attempts) == (attempts, attempts)


async def test_f29_a_policy_without_attempts_is_refused(belt: Belt) -> None:
    refused = step("a")
    refused.retry.max_attempts = 0
    with pytest.raises(InvalidArgument, match="max_attempts"):
        await belt.pipeline(refused)


@on_both_stores
async def test_f32_a_retried_run_takes_over_what_succeeded(belt: Belt) -> None:
    handlers = {
        name: Counted(handler) for name, handler in {"a": flaky(1), "b": ok, "c": first_run_fails(), "d": ok}.items()
    }
    for name, handler in handlers.items():
        belt.drive(name, handler)
    await belt.pipeline(step("a", attempts=2), *(step(name) for name in "bcd"))
    failed = await belt.ended(await belt.start())
    assert states(failed) == {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "FAILED", "d": "SKIPPED"}
    again = await belt.client.runs.retry(failed.id)
    ended = await belt.ended(again)
    assert (state(ended), ended.parent_run) == ("SUCCEEDED", failed.id)
    assert {name: handler.count for name, handler in handlers.items()} == {"a": 2, "b": 1, "c": 2, "d": 1}
    for name in "ab":
        old, new = one(failed.steps, name), one(ended.steps, name)
        assert new.inherited
        assert (new.start_time, new.end_time, new.result) == (old.start_time, old.end_time, old.result)
    assert set(handlers["d"].jobs[0].results) == {"a", "b", "c"}
    with pytest.raises(FailedPrecondition) as refused:
        await belt.client.runs.retry(ended.id)
    assert refused.value.reason == "RUN_SUCCEEDED"


def first_run_fails():
    runs: set[str] = set()

    async def handler(job: Job) -> None:
        runs.add(job.run)
        if len(runs) == 1:
            raise job.fail("the first time")

    return handler


async def test_f32_a_live_run_is_not_retried(belt: Belt) -> None:
    await belt.pipeline(step("a", "nobody"))
    with pytest.raises(FailedPrecondition) as refused:
        await belt.client.runs.retry((await belt.start()).id)
    assert refused.value.reason == "RUN_NOT_FINISHED"


@on_both_stores
async def test_f34_a_timeout_bounds_each_attempt(belt: Belt) -> None:
    hold = Hold()
    belt.drive("slow", hold)
    await belt.pipeline(step("a", "slow", attempts=3, timeout=0.3))
    ended = await belt.ended(await belt.start())
    assert (state(ended), reason(ended)) == ("FAILED", "STEP_FAILED")
    (timed_out,) = ended.steps
    assert step_reason(timed_out) == "TIMED_OUT"
    assert [attempt.number for attempt in timed_out.attempts] == [1, 2, 3]
    assert {step_reason(attempt) for attempt in timed_out.attempts} == {"TIMED_OUT"}
    assert hold.count == 3
    for attempt in timed_out.attempts:
        assert attempt.end_time.ToDatetime() - attempt.start_time.ToDatetime() >= timedelta(seconds=0.3)


async def test_f86_the_queue_does_not_use_up_a_steps_time(belt: Belt) -> None:
    hold, late = Hold(), Counted()
    belt.drive("first", hold, slots=1)
    await belt.pipeline(step("a", "late", timeout=0.5), step("b", "first"))
    run = await belt.start()
    waiting = await belt.until_step(run, "a", "QUEUED", reason="NO_WORKER")
    assert waiting.queue_time.ToDatetime()
    await asyncio.sleep(0.8)  # longer than the timeout: that it passed over nothing is what is tested
    belt.drive("late", late)
    hold.released.set()
    assert state(await belt.ended(run)) == "SUCCEEDED"


async def test_f86_the_wait_for_a_worker_has_a_limit_of_its_own(belt: Belt) -> None:
    await belt.pipeline(step("a", "nobody", queue_timeout=0.2, timeout=60), step("b"))
    ended = await belt.ended(await belt.start())
    assert states(ended) == {"a": "FAILED", "b": "SKIPPED"}
    assert step_reason(ended.steps[0]) == "QUEUE_TIMED_OUT"
    assert "nobody" in ended.steps[0].message


@on_both_stores
async def test_f87_the_limit_of_a_run_stops_a_step_that_began_late(belt: Belt) -> None:
    clean, stuck = Counted(), Hold()
    belt.drive("a", ok)
    belt.drive("b", stuck)
    belt.drive("clean", clean)
    limit = Duration(seconds=1)
    await belt.pipeline(step("a"), step("b"), step("c"), finally_steps=[step("z", "clean")], timeout=limit)
    ended = await belt.ended(await belt.start())
    assert (state(ended), reason(ended)) == ("FAILED", "TIMED_OUT")
    assert states(ended) == {"a": "SUCCEEDED", "b": "CANCELLED", "c": "SKIPPED", "z": "SUCCEEDED"}
    assert stuck.jobs[0].cancelled
    assert clean.jobs[0].run_state == "FAILED"


async def test_f83_an_output_reaches_the_next_step_whole_or_not_at_all(belt: Belt) -> None:
    async def sized(job: Job) -> dict[str, object]:
        size = job.spec["size"]
        assert isinstance(size, int)
        return {"text": "x" * size}

    read = Counted()
    belt.drive("write", sized)
    belt.drive("read", read)
    await belt.pipeline(step("a", "write"), step("b", "read"))
    for size in (3_000, 5_000, 65_000, 70_000, 900_000):
        runs = await asyncio.gather(*(belt.start(size=size) for _ in range(5)))
        for ended in await asyncio.gather(*(belt.ended(run) for run in runs)):
            if size < 65_536:
                assert state(ended) == "SUCCEEDED"
                assert from_struct(ended.steps[0].result.data)["text"] == "x" * size
            else:
                assert step_reason(ended.steps[0]) == "RESULT_TOO_LARGE"
                assert "65536" in ended.steps[0].message
                assert states(ended)["b"] == "SKIPPED"
    sizes = [len(str(job.results["a"].data["text"])) for job in read.jobs]
    assert sorted(sizes) == [3_000] * 5 + [5_000] * 5 + [65_000] * 5

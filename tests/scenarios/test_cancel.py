"""Cancelling: what waits ends, what runs is told, and whoever does not answer is not waited for for ever."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration

from conveyor.sdk import FailedPrecondition, Job
from tests.support.behaviour import Counted, Hold, Late, fail, ok
from tests.support.belt import Belt, on_both_stores, one, reason, state, states, step, step_reason
from tests.support.raw_worker import RawWorker, report
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until


@on_both_stores
async def test_f35_a_success_after_the_cancel_changes_nothing(belt: Belt) -> None:
    later = Counted()
    belt.drive("later", later)
    await belt.pipeline(step("a", "late"), step("b", "later"))
    async with RawWorker(belt.address, belt.namespace, "late") as late:
        run = await belt.start()
        given = await late.assignments.get()
        await belt.client.runs.cancel(run.id, "enough", grace=0.2)
        assert (await late.cancellations.get()).message == "enough"
        cancelled = await belt.ended(run)
        assert states(cancelled) == {"a": "CANCELLED", "b": "SKIPPED"}
        assert step_reason(one(cancelled.steps, "a")) == "ABANDONED"
        assert await late.answer(report(given, n=1)) == ["RUN_FINISHED"]
        assert await late.answer(report(given, n=1)) == ["RUN_FINISHED"]
    kept = await belt.client.runs.get(run.id)
    assert (state(kept), states(kept)) == (state(cancelled), states(cancelled))
    (attempt,) = one(kept.steps, "a").attempts
    assert len(attempt.late_results) == 1
    assert later.count == 0
    assert [state(update.run) async for update in belt.client.runs.watch(run.id)] == ["CANCELLED"]


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
async def test_f35_a_driver_that_ignores_the_cancel_and_succeeds(belt: Belt, transport: str) -> None:
    """It answers within the grace: the step is cancelled all the same, and what it said is kept."""
    late, later = Late(), Counted()
    belt.drive("late", late, transport=transport)
    belt.drive("later", later)
    await belt.pipeline(step("a", "late"), step("b", "later"))
    run = await belt.start()
    await until(late.started.is_set)
    await belt.until_step(run, "a", "RUNNING")
    assert state(await belt.client.runs.cancel(run.id)) == "CANCELLING"
    late.released.set()
    cancelled = await belt.ended(run)
    assert (state(cancelled), reason(cancelled)) == ("CANCELLED", "CANCEL_REQUESTED")
    assert states(cancelled) == {"a": "CANCELLED", "b": "SKIPPED"}
    assert one(cancelled.steps, "a").result.data["late"] is True
    assert later.count == 0


async def test_f35_a_ticket_is_at_work_before_the_server_knows(belt: Belt) -> None:
    """The worker is told to stop although nobody saw the delivery yet."""
    hold = Hold()
    belt.drive("hold", hold, transport="jetstream")
    await belt.pipeline(step("a", "hold"))
    for _ in range(5):
        hold.started.clear()
        run = await belt.start()
        await hold.started.wait()
        await belt.client.runs.cancel(run.id)
        assert state(await belt.ended(run)) == "CANCELLED"
        job = hold.jobs[-1]
        await until(lambda job=job: job.cancelled, "the worker to be told")


@on_both_stores
async def test_f36_a_cancelled_step_with_attempts_left(belt: Belt) -> None:
    hold, clean = Hold(), Counted()
    belt.drive("hold", hold)
    belt.drive("clean", clean)
    await belt.pipeline(step("a", "hold", attempts=4), finally_steps=[step("z", "clean")])
    run = await belt.start()
    await hold.started.wait()
    await belt.client.runs.cancel(run.id)
    ended = await belt.ended(run)
    assert states(ended) == {"a": "CANCELLED", "z": "SUCCEEDED"}
    assert (state(ended), hold.count, clean.count) == ("CANCELLED", 1, 1)


async def test_f36_a_step_between_two_attempts_is_cancelled_at_once(belt: Belt) -> None:
    counted = Counted(fail)
    belt.drive("fail", counted)
    await belt.pipeline(step("a", "fail", attempts=3, backoff=600))
    run = await belt.start()
    await belt.until_step(run, "a", "RETRYING")
    assert state(await belt.client.runs.cancel(run.id)) == "CANCELLED"
    assert states(await belt.ended(run)) == {"a": "CANCELLED"}
    assert counted.count == 1


@on_both_stores
async def test_f37_a_mute_worker_is_abandoned_after_the_grace(belt: Belt) -> None:
    await belt.pipeline(step("a", "mute"))
    async with RawWorker(belt.address, belt.namespace, "mute") as mute:
        run = await belt.start()
        await mute.assignments.get()
        await belt.client.runs.cancel(run.id, grace=0.2)
        (abandoned,) = (await belt.ended(run)).steps
        assert (step_reason(abandoned), abandoned.attempts[0].worker) == ("ABANDONED", "raw")
        # Its slot is free again.
        second = await belt.start()
        given = await mute.assignments.get()
        assert given.run == second.id
        assert await mute.answer(report(given)) == ["ACCEPTED"]
        assert state(await belt.ended(second)) == "SUCCEEDED"


@on_both_stores
async def test_f39_a_worker_behind_a_cut_link_learns_of_the_cancel(belt: Belt) -> None:
    done, hold = Counted(), Hold()
    belt.drive("done", done)
    async with TcpProxy(belt.address) as link:
        belt.drive("hold", hold, address=link.address)
        await belt.pipeline(step("a", "done"), step("b", "hold"))
        run = await belt.start()
        await hold.started.wait()
        link.refuse()
        link.cut()
        assert state(await belt.client.runs.cancel(run.id, "first")) == "CANCELLING"
        assert state(await belt.client.runs.cancel(run.id, "second")) == "CANCELLING"
        link.refuse(False)
        cancelled = await belt.ended(run)
        assert states(cancelled) == {"a": "SUCCEEDED", "b": "CANCELLED"}
        assert (state(cancelled), cancelled.cancel_message) == ("CANCELLED", "first")
        assert hold.jobs[0].cancelled
        with pytest.raises(FailedPrecondition) as refused:
            await belt.client.runs.cancel(run.id)
        assert refused.value.reason == "RUN_FINISHED"
        hold.released.set()
        retried = await belt.ended(await belt.client.runs.retry(run.id))
        assert states(retried) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
        assert (state(retried), done.count, hold.count) == ("SUCCEEDED", 1, 2)


async def test_f40_a_cancelled_driver_has_its_grace(belt: Belt) -> None:
    cleaned = asyncio.Event()
    started = asyncio.Event()

    async def careful(job: Job) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)
            assert job.grace == pytest.approx(20, abs=1)
            cleaned.set()
            raise

    belt.drive("careful", careful)
    await belt.pipeline(step("a", "careful"))
    run = await belt.start()
    await started.wait()
    await belt.client.runs.cancel(run.id, grace=20)
    ended = await belt.ended(run)
    assert cleaned.is_set()
    assert step_reason(ended.steps[0]) == "RUN_CANCELLED"


@on_both_stores
async def test_f40_a_clean_up_that_hangs_is_ended_by_force_or_by_its_bound(belt: Belt) -> None:
    hang = Hold()
    belt.drive("a", ok)
    belt.drive("hang", hang)
    await belt.pipeline(step("a"), finally_steps=[step("z", "hang")], finally_timeout=Duration(seconds=1))
    bounded = await belt.ended(await belt.start())
    assert (state(bounded), reason(bounded)) == ("FAILED", "TIMED_OUT")
    assert states(bounded) == {"a": "SUCCEEDED", "z": "CANCELLED"}

    hang.started.clear()
    await belt.pipeline(step("a"), finally_steps=[step("z", "hang")])
    run = await belt.start()
    await hang.started.wait()
    await belt.client.runs.cancel(run.id, force=True)
    assert states(await belt.ended(run)) == {"a": "SUCCEEDED", "z": "CANCELLED"}

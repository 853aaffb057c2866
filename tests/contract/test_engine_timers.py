"""What time does to runs. The clock is the test's; deadlines are those of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs

from conveyor.core import deadlines
from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND
from conveyor.engine.timers import Timers
from conveyor.v1 import pipeline_pb2, result_pb2, run_pb2
from tests.support.faulty import Clock
from tests.support.rig import (
    CANCELLED,
    FAILED,
    QUEUED,
    RETRYING,
    RUN_CANCELLED,
    RUN_FAILED,
    RUN_RUNNING,
    RUN_SUCCEEDED,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    Replica,
    Worker,
    fail,
    mute,
    ok,
    step,
    until,
)

Connect = Callable[..., Awaitable[Worker]]
StartReplica = Callable[..., Awaitable[Replica]]


def seconds(value: float) -> Duration:
    return Duration(seconds=int(value), nanos=int(value % 1 * 1e9))


def test_the_earlier_timer_wins() -> None:
    now = 0
    timers = Timers(lambda: now)
    timers.set(("ns", "a"), 10 * SECOND)
    timers.set(("ns", "a"), 5 * SECOND)
    timers.set(("ns", "a"), 20 * SECOND)
    timers.set(("ns", "b"), 5 * SECOND)
    now = 5 * SECOND - 1
    assert timers.due() == []
    now = 5 * SECOND + 20_000
    assert sorted(timers.due()) == [("ns", "a"), ("ns", "b")]
    now = 30 * SECOND
    assert timers.due() == []


def test_a_forgotten_timer_is_never_due() -> None:
    now = 0
    timers = Timers(lambda: now)
    timers.set(("ns", "a"), SECOND)
    timers.forget(("ns", "a"))
    timers.forget(("ns", "a"))
    now = 2 * SECOND
    assert timers.due() == []
    assert len(timers) == 0


def test_forgotten_timers_take_no_room_until_their_time() -> None:
    """Runs come and go by the million within the day after which they would time out."""
    now = 0
    timers = Timers(lambda: now)
    for i in range(50_000):
        now = i * 20_000
        timers.set(("ns", str(i)), now + 86_400 * SECOND)
        timers.set(("ns", str(i)), now + 3600 * SECOND)
        timers.forget(("ns", str(i)))
    assert len(timers._buckets) + len(timers._heap) < 500
    timers.set(("ns", "last"), now + SECOND)
    now += 2 * SECOND
    assert timers.due() == [("ns", "last")]


def test_a_run_that_has_ended_gets_no_timer_any_more() -> None:
    """Whoever resumes a run may have read it before the watch told of its end."""
    timers = Timers(lambda: 0)
    timers.forget(("default", "a"))
    timers.set(("default", "a"), SECOND)
    assert len(timers) == 0


async def test_a_tick_that_fails_stops_no_other() -> None:
    timers = Timers(lambda: SECOND)
    ticked: list[str] = []

    async def tick(key: tuple[str, str]) -> None:
        ticked.append(key[1])
        if key[1] == "bad":
            raise ValueError("bad")

    with capture_logs() as logs:
        running = asyncio.create_task(timers.run(tick))
        timers.set(("ns", "bad"), 0)
        await until(lambda: ticked == ["bad"])
        timers.set(("ns", "good"), 0)
        await until(lambda: "good" in ticked)
        running.cancel()
    assert [entry["run_id"] for entry in logs] == ["bad"]


@pytest.mark.parametrize("turns", range(5))
async def test_they_stop_when_told_to_also_while_a_timer_is_set(turns: int) -> None:
    clock = Clock()
    timers = Timers(clock)

    async def tick(_: object) -> None:
        pass

    task = asyncio.create_task(timers.run(tick))
    for _ in range(5):
        await asyncio.sleep(0)
    timers.set(("ns", "a"), clock() + 60 * SECOND)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()


async def test_a_step_that_takes_too_long_is_told_to_stop_and_tried_again(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute, slots=2)
    retry = pipeline_pb2.RetryPolicy(max_attempts=2, initial_backoff=seconds(0.001))
    run = await replica.launch(step("a", timeout=seconds(60), retry=retry))
    await a.next_given()
    replica.clock.advance(61)
    second = await a.next_given(2)
    assert second.attempt == 2
    assert [(told.run, told.step, told.attempt) for told in a.told] == [(run, "a", 1)]
    # The worker may still be at it: its place is not given to others yet.
    assert replica.held == 2
    await a.answer(a.given[0])
    await until(lambda: a.acks)
    assert a.acks[0].disposition == result_pb2.DISPOSITION_STALE_ATTEMPT
    await until(lambda: replica.held == 1)
    replica.clock.advance(61)
    head = await replica.ended(run)
    record = await replica.record(run, "a")
    assert (head.state, record.state, record.reason) == (RUN_FAILED, FAILED, run_pb2.STEP_REASON_TIMED_OUT)


async def test_the_place_of_a_worker_that_does_not_stop_is_free_after_the_grace_time(
    replica: Replica, workers: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "TIMEOUT_GRACE", SECOND // 20)
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a", timeout=seconds(60)))
    await a.next_given()
    replica.clock.advance(61)
    await replica.ended(run)
    await until(lambda: replica.held == 0)
    assert a.acks == []
    other = await replica.launch(step("a"))
    assert (await a.next_given(2)).run == other


async def test_a_step_that_nobody_takes_fails_at_its_queue_timeout(replica: Replica) -> None:
    run = await replica.launch(step("a", queue_timeout=seconds(30)))
    replica.clock.advance(31)
    assert (await replica.ended(run)).state == RUN_FAILED
    assert (await replica.record(run, "a")).reason == run_pb2.STEP_REASON_QUEUE_TIMED_OUT
    replica.assert_at_rest()


async def test_the_next_attempt_waits_for_its_back_off(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", fail)
    run = await replica.launch(step("a", retry=pipeline_pb2.RetryPolicy(max_attempts=2, initial_backoff=seconds(3600))))
    await replica.in_state(run, "a", RETRYING)
    assert len(a.given) == 1
    a.behaviour = ok
    replica.clock.advance(4000)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert [given.attempt for given in a.given] == [1, 2]


async def test_a_run_that_takes_too_long_is_stopped(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    await workers(replica, "c")
    run = await replica.launch(step("a"), step("b"), timeout=seconds(100), finally_steps=[step("c")])
    given = await a.next_given()
    replica.clock.advance(101)
    await until(lambda: a.told)
    await a.answer(given, result_pb2.OUTCOME_CANCELLED)
    head = await replica.ended(run)
    assert (head.state, head.reason) == (RUN_FAILED, run_pb2.RUN_REASON_TIMED_OUT)
    assert await replica.states(run) == [CANCELLED, SKIPPED, SUCCEEDED]


async def test_finally_steps_have_a_bound_of_their_own(replica: Replica, workers: Connect) -> None:
    await workers(replica, "a")
    c = await workers(replica, "c", mute)
    run = await replica.launch(step("a"), finally_steps=[step("c")], finally_timeout=seconds(50))
    await c.next_given()
    replica.clock.advance(51)
    assert (await replica.ended(run)).state == RUN_FAILED
    assert await replica.states(run) == [SUCCEEDED, CANCELLED]


async def test_a_worker_that_never_confirms_is_abandoned_after_the_grace_time(
    replica: Replica, workers: Connect
) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    await a.next_given()
    await replica.engine.request("default", run, CancelRequested("", 10 * SECOND))
    replica.clock.advance(11)
    assert (await replica.ended(run)).state == RUN_CANCELLED
    assert (await replica.record(run, "a")).reason == run_pb2.STEP_REASON_ABANDONED
    assert len(replica.engine.timers) == 0


@pytest.mark.parametrize(
    "kind", [{"timeout": seconds(100)}, {"step": {"timeout": seconds(100)}}, {"step": {"queue_timeout": seconds(100)}}]
)
async def test_deadlines_hold_after_a_restart(start_replica: StartReplica, kind: dict[str, Any]) -> None:
    clock = Clock()
    first = await start_replica("first", clock=clock)
    fields = dict(kind)
    worker = None
    if "queue_timeout" not in fields.get("step", {}):
        worker = await Worker(first, "a", mute).connect()
    run = await first.launch(step("a", **fields.pop("step", {})), **fields)
    assert (await first.states(run))[0] == (RUNNING if worker is not None else QUEUED)
    await first.kill()
    second = await start_replica("second", clock=clock)
    await second.sweep.once()
    clock.advance(200)
    if worker is not None:
        await worker.cut()

        async def acted() -> bool:
            return (await second.stored(run)).head.state != RUN_RUNNING

        # A run that timed out waits for its worker a while longer.
        await until(acted)
        clock.advance(60)
    assert (await second.ended(run)).state == RUN_FAILED

"""A server whose clock was ahead is started again with the right one: what it stored is due within its own bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf.duration_pb2 import Duration

from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND
from conveyor.state.runs import StoredRun
from conveyor.v1 import pipeline_pb2
from tests.support.faulty import Clock
from tests.support.rig import (
    QUEUED,
    RETRYING,
    RUN_CANCELLED,
    RUN_CANCELLING,
    RUN_FAILED,
    RUNNING,
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

HOUR = 3600.0
MINUTE = Duration(seconds=60)


def ahead() -> Clock:
    clock = Clock()
    clock.advance(HOUR)
    return clock


def nearest(replica: Replica, run: StoredRun) -> float:
    """Seconds until the run is due."""
    times = [record.next_time for record in run.state.steps if record is not None and record.next_time]
    return (min(times) - replica.clock()) / SECOND


async def test_a_step_times_out_in_its_time_after_the_clock_was_set_back(
    start_replica: StartReplica, workers: Connect
) -> None:
    first = await start_replica("first", clock=ahead())
    a = await workers(first, "a", mute)
    run = await first.launch(step("a", timeout=MINUTE))
    await a.next_given()
    await first.kill()

    second = await start_replica("second")
    await a.cut()
    await a.connect(second)
    await second.sweep.once()
    await until(lambda: _within(second, run, 60))
    assert await second.states(run) == [RUNNING]
    second.clock.advance(61)
    assert (await second.ended(run)).state == RUN_FAILED
    assert (await second.record(run, "a")).attempts[0].message == "attempt 1 took longer than 60 s"


async def _within(replica: Replica, run: str, bound: float) -> bool:
    return nearest(replica, await replica.stored(run)) <= bound


async def test_a_back_off_ends_in_its_time_after_the_clock_was_set_back(
    start_replica: StartReplica, workers: Connect
) -> None:
    first = await start_replica("first", clock=ahead())
    a = await workers(first, "a", fail)
    retry = pipeline_pb2.RetryPolicy(max_attempts=2, initial_backoff=MINUTE, max_backoff=MINUTE)
    run = await first.launch(step("a", retry=retry))
    await first.in_state(run, "a", RETRYING)
    await first.kill()

    second = await start_replica("second")
    await a.cut()
    await a.connect(second)
    await second.sweep.once()
    await until(lambda: _within(second, run, 70))
    second.clock.advance(71)
    assert (await second.ended(run)).state == RUN_FAILED
    assert len(a.given) == 2


async def test_a_wait_ends_in_its_time_after_the_clock_was_set_back(start_replica: StartReplica) -> None:
    first = await start_replica("first", clock=ahead())
    run = await first.launch(step("a", queue_timeout=MINUTE))
    await first.in_state(run, "a", QUEUED)
    await first.kill()

    second = await start_replica("second")
    await second.sweep.once()
    await until(lambda: _within(second, run, 60))
    second.clock.advance(61)
    assert (await second.ended(run)).state == RUN_FAILED


async def test_a_worker_that_does_not_stop_is_given_up_in_time_after_the_clock_was_set_back(
    start_replica: StartReplica, workers: Connect
) -> None:
    first = await start_replica("first", clock=ahead())
    a = await workers(first, "a", mute)
    run = await first.launch(step("a"))
    await a.next_given()
    await first.handle(run, CancelRequested("enough", 60 * SECOND))
    await until(lambda: a.told)
    await first.kill()

    second = await start_replica("second")
    await a.cut()
    await a.connect(second)
    await until(lambda: len(a.told) == 2)
    assert a.told[1].grace.ToMicroseconds() <= 60 * SECOND
    await second.sweep.once()

    async def is_near() -> bool:
        head = (await second.stored(run)).head
        return head.state == RUN_CANCELLING and head.cancel_deadline <= second.clock() + 60 * SECOND

    await until(is_near)
    second.clock.advance(61)
    assert (await second.ended(run)).state == RUN_CANCELLED


async def test_what_waits_since_the_clock_was_ahead_goes_before_what_comes_now(
    start_replica: StartReplica, workers: Connect
) -> None:
    first = await start_replica("first", clock=ahead())
    waits = await first.launch(step("a"))
    await first.in_state(waits, "a", QUEUED)
    await first.kill()

    second = await start_replica("second")
    await second.sweep.once()
    await until(lambda: second.engine.pool.waiting_runs())
    comes = await second.launch(step("a"))
    a = await workers(second, "a", ok)
    await second.ended(comes)
    assert [given.run for given in a.given] == [waits, comes]


async def test_a_clock_that_is_set_ahead_lets_time_run_out_early(start_replica: StartReplica, workers: Connect) -> None:
    """Nothing can tell that from time that has passed while no server ran."""
    first = await start_replica("first")
    a = await workers(first, "a", mute)
    run = await first.launch(step("a", timeout=MINUTE))
    await a.next_given()
    await first.kill()

    second = await start_replica("second", clock=ahead())
    await second.sweep.once()
    assert (await second.ended(run)).state == RUN_FAILED


async def test_replicas_whose_clocks_differ_by_an_hour_end_a_run_all_the_same(
    start_replica: StartReplica, workers: Connect
) -> None:
    one = await start_replica("one", shared=True, lease=1.0)
    other = await start_replica("other", shared=True, lease=1.0, clock=ahead())
    a, b = await workers(other, "a"), await workers(one, "b")
    run = await other.launch(step("a", timeout=Duration(seconds=2 * 3600)), step("b", timeout=Duration(seconds=7200)))
    await one.sweep.once()
    await other.sweep.once()
    head = await one.ended(run)
    assert head.create_time <= head.start_time <= head.end_time
    assert (len(a.given), len(b.given)) == (1, 1)

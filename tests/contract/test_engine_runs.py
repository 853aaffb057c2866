"""Runs from their first commit to their end: what is given out, what is freed, and what a lost answer changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from conveyor.core import errors
from conveyor.core.events import CancelRequested, RunCreated
from conveyor.core.plan import SECOND
from conveyor.store.port import Exhausted, Guard, Put, Unavailable, Uncertain
from conveyor.v1 import pipeline_pb2, result_pb2, run_pb2
from tests.support.faulty import once, touches
from tests.support.rig import (
    CANCELLED,
    FAILED,
    GRAPH,
    QUEUED,
    RUN_CANCELLED,
    RUN_FAILED,
    RUN_SUCCEEDED,
    RUNNING,
    SUCCEEDED,
    Replica,
    Worker,
    dup,
    fail,
    flaky,
    mute,
    step,
    until,
)

Connect = Callable[..., Awaitable[Worker]]


async def test_runs_through_its_steps_in_order(replica: Replica, workers: Connect) -> None:
    a, b = await workers(replica, "a"), await workers(replica, "b")
    run = await replica.launch(step("s1", driver="a"), step("s2", driver="b"), step("s3", driver="a"))
    head = await replica.ended(run)
    assert head.state == RUN_SUCCEEDED
    assert [given.step for given in a.given] == ["s1", "s3"]
    assert [given.step for given in b.given] == ["s2"]
    assert set(a.given[1].results) == {"s1", "s2"}
    await until(lambda: len(a.acks) == 2)
    replica.assert_at_rest()


async def test_a_failed_step_is_tried_again_and_then_fails_the_run(replica: Replica, workers: Connect) -> None:
    retry = pipeline_pb2.RetryPolicy(max_attempts=3)
    retry.initial_backoff.FromMicroseconds(1000)
    await workers(replica, "a", flaky(2))
    await workers(replica, "b", fail)
    assert (await replica.ended(await replica.launch(step("a", retry=retry)))).state == RUN_SUCCEEDED
    run = await replica.launch(step("b", retry=retry), step("a"))
    assert (await replica.ended(run)).state == RUN_FAILED
    assert (await replica.record(run, "b")).attempt == 3
    await until(lambda: replica.held == 0)
    replica.assert_at_rest()


async def test_a_second_answer_changes_nothing(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", dup)
    run = await replica.launch(step("a"))
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    await until(lambda: len(a.acks) == 3)
    dispositions = [ack.disposition for ack in a.acks]
    assert dispositions == [
        result_pb2.DISPOSITION_ACCEPTED,
        result_pb2.DISPOSITION_DUPLICATE,
        result_pb2.DISPOSITION_CONFLICT,
    ]


async def test_thousand_steps_at_once_need_several_commits(replica: Replica, workers: Connect) -> None:
    d = await workers(replica, "d", slots=64)
    steps = [step(f"s{i}", driver="d") for i in range(999)]
    run = await replica.launch(*steps, step("last", *(s.id for s in steps), driver="d"), order=GRAPH)
    assert (await replica.ended(run, 60)).state == RUN_SUCCEEDED
    assert len({given.step for given in d.given}) == len(d.given) == 1000
    assert d.given[-1].step == "last"
    await until(lambda: not replica.engine._tasks)
    replica.assert_at_rest()


async def test_steps_wait_for_a_worker_and_say_so(replica: Replica, workers: Connect) -> None:
    run = await replica.launch(step("a"))
    record = await replica.record(run, "a")
    assert (record.state, record.reason) == (QUEUED, run_pb2.STEP_REASON_NO_WORKER)
    await workers(replica, "a", mute)
    await replica.in_state(run, "a", RUNNING)
    other = await replica.launch(step("a"))
    record = await replica.record(other, "a")
    assert (record.state, record.reason) == (QUEUED, run_pb2.STEP_REASON_WORKERS_BUSY)


async def test_what_waits_longest_goes_first(replica: Replica, workers: Connect) -> None:
    runs = [await replica.launch(step("a")) for _ in range(5)]
    a = await workers(replica, "a")
    await until(lambda: len(a.acks) == 5)
    assert [given.run for given in a.given] == runs


async def test_a_cancelled_run_leaves_the_row(replica: Replica) -> None:
    runs = [await replica.launch(step("a")) for _ in range(100)]
    assert replica.engine.pool.waiting("default", "a") == 100
    for run in runs:
        _, stored = await replica.engine.request("default", run, CancelRequested("enough", 0))
        assert stored.head.state == RUN_CANCELLED
    assert replica.engine.pool.waiting("default", "a") == 0
    replica.assert_at_rest()
    assert not replica.engine.pool._belts


async def test_cancel_tells_the_worker_and_waits_for_its_answer(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"), step("b"))
    given = await a.next_given()
    await replica.engine.request("default", run, CancelRequested("stop it", 30 * SECOND))
    await until(lambda: a.told)
    assert (a.told[0].run, a.told[0].step, a.told[0].attempt, a.told[0].message) == (run, "a", 1, "stop it")
    assert (await replica.states(run))[0] == RUNNING
    await a.answer(given, result_pb2.OUTCOME_CANCELLED)
    assert (await replica.ended(run)).state == RUN_CANCELLED
    await until(lambda: replica.held == 0)


async def test_a_worker_that_does_not_confirm_is_abandoned_and_its_late_answer_changes_nothing(
    replica: Replica, workers: Connect
) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    await replica.engine.request("default", run, CancelRequested("stop it", SECOND))
    replica.clock.advance(2)
    assert (await replica.ended(run)).state == RUN_CANCELLED
    record = await replica.record(run, "a")
    assert (record.state, record.reason) == (CANCELLED, run_pb2.STEP_REASON_ABANDONED)
    await a.answer(given)
    await until(lambda: a.acks)
    assert a.acks[0].disposition == result_pb2.DISPOSITION_RUN_FINISHED
    assert (await replica.states(run)) == [CANCELLED]
    assert replica.held == 0


# Reservations


async def test_an_abandoned_start_gives_its_worker_to_those_who_wait(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a")
    prepared = replica.prepare(step("a"))
    waiting = await replica.launch(step("a"))
    assert (await replica.states(waiting)) == [QUEUED]
    replica.launcher.abandoned(prepared)
    assert (await replica.ended(waiting)).state == RUN_SUCCEEDED
    assert [given.run for given in a.given] == [waiting]


async def test_a_caller_that_goes_away_leaves_nothing_reserved(replica: Replica, workers: Connect) -> None:
    await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    replica.store.hold = asyncio.Event()
    call = asyncio.create_task(replica.engine.request("default", run, CancelRequested("", 0, force=True)))
    await until(lambda: replica.engine._tasks)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    replica.store.hold.set()
    assert (await replica.ended(run)).state == RUN_CANCELLED
    # Its timer may look at it once more.
    await until(lambda: not (replica.held or replica.engine._entries or replica.engine._tasks))
    replica.assert_at_rest()


async def test_a_claim_that_comes_too_late_frees_the_worker(replica: Replica, workers: Connect) -> None:
    run = await replica.launch(step("a"))
    replica.store.hold = asyncio.Event()
    cancel = asyncio.create_task(replica.engine.request("default", run, CancelRequested("", 0)))
    await until(lambda: replica.engine._tasks)
    connecting = asyncio.create_task(workers(replica, "a"))
    replica.store.hold.set()
    await cancel
    a = await connecting
    assert (await replica.ended(run)).state == RUN_CANCELLED
    await until(lambda: replica.held == 0)
    assert a.given == []
    assert (await replica.ended(await replica.launch(step("a")))).state == RUN_SUCCEEDED


async def test_a_worker_that_leaves_before_its_claim_is_stored_gets_nothing_and_the_step_goes_on(
    replica: Replica, workers: Connect
) -> None:
    first = await workers(replica, "a")
    replica.store.hold = asyncio.Event()
    prepared = replica.prepare(step("a"))
    assert replica.held == 1
    commit = asyncio.create_task(replica.store.commit(prepared.guards, prepared.puts))
    await first.cut()
    await until(lambda: all(worker.outbox is None for worker in replica.engine.pool))
    replica.store.hold.set()
    await replica.launcher.launched(prepared, await commit)
    await replica.in_state(prepared.run_id, "a", QUEUED)
    assert replica.held == 0
    second = await workers(replica, "a")
    assert (await replica.ended(prepared.run_id)).state == RUN_SUCCEEDED
    assert [given.attempt for given in second.given] == [1]
    assert first.given == []


# The store


async def test_a_conflict_is_applied_again_to_what_is_stored(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    stored = await replica.stored(run)
    key = f"/conveyor/v1/runs/default/{run}/head"
    kv = await replica.store.get(key)
    assert kv is not None
    # Somebody else writes the head: the state in hand is not the stored one any more.
    await replica.store.commit([Guard(key, stored.revision)], [Put(key, kv.value)])
    await a.answer(given)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_result_whose_commit_lost_its_answer_counts_once(
    replica: Replica, workers: Connect, where: str
) -> None:
    a, b = await workers(replica, "a"), await workers(replica, "b")
    replica.store.lose = once(where, touches("/steps/b"))
    run = await replica.launch(step("a"), step("b"))
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    await until(lambda: a.acks and b.acks)
    assert a.acks[0].disposition == result_pb2.DISPOSITION_ACCEPTED
    assert len(b.given) == 1
    await until(lambda: not replica.engine._tasks)
    replica.assert_at_rest()


async def test_all_that_follows_from_a_commit_follows_when_its_answer_is_lost(
    replica: Replica, workers: Connect
) -> None:
    """Not only what is sent: what waits goes into its row, and deadlines are kept."""
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"), step("b"))
    given = await a.next_given()
    replica.store.lose = once("after")
    await a.answer(given)
    await replica.in_state(run, "b", QUEUED)
    await until(lambda: replica.engine.pool.waiting("default", "b") == 1)
    await workers(replica, "b")
    assert (await replica.ended(run)).state == RUN_SUCCEEDED


async def test_a_lost_answer_of_a_request_is_told_unless_it_is_seen(replica: Replica) -> None:
    run = await replica.launch(step("a"))
    replica.store.lose = once("before")
    with pytest.raises(Uncertain):
        await replica.engine.request("default", run, CancelRequested("", 0))
    assert (await replica.stored(run)).head.state == run_pb2.RUN_STATE_RUNNING
    replica.store.lose = once("after")
    _, stored = await replica.engine.request("default", run, CancelRequested("", 0))
    assert stored.head.state == RUN_CANCELLED
    replica.assert_at_rest()


async def test_results_wait_while_the_store_is_away_and_requests_fail(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    replica.store.away = True
    with pytest.raises(Unavailable):
        await replica.engine.request("default", run, CancelRequested("", 0))
    await a.answer(given)
    await until(lambda: replica.engine._tasks)
    assert a.acks == []
    replica.store.away = False
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    await until(lambda: a.acks)
    assert a.acks[0].disposition == result_pb2.DISPOSITION_ACCEPTED
    assert replica.held == 0


async def test_results_wait_while_the_store_is_full(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    replica.store.full = True
    with pytest.raises(Exhausted):
        await replica.engine.request("default", run, CancelRequested("", 0))
    await a.answer(given)
    await until(lambda: replica.store.refused > 2)
    assert a.acks == []
    assert a.error is None
    replica.store.full = False
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    await until(lambda: a.acks)
    assert a.acks[0].disposition == result_pb2.DISPOSITION_ACCEPTED
    assert len(a.given) == 1
    replica.assert_at_rest()


async def test_an_unknown_run_leaves_nothing_behind(replica: Replica) -> None:
    with pytest.raises(errors.NotFound):
        await replica.handle("0190c2a0-0000-7000-8000-000000000000", RunCreated())
    replica.assert_at_rest()


# Broadcasts


async def test_a_broadcast_goes_to_the_drivers_that_listen(replica: Replica, workers: Connect) -> None:
    anything = await workers(replica, "a")
    a = await workers(replica, "a", definitions=["app"])
    b = await workers(replica, "b", fail, definitions=["app", "job"])
    c = await workers(replica, "c", definitions=["job"])
    run = await replica.launch()
    assert (await replica.ended(run)).state == RUN_FAILED
    assert await replica.states(run) == [SUCCEEDED, FAILED]
    assert (len(a.given), len(b.given), len(c.given), len(anything.given)) == (1, 1, 0, 0)


async def test_a_worker_without_definitions_never_gets_a_broadcast(replica: Replica, workers: Connect) -> None:
    busy = await workers(replica, "a", mute, definitions=["app"])
    await replica.launch()
    await busy.next_given()
    second = await replica.launch()
    anything = await workers(replica, "a")
    assert (await replica.ended(await replica.launch(step("a")))).state == RUN_SUCCEEDED
    assert await replica.states(second) == [QUEUED]
    await busy.answer(busy.given[0])
    await busy.next_given(2)
    assert len(anything.given) == 1


async def test_a_broadcast_to_nobody_succeeds_and_says_so(replica: Replica) -> None:
    run = await replica.launch()
    head = (await replica.stored(run)).head
    assert (head.state, head.reason) == (RUN_SUCCEEDED, run_pb2.RUN_REASON_NO_DRIVER)


async def test_a_broadcast_that_is_not_answered_ends_at_its_time(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute, definitions=["app"])
    run = await replica.launch()
    await a.next_given()
    replica.clock.advance(601)
    assert (await replica.ended(run)).state == RUN_FAILED
    await until(lambda: a.told)

"""Workers come, break off, come back, move, drain and are lost."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

import grpc
import pytest

from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND
from conveyor.state import keys
from conveyor.v1 import pipeline_pb2, result_pb2, run_pb2, worker_pb2
from tests.support.rig import (
    QUEUED,
    RUN_CANCELLED,
    RUN_SUCCEEDED,
    RUNNING,
    Replica,
    Worker,
    mute,
    reason,
    step,
    until,
)

Connect = Callable[..., Awaitable[Worker]]
StartReplica = Callable[..., Awaitable[Replica]]


async def stored_sessions(replica: Replica) -> int:
    return len((await replica.store.list(keys.SESSIONS)).items)


async def test_a_worker_that_has_nothing_leaves_no_session(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a")
    assert await stored_sessions(replica) == 1
    await a.cut()

    async def none() -> bool:
        return await stored_sessions(replica) == 0

    await until(none)
    assert len(replica.sessions) == 0
    assert list(replica.engine.pool) == []
    assert list(replica.engine.sessions) == []


async def test_a_worker_that_reconnects_keeps_what_it_holds(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    session = a.session
    await a.cut()
    await a.connect()
    assert a.session == session
    assert list(a.welcome.revoked) == []
    await a.answer(given)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert len(a.given) == 1
    assert len((await replica.record(run, "a")).attempts) == 1


async def test_what_a_worker_does_not_hold_is_given_out_again_at_once(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    first = await a.next_given()
    await a.cut()
    a.holding.clear()
    await a.connect()
    second = await a.next_given(2)
    assert (second.run, second.attempt) == (run, 1)
    assert second.token != first.token
    await a.answer(first)
    await until(lambda: a.acks)
    assert a.acks[0].disposition == result_pb2.DISPOSITION_STALE_ATTEMPT
    await a.answer(second)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert len((await replica.record(run, "a")).attempts) == 1


async def test_what_a_worker_holds_in_vain_is_revoked_and_its_place_is_free(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    await a.cut()
    await replica.engine.request("default", run, CancelRequested("", 0, force=True))
    foreign = worker_pb2.Holding(run="no run", step="a", attempt=1, token="x")
    await a.connect(holding=[*a.holding.values(), foreign])
    assert [each.token for each in a.welcome.revoked] == [given.token, "x"]
    other = await replica.launch(step("a"))
    assert (await a.next_given(2)).run == other


async def test_a_cancel_reaches_a_worker_that_was_away(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    await a.cut()
    await replica.engine.request("default", run, CancelRequested("no more", 600 * SECOND))
    assert a.told == []
    await a.connect()
    await until(lambda: a.told)
    assert (a.told[0].run, a.told[0].step, a.told[0].message) == (run, "a", "no more")
    assert 500 < a.told[0].grace.seconds <= 600
    await a.answer(given, result_pb2.OUTCOME_CANCELLED)
    assert (await replica.ended(run)).state == RUN_CANCELLED


async def test_a_new_stream_closes_the_old_one_whose_end_changes_nothing(replica: Replica, workers: Connect) -> None:
    old = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await old.next_given()
    new = Worker(replica, "a", mute)
    new.session, new.holding = old.session, dict(old.holding)
    await new.connect()
    error = await old.ended()
    assert (error.code(), reason(error)) == (grpc.StatusCode.ABORTED, "SESSION_TAKEN_OVER")
    await until(lambda: not replica.engine._tasks)
    assert len(replica.sessions) == 1
    assert next(iter(replica.engine.pool)).outbox is not None
    await new.answer(given)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    await new.cut()


async def test_streams_of_one_session_at_the_same_time_leave_one_that_works(replica: Replica, workers: Connect) -> None:
    first = await workers(replica, "a", mute)
    others = [Worker(replica, "a") for _ in range(5)]
    for other in others:
        other.session = first.session
    replica.store.hold = asyncio.Event()
    connecting = [asyncio.create_task(other.connect()) for other in others]
    await until(lambda: replica.engine.pool.session(first.session).outbox is None)  # type: ignore[union-attr]
    replica.store.hold.set()
    await asyncio.gather(*connecting, return_exceptions=True)
    await until(lambda: sum(other.error is None for other in others) == 1)
    assert {reason(other.error) for other in others if other.error} == {"SESSION_TAKEN_OVER"}
    run = await replica.launch(step("a"))
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert len(replica.sessions) == 1
    for other in others:
        await other.cut()


async def test_a_worker_that_falls_silent_is_lost_and_its_step_tried_elsewhere(
    start_replica: StartReplica, workers: Connect
) -> None:
    replica = await start_replica(ttl=1.0)
    silent = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await silent.next_given()
    await silent.hang()
    other = await workers(replica, "a")
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert (await other.next_given()).attempt == 2
    record = await replica.record(run, "a")
    assert record.attempts[0].reason == run_pb2.STEP_REASON_WORKER_LOST
    assert record.losses == 1
    # Back from its stop it can change nothing, and is told so.
    await silent.cut()
    session = silent.session
    await silent.connect()
    assert silent.session != session
    assert [each.token for each in silent.welcome.revoked] == [given.token]


async def test_a_lost_worker_gives_back_all_hundred_steps_of_a_run(
    start_replica: StartReplica, workers: Connect
) -> None:
    """More than one commit can take."""
    replica = await start_replica(ttl=1.0)
    gone = await workers(replica, "a", mute, slots=100)
    run = await replica.launch(*(step(f"s{i}", driver="a") for i in range(100)), order=pipeline_pb2.ORDER_GRAPH)
    await gone.next_given(100)
    await gone.cut()
    other = await workers(replica, "a", slots=100)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert {given.attempt for given in other.given} == {2}


async def test_a_worker_that_breaks_off_is_lost_when_it_stays_away(
    start_replica: StartReplica, workers: Connect
) -> None:
    replica = await start_replica(ttl=1.0)
    gone = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    await gone.next_given()
    await gone.cut()
    await replica.in_state(run, "a", QUEUED)
    assert await stored_sessions(replica) == 0
    assert replica.held == 0


async def test_a_server_that_was_stopped_itself_loses_no_worker(start_replica: StartReplica, workers: Connect) -> None:
    replica = await start_replica(ttl=1.0)
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    for session in replica.sessions._sessions.values():
        session.last_sign -= 100
    replica.sessions.forgive(100)
    assert all(time.monotonic() - s.last_sign < 50 for s in replica.sessions._sessions.values())
    await a.answer(given)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert (await replica.record(run, "a")).losses == 0


async def test_a_restarted_server_takes_its_workers_back(start_replica: StartReplica, workers: Connect) -> None:
    first = await start_replica("first")
    keeps, forgets = await workers(first, "a", mute), await workers(first, "b", mute)
    run = await first.launch(step("a"), step("b"), order=pipeline_pb2.ORDER_GRAPH)
    await asyncio.gather(keeps.next_given(), forgets.next_given())
    await first.kill()
    await keeps.cut()
    await forgets.cut()
    second = await start_replica("second")
    await second.sweep.once()
    assert set(second.engine.unattached) == {keeps.session, forgets.session}
    forgets.holding.clear()
    await keeps.connect(second)
    await forgets.connect(second)
    again = await forgets.next_given(2)
    assert (again.step, again.attempt) == ("b", 1)
    await keeps.answer(keeps.given[0])
    await forgets.answer(again)
    assert (await second.ended(run)).state == RUN_SUCCEEDED
    assert len(keeps.given) == 1
    assert second.engine.unattached == {}


async def test_a_sweep_that_comes_while_a_worker_is_taken_back_takes_nothing_from_it(
    start_replica: StartReplica, workers: Connect
) -> None:
    first = await start_replica("first")
    keeps, forgets = await workers(first, "a", mute), await workers(first, "b", mute)
    run = await first.launch(step("a"), step("b"), order=pipeline_pb2.ORDER_GRAPH)
    await asyncio.gather(keeps.next_given(), forgets.next_given())
    await first.kill()
    await keeps.cut()
    await forgets.cut()
    forgets.holding.clear()
    # Even one that holds nothing of what it is told to hold must be asked about it.
    forgets.holding["x"] = worker_pb2.Holding(run=str(uuid.uuid4()), step="b", attempt=1, token="x")
    second = await start_replica("second")
    stored = await second.stored(run)
    second.store.hold_ranges = asyncio.Event()
    coming = [asyncio.create_task(worker.connect(second)) for worker in (keeps, forgets)]
    await until(lambda: all(second.engine.pool.session(worker.session) for worker in (keeps, forgets)))
    second.engine.resume(stored)
    second.store.hold_ranges.set()
    await asyncio.gather(*coming)
    again = await forgets.next_given(2)
    assert (again.step, again.attempt) == ("b", 1)
    await keeps.answer(keeps.given[0])
    await forgets.answer(again)
    assert (await second.ended(run)).state == RUN_SUCCEEDED
    assert len(keeps.given) == 1


async def test_a_worker_may_be_back_before_the_sweep(start_replica: StartReplica, workers: Connect) -> None:
    first = await start_replica("first")
    a = await workers(first, "a", mute)
    run = await first.launch(step("a"))
    await a.next_given()
    await first.kill()
    await a.cut()
    second = await start_replica("second")
    a.holding.clear()
    await a.connect(second)
    assert await second.states(run) == [RUNNING]
    await second.sweep.once()
    assert (await a.next_given(2)).attempt == 1


async def test_more_slots_take_more_and_fewer_take_no_more(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    runs = [await replica.launch(step("a")) for _ in range(5)]
    await a.next_given()
    await a.say(heartbeat=worker_pb2.Heartbeat(slots=3))
    await a.next_given(3)
    await a.say(heartbeat=worker_pb2.Heartbeat(slots=1))
    worker = next(iter(replica.engine.pool))
    await until(lambda: worker.slots == 1)
    for given in a.given[:2]:
        await a.answer(given)
    await until(lambda: len(a.acks) == 2)
    await until(lambda: not replica.engine._tasks)
    assert len(a.given) == 3
    await a.answer(a.given[2])
    await a.next_given(4)
    assert [given.run for given in a.given] == runs[:4]


async def test_a_drained_worker_ends_what_it_has_and_gets_no_more(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute, slots=2)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    await a.say(drain=worker_pb2.Drain())
    await until(lambda: a.drained)
    waiting = await replica.launch(step("a"))
    record = await replica.record(waiting, "a")
    assert (record.state, record.reason) == (QUEUED, run_pb2.STEP_REASON_NO_WORKER)
    await a.answer(given)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    other = await workers(replica, "a")
    assert (await other.next_given()).run == waiting
    assert len(a.given) == 1


async def test_a_claim_that_was_under_way_is_not_sent_after_drained(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    prepared = replica.prepare(step("a"))
    assert replica.held == 1
    await a.say(drain=worker_pb2.Drain())
    await until(lambda: a.drained)
    revision = await replica.store.commit(prepared.guards, prepared.puts)
    await replica.launcher.launched(prepared, revision)
    await replica.in_state(prepared.run_id, "a", QUEUED)
    assert a.given == []
    assert replica.held == 0


async def test_what_was_not_sent_before_drained_goes_to_others(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    prepared = replica.prepare(step("a"))
    revision = await replica.store.commit(prepared.guards, prepared.puts)
    session = replica.sessions._sessions[a.session]
    assert session.outbox is not None
    await replica.launcher.launched(prepared, revision)  # in the outbox; its writer has not run yet
    replica.sessions.drain(session, session.outbox)
    await replica.in_state(prepared.run_id, "a", QUEUED)
    b = await workers(replica, "a")
    assert (await replica.ended(prepared.run_id)).state == RUN_SUCCEEDED
    assert (len(a.given), len(b.given)) == (0, 1)


async def test_sessions_that_never_came_to_be_are_ended(start_replica: StartReplica, workers: Connect) -> None:
    replica = await start_replica(ttl=5.0)
    a = await workers(replica, "a")
    replica.store.lose = lambda puts: "after" if any("/sessions/" in put.key for put in puts) else ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Worker(replica, "a").connect()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    replica.store.lose = lambda puts: ""
    await until(lambda: len(list(replica.engine.sessions)) == 2)
    await replica.sessions.end_strays()
    assert await stored_sessions(replica) == 2
    replica.clock.advance(6)
    await replica.sessions.end_strays()
    assert await stored_sessions(replica) == 1
    assert [record.id for record in replica.engine.sessions] == [a.session]


async def test_an_orderly_end_keeps_sessions_for_the_next_server(start_replica: StartReplica, workers: Connect) -> None:
    first = await start_replica("first")
    a = await workers(first, "a")
    session = a.session
    first.sessions.close()
    error = await a.ended()
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Worker(first, "a").connect()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await first.stop()
    second = await start_replica("second")
    await a.cut()
    await a.connect(second)
    assert a.session == session


async def test_nothing_is_left_of_workers_that_came_and_went(replica: Replica) -> None:
    async def visit() -> None:
        worker = await Worker(replica, "a").connect()
        await worker.cut()

    async def settled() -> bool:
        return not len(replica.sessions) and not replica.engine._tasks and not await stored_sessions(replica)

    await visit()
    await until(settled)
    before = len(asyncio.all_tasks())
    for _ in range(10):
        await asyncio.gather(*(visit() for _ in range(10)))
    await until(settled)
    await until(lambda: len(asyncio.all_tasks()) <= before)
    assert not replica.engine.pool._belts
    assert not replica.engine.pool._by_session
    assert not len(replica.sessions._turns)

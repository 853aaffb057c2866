"""The sweep finds whatever a crash left undone. Each test leaves one kind of it, as a dead process would."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from conveyor.core.events import CancelRequested, Claim, Claimed, RunCreated
from conveyor.core.plan import SECOND
from conveyor.core.transitions import apply
from conveyor.state import keys
from conveyor.state.runs import StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Put
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.support.rig import (
    GRAPH,
    QUEUED,
    RUN_CANCELLED,
    RUN_RUNNING,
    RUN_SUCCEEDED,
    RUNNING,
    Replica,
    Worker,
    active,
    mute,
    resource,
    step,
    until,
)

Connect = Callable[..., Awaitable[Worker]]
StartReplica = Callable[..., Awaitable[Replica]]


async def store_run(replica: Replica, *steps: pipeline_pb2.Step, created: bool = True, **fields: object) -> StoredRun:
    """Stores a run as a process would that dies right after its commit: nothing follows."""
    prepared = replica.prepare(*steps, **fields)
    if created:
        revision = await replica.store.commit(prepared.guards, prepared.puts)
        return prepared.state.moved(prepared.decision.state, revision)
    pipeline = pipeline_pb2.Pipeline(namespace="default", name="p", steps=steps)
    run = replica.runs.new(prepared.run_id, replica.clock(), "default", pipeline, resource(), labels={})
    decision = apply(run.state, RunCreated(), replica.clock())
    decision.state, decision.changed = run.state, frozenset()
    new = replica.runs.creation(run, decision)
    return run.moved(run.state, await replica.store.commit(new.guards, new.puts))


async def test_a_pending_run_is_started(replica: Replica, workers: Connect) -> None:
    run = await store_run(replica, step("a"), created=False)
    assert (await replica.stored(run.head.id)).head.state == run_pb2.RUN_STATE_PENDING
    await workers(replica, "a")
    await replica.sweep.once()
    assert (await replica.ended(run.head.id)).state == RUN_SUCCEEDED


async def test_a_queued_step_is_given_out(replica: Replica, workers: Connect) -> None:
    run = await store_run(replica, step("a"))
    await workers(replica, "a")
    assert await replica.states(run.head.id) == [QUEUED]
    await replica.sweep.once()
    assert (await replica.ended(run.head.id)).state == RUN_SUCCEEDED


async def test_an_assignment_that_was_never_sent_is_given_out_again(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a")
    run = await store_run(replica, step("a"))
    for token in list(next(iter(replica.engine.pool)).held):
        replica.engine.pool.release(token)
    assert await replica.states(run.head.id) == [RUNNING]
    await replica.sweep.once()
    assert (await replica.ended(run.head.id)).state == RUN_SUCCEEDED
    assert [given.attempt for given in a.given] == [1]


async def test_a_step_of_a_session_that_is_gone_is_tried_again(replica: Replica, workers: Connect) -> None:
    run = await store_run(replica, step("a"))
    claim = Claim(0, "no such session", "gone", "token", run_pb2.TRANSPORT_GRPC)
    await replica.runs.commit(run, apply(run.state, Claimed((claim,)), replica.clock()))
    a = await workers(replica, "a")
    await replica.sweep.once()
    assert (await replica.ended(run.head.id)).state == RUN_SUCCEEDED
    record = await replica.record(run.head.id, "a")
    assert [attempt.reason for attempt in record.attempts] == [run_pb2.STEP_REASON_WORKER_LOST, 0]
    assert [given.attempt for given in a.given] == [2]


async def test_a_session_that_is_not_known_here_yet_is_not_lost(replica: Replica) -> None:
    """Its record is stored, but the watch that tells of it is behind."""
    record = storage_pb2.SessionRecord(id="s", namespace="default", driver="a", replica="other", ttl=15 * SECOND)
    await replica.session_store.put(record, 0)
    run = await store_run(replica, step("a"))
    claim = Claim(0, "s", "w", "token", run_pb2.TRANSPORT_GRPC)
    await replica.runs.commit(run, apply(run.state, Claimed((claim,)), replica.clock()))
    replica.engine.sessions.clear()
    await replica.sweep.once()
    await until(lambda: not replica.engine._tasks)
    assert await replica.states(run.head.id) == [RUNNING]


async def test_a_fan_out_that_stopped_half_way_goes_on(replica: Replica, workers: Connect) -> None:
    run = await store_run(replica, *(step(f"s{i}", driver="d") for i in range(200)), order=GRAPH)
    states = await replica.states(run.head.id)
    assert 0 < states.count(QUEUED) < 200
    await replica.sweep.once()
    await until(lambda: replica.engine.pool.waiting("default", "d") == 200)
    await workers(replica, "d", slots=64)
    assert (await replica.ended(run.head.id)).state == RUN_SUCCEEDED


async def test_a_cancel_that_stopped_half_way_goes_on(replica: Replica) -> None:
    run = await store_run(replica, *(step(f"s{i}", driver="d") for i in range(200)), order=GRAPH)
    await replica.sweep.once()
    await until(lambda: replica.engine.pool.waiting("default", "d") == 200)
    await until(lambda: not replica.engine._tasks)
    stored = await replica.stored(run.head.id)
    decision = apply(stored.state, CancelRequested("", 30 * SECOND), replica.clock())
    assert decision.more
    await replica.runs.commit(stored, decision)
    replica.engine.outdated("default", run.head.id, 1 << 60)
    await replica.sweep.once()
    assert (await replica.ended(run.head.id)).state == RUN_CANCELLED


async def test_what_is_active_without_a_run_is_forgotten(replica: Replica) -> None:
    await replica.store.commit((), [Put(keys.active("default", "0190c2a0-0000-7000-8000-000000000000"), b"")])
    await replica.sweep.once()
    assert await active(replica.store) == []


@pytest.mark.parametrize("broken", ["head", "spec", "steps/a", "no spec", "foreign step"])
async def test_a_run_that_cannot_be_read_is_put_aside_and_the_others_go_on(
    replica: Replica, workers: Connect, broken: str
) -> None:
    bad = (await store_run(replica, step("a"))).head.id
    good = (await store_run(replica, step("a"))).head.id
    prefix = keys.run_prefix("default", bad)
    spec = keys.spec("default", bad)
    if broken == "no spec":
        await replica.store.commit((), (), [spec])
    elif broken == "foreign step":
        foreign = storage_pb2.StepRecord(step="other", state=run_pb2.STEP_STATE_QUEUED)
        head = await replica.store.get(prefix + "head")
        assert head is not None
        puts = [Put(prefix + "head", head.value), Put(prefix + "steps/other", foreign.SerializeToString())]
        await replica.store.commit((), puts)
    else:
        head = await replica.store.get(prefix + "head")
        assert head is not None
        puts = [Put(spec if broken == "spec" else prefix + broken, b"\xff\xff")]
        if broken == "steps/a":
            puts.append(Put(prefix + "head", head.value))
        await replica.store.commit((), puts)
    await workers(replica, "a")
    await replica.sweep.once()
    assert (await replica.ended(good)).state == RUN_SUCCEEDED
    assert replica.sweep.quarantined == 1
    quarantined = await replica.store.list(keys.QUARANTINE)
    assert storage_pb2.QuarantineRecord.FromString(quarantined.items[0].value).source == prefix + "head"
    assert await active(replica.store) == []
    await replica.sweep.once()
    assert replica.sweep.quarantined == 1
    assert replica.ended_tasks == []


async def test_a_timer_of_a_run_that_cannot_be_read_stops_no_other(replica: Replica) -> None:
    bad = (await store_run(replica, step("a", queue_timeout={"seconds": 10}))).head.id
    good = await replica.launch(step("a", queue_timeout={"seconds": 20}))
    replica.engine.timers.set(("default", bad), replica.clock() + 10 * SECOND)
    await replica.store.commit((), [Put(keys.head("default", bad), b"\xff\xff")])
    replica.clock.advance(11)
    await until(lambda: len(replica.engine.timers) == 1)
    replica.clock.advance(11)
    await replica.ended(good)
    assert replica.ended_tasks == []


async def test_steps_of_runs_that_are_gone_leave_their_rows(replica: Replica) -> None:
    run = await store_run(replica, step("a"))
    replica.engine.resume(run)
    assert replica.engine.pool.waiting("default", "a") == 1
    prefix = keys.run_prefix("default", run.head.id)
    gone = [prefix + "head", prefix + "steps/a", keys.active("default", run.head.id)]
    await replica.store.commit((), (), gone)
    await replica.sweep.once()
    assert replica.engine.pool.waiting("default", "a") == 0


async def test_timers_of_runs_that_are_gone_are_forgotten(replica: Replica) -> None:
    run = await store_run(replica, step("a"))
    going_on = await store_run(replica, step("a"))
    for each in (run, going_on):
        replica.engine.resume(each)
    prefix = keys.run_prefix("default", run.head.id)
    gone = [prefix + "head", prefix + "steps/a", keys.active("default", run.head.id)]
    await replica.store.commit((), (), gone)
    await replica.sweep.once()
    assert replica.engine.timers.runs() == {("default", going_on.head.id)}


async def test_a_sweep_disturbs_nothing_that_is_in_order(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"), step("b"))
    waiting = await replica.launch(step("a"))
    given = await a.next_given()
    commits = replica.store.commits
    for _ in range(3):
        await replica.sweep.once()
        await until(lambda: not replica.engine._tasks)
    assert replica.store.commits == commits
    assert (len(a.given), (await replica.stored(run)).head.state) == (1, RUN_RUNNING)
    await a.answer(given)
    await a.next_given(2)
    assert a.given[1].run == waiting

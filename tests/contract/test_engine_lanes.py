"""Runs of one lane go one after the other, whoever dies in between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from conveyor.core import errors, limits
from conveyor.core.draft import MAX_LOSSES
from conveyor.core.events import CancelRequested, WorkerLost
from conveyor.core.plan import SECOND
from conveyor.engine.launch import PreparedRun
from conveyor.engine.waits import Waits
from conveyor.state import keys
from conveyor.state.lanes import Lane
from conveyor.state.views import full_run
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Put
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.support.rig import (
    RUN_CANCELLED,
    RUN_FAILED,
    RUN_SUCCEEDED,
    Replica,
    Worker,
    fail,
    mute,
    resource,
    step,
    until,
)

Connect = Callable[..., Awaitable[Worker]]
StartReplica = Callable[..., Awaitable[Replica]]

QUEUE = pipeline_pb2.CONCURRENCY_POLICY_QUEUE
REPLACE = pipeline_pb2.CONCURRENCY_POLICY_REPLACE
LANE = keys.lane("default", "p", "app", "x")


async def enter(
    replica: Replica, policy: pipeline_pb2.ConcurrencyPolicy.ValueType = QUEUE, *, dies: bool = False, timeout: int = 0
) -> str:
    """Stores a run that joins the lane. With `dies` the process does nothing more after the commit."""
    pipeline = pipeline_pb2.Pipeline(namespace="default", name="p", steps=[step("a")], finally_steps=[step("f")])
    pipeline.concurrency.policy = policy
    if timeout:
        pipeline.timeout.seconds = timeout
    lane = await replica.runs.lanes.read(LANE)
    prepared: PreparedRun = replica.launcher.prepare(
        "default", resource(), pipeline, labels={}, waits=bool(lane.entries)
    )
    change = lane.with_run(prepared.run_id, replaces=policy == REPLACE)
    revision = await replica.store.commit([*prepared.guards, change.guard], [*prepared.puts, *change.puts])
    if dies:
        replica.launcher.abandoned(prepared)
    else:
        await replica.launcher.launched(prepared, revision)
    return prepared.run_id


async def waits(replica: Replica, run: str) -> bool:
    """Whether the run waits for older ones."""
    head = (await replica.stored(run)).head
    return head.state == run_pb2.RUN_STATE_PENDING and head.reason == run_pb2.RUN_REASON_WAITING_FOR_RUN


async def assert_empty(replica: Replica) -> None:
    """Nothing is left of the lane."""
    assert await replica.store.get(LANE) is None


async def test_one_after_the_other_in_the_order_of_their_commits(replica: Replica, workers: Connect) -> None:
    worker = await workers(replica, "a", mute, slots=8)
    await workers(replica, "f")
    runs = [await enter(replica) for _ in range(4)]
    for count, run in enumerate(runs, 1):
        given = await worker.next_given(count)
        assert given.run == run
        assert [await waits(replica, later) for later in runs[count:]] == [True] * (4 - count)
        await worker.answer(given)
    for run in runs:
        assert (await replica.ended(run)).state == RUN_SUCCEEDED
    await assert_empty(replica)
    await until(lambda: not replica.engine._tasks)
    replica.assert_at_rest()


async def test_a_failed_one_frees_its_place_after_its_finally_steps(replica: Replica, workers: Connect) -> None:
    await workers(replica, "a", fail)
    last = await workers(replica, "f", mute)
    first, second = await enter(replica), await enter(replica)
    given = await last.next_given()
    assert given.run == first
    assert await waits(replica, second)
    await last.answer(given)
    assert (await replica.ended(first)).state == RUN_FAILED
    assert (await last.next_given(2)).run == second


async def test_one_whose_workers_were_lost_too_often_frees_its_place(replica: Replica, workers: Connect) -> None:
    worker = await workers(replica, "a", mute, slots=8)
    await workers(replica, "f")
    first, second = await enter(replica), await enter(replica)
    for count in range(1, MAX_LOSSES + 2):
        assert (await worker.next_given(count)).run == first
        assert await waits(replica, second)
        await replica.handle(first, WorkerLost((await replica.record(first, "a")).session, ""))
        replica.clock.advance(60)
    assert (await replica.ended(first)).state == RUN_FAILED
    assert (await worker.next_given(MAX_LOSSES + 2)).run == second


@pytest.mark.parametrize("force", [False, True])
async def test_a_cancelled_one_frees_its_place(replica: Replica, workers: Connect, force: bool) -> None:
    worker = await workers(replica, "a", mute, slots=2)
    await workers(replica, "f")
    first, second, third = [await enter(replica) for _ in range(3)]
    await worker.next_given()
    # One that waits ends at once, and nobody gets a turn by that.
    await replica.handle(second, CancelRequested("", 30 * SECOND))
    assert (await replica.stored(second)).head.state == RUN_CANCELLED
    assert await waits(replica, third)
    await replica.handle(first, CancelRequested("", 0, force))
    assert (await replica.ended(first)).state == RUN_CANCELLED
    assert (await worker.next_given(2)).run == third


async def test_one_that_times_out_frees_its_place_and_the_next_has_its_full_time(
    replica: Replica, workers: Connect
) -> None:
    worker = await workers(replica, "a", mute, slots=2)
    await workers(replica, "f")
    first, second = await enter(replica, timeout=60), await enter(replica, timeout=60)
    assert not (await replica.stored(second)).head.deadline
    await worker.next_given()
    replica.clock.advance(61)
    await until(lambda: worker.told)
    replica.clock.advance(31)
    assert (await replica.ended(first)).state == RUN_FAILED
    await worker.next_given(2)
    head = (await replica.stored(second)).head
    assert head.deadline > replica.clock()


async def test_a_newer_one_replaces_all_before_it_and_waits_for_their_end(replica: Replica, workers: Connect) -> None:
    worker = await workers(replica, "a", mute, slots=2)
    await workers(replica, "f")
    runs = [await enter(replica, REPLACE)]
    given = await worker.next_given()
    runs += [await enter(replica, REPLACE) for _ in range(3)]
    await until(lambda: worker.told)
    for run in runs[1:3]:
        head = await replica.ended(run)
        assert (head.state, head.reason, head.start_time) == (RUN_CANCELLED, run_pb2.RUN_REASON_REPLACED, 0)
    assert await waits(replica, runs[3])
    assert len(worker.given) == 1
    await worker.answer(given)
    head = await replica.ended(runs[0])
    assert (head.state, head.reason) == (RUN_CANCELLED, run_pb2.RUN_REASON_REPLACED)
    assert runs[3] in head.message or runs[1] in head.message
    assert (await worker.next_given(2)).run == runs[3]


@pytest.mark.parametrize("policy", [QUEUE, REPLACE], ids=["queue", "replace"])
async def test_the_sweep_finds_whose_turn_it_is(
    replica: Replica, workers: Connect, policy: pipeline_pb2.ConcurrencyPolicy.ValueType
) -> None:
    """The process died after the commits of both, and after the end of the first."""
    first = await enter(replica, policy, dies=True)
    second = await enter(replica, policy, dies=True)
    worker = await workers(replica, "a", slots=2)
    await workers(replica, "f")
    await replica.sweep.once()
    await replica.ended(first)
    assert (await replica.ended(second)).state == RUN_SUCCEEDED
    assert [given.run for given in worker.given] in ([first, second], [second])
    await assert_empty(replica)


async def test_a_run_that_was_put_aside_holds_nobody_up(replica: Replica, workers: Connect) -> None:
    first, second = await enter(replica), await enter(replica)
    worker = await workers(replica, "a", mute, slots=2)
    await worker.next_given()
    await replica.store.commit((), [Put(keys.head("default", first), b"\xff")])
    replica.engine._entries.clear()
    await replica.sweep.once()
    await replica.sweep.once()
    assert (await worker.next_given(2)).run == second


@pytest.mark.parametrize("record", [None, b"\xff"], ids=["deleted", "unreadable"])
async def test_those_that_wait_join_a_lost_lane_again(replica: Replica, workers: Connect, record: bytes | None) -> None:
    worker = await workers(replica, "a", slots=2)
    await workers(replica, "f")
    runs = [await enter(replica, dies=True) for _ in range(8)]
    if record is None:
        await replica.store.commit((), (), [LANE])
    else:
        await replica.store.commit((), [Put(LANE, record)])
    await replica.sweep.once()
    for run in runs:
        assert (await replica.ended(run)).state == RUN_SUCCEEDED
    # The first one was not in the lane: nothing says that it waits.
    assert [given.run for given in worker.given if given.run != runs[0]] == runs[1:]
    await assert_empty(replica)


async def test_another_replica_gives_the_next_its_turn(start_replica: StartReplica, workers: Connect) -> None:
    one, two = await start_replica("r1", shared=True), await start_replica("r2", shared=True)
    worker = await workers(one, "a", mute, slots=2)
    await workers(one, "f")
    first = await enter(one)
    second = await enter(two)
    await worker.answer(await worker.next_given())
    await one.ended(first)
    given = await worker.next_given(2)
    assert given.run == second
    await one.kill()
    await worker.cut()
    await worker.connect(two)
    await worker.answer(given)
    await workers(two, "f")
    assert (await two.ended(second)).state == RUN_SUCCEEDED
    await assert_empty(two)


async def test_get_says_who_goes_first(replica: Replica, workers: Connect) -> None:
    await workers(replica, "a", mute)
    runs = [await enter(replica) for _ in range(3)]

    async def told(run: str) -> run_pb2.Run:
        stored = await replica.stored(run)
        shown = full_run(stored.head, stored.revision, stored.spec, stored.state.steps)
        await Waits(replica.engine, replica.session_store).explain(stored, shown)
        return shown

    assert not (await told(runs[0])).HasField("wait")
    assert (await told(runs[2])).wait == run_pb2.RunWait(run=runs[0], ahead=2)
    assert (await told(runs[1])).wait == run_pb2.RunWait(run=runs[0], ahead=1)


def test_a_lane_is_bounded() -> None:
    entries = [storage_pb2.LaneEntry(run=str(n)) for n in range(limits.WAITING_RUNS)]
    assert Lane(LANE, entries, 1).with_run("r", replaces=False)
    entries.append(storage_pb2.LaneEntry(run="r"))
    with pytest.raises(errors.TooManyWaitingRuns):
        Lane(LANE, entries, 1).with_run("s", replaces=False)

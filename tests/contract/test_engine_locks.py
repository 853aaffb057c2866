"""Locks go from hand to hand, whoever dies in between and whatever is deleted by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from conveyor.api.lock_list import list_locks
from conveyor.api.paging import open_page
from conveyor.core import errors
from conveyor.core.draft import MAX_LOSSES
from conveyor.core.events import CancelRequested, WorkerLost
from conveyor.core.plan import SECOND
from conveyor.engine import locks
from conveyor.engine.waits import Waits
from conveyor.state import keys
from conveyor.state.views import full_run
from conveyor.store import open_etcd, open_sqlite
from conveyor.store.port import MAX_OPERATIONS, KeyValue, Put, Store
from conveyor.v1 import pipeline_pb2, run_pb2
from conveyor.v1.pipeline_pb2 import Lock
from conveyor.v1.run_service_pb2 import HeldLock, ListLocksRequest
from tests.support.etcd import VERSIONS, Etcd
from tests.support.rig import (
    QUEUED,
    RUN_CANCELLED,
    RUN_FAILED,
    RUN_SUCCEEDED,
    RUNNING,
    Replica,
    Worker,
    mute,
    step,
    until,
)

Connect = Callable[..., Awaitable[Worker]]
StartReplica = Callable[..., Awaitable[Replica]]

DEPLOY = Lock(key="deploy")
WANTS = "step", "run"
"""Who wants the lock: the step, or the run as a whole."""


@pytest_asyncio.fixture(params=["sqlite", f"etcd-{VERSIONS[-1]}"])
async def embedded(
    request: pytest.FixtureRequest, tmp_path: Path, shared_etcd: Callable[[str], Etcd]
) -> AsyncIterator[Store]:
    """The store that the replicas share: each driver in turn, empty."""
    if request.param == "sqlite":
        store: Store = await open_sqlite(tmp_path / "data")
    else:
        store = await open_etcd([shared_etcd(VERSIONS[-1]).url], compaction_interval=0)
    yield store
    left = [kv.key for kv in (await store.list(keys.ROOT, keys_only=True)).items]
    for start in range(0, len(left), MAX_OPERATIONS):
        await store.commit((), (), left[start : start + MAX_OPERATIONS])
    await store.close()


async def enter(
    replica: Replica, wants: str = "step", *, dies: bool = False, limit: int = 1, key: str = "deploy"
) -> str:
    """Stores a run that wants the lock. With `dies` the process does nothing more after the commit."""
    lock = Lock(key=key, limit=limit)
    first, whole = (step("a", lock=lock), None) if wants == "step" else (step("a"), lock)
    prepared = replica.prepare(first, finally_steps=[step("f")], lock=whole)
    revision = await replica.store.commit(prepared.guards, prepared.puts)
    if dies:
        replica.launcher.abandoned(prepared)
    else:
        await replica.launcher.launched(prepared, revision)
    return prepared.run_id


async def waits(replica: Replica, run: str) -> bool:
    """Whether the run, or its step, waits for the lock."""
    head = (await replica.stored(run)).head
    if head.reason == run_pb2.RUN_REASON_WAITING_FOR_LOCK:
        return head.state == run_pb2.RUN_STATE_PENDING
    return head.step_reasons[0] == run_pb2.STEP_REASON_WAITING_FOR_LOCK


async def claims(replica: Replica) -> list[str]:
    """The keys of all claims that are stored."""
    return [kv.key for kv in (await replica.store.list(keys.LOCKS)).items]


async def served(replica: Replica, workers: Connect, runs: list[str], first: int = 1) -> Worker:
    """A worker gets the runs one after the other; nobody else has the lock meanwhile."""
    worker = await workers(replica, "a", mute, slots=8)
    await workers(replica, "f")
    for count, run in enumerate(runs, first):
        given = await worker.next_given(count)
        assert given.run == run
        assert len(worker.given) == count
        await worker.answer(given)
    for run in runs:
        assert (await replica.ended(run)).state == RUN_SUCCEEDED
    return worker


@pytest.mark.parametrize("wants", WANTS)
async def test_from_hand_to_hand_in_the_order_of_their_commits(replica: Replica, workers: Connect, wants: str) -> None:
    runs = [await enter(replica, wants) for _ in range(4)]
    await until(lambda: not replica.engine._tasks)
    assert [await waits(replica, run) for run in runs] == [False, True, True, True]
    await served(replica, workers, runs)
    assert await claims(replica) == []
    await until(lambda: not replica.engine._tasks)
    replica.assert_at_rest()
    assert not replica.engine.locks._told
    (waited,) = replica.engine.metrics._lock_seconds.collect()
    assert [sample.value for sample in waited.samples if sample.name.endswith("_count")] == [4]


async def test_each_waits_until_its_own_limit_is_kept(replica: Replica, workers: Connect) -> None:
    worker = await workers(replica, "a", mute, slots=8)
    await workers(replica, "f")
    limits = (3, 3, 1, 3, 3)
    runs = [await enter(replica, limit=limit) for limit in limits]
    one, two = await worker.next_given(1), await worker.next_given(2)
    assert {one.run, two.run} == {runs[0], runs[1]}
    await worker.answer(one)
    await replica.ended(runs[0])
    await until(lambda: not replica.engine._tasks)
    assert len(worker.given) == 2
    await worker.answer(two)
    alone = await worker.next_given(3)
    assert alone.run == runs[2]
    await replica.ended(runs[1])
    await until(lambda: not replica.engine._tasks)
    assert len(worker.given) == 3
    await worker.answer(alone)
    assert {(await worker.next_given(4)).run, (await worker.next_given(5)).run} == {runs[3], runs[4]}


@pytest.mark.parametrize("wants", WANTS)
@pytest.mark.parametrize("how", ["cancel", "force", "workers lost", "queue"])
async def test_free_however_its_holder_ends(replica: Replica, workers: Connect, wants: str, how: str) -> None:
    worker = await workers(replica, "a", mute, slots=8)
    await workers(replica, "f")
    first, second, third = [await enter(replica, wants) for _ in range(3)]
    assert (await worker.next_given()).run == first
    place = 2
    if how == "workers lost":
        for count in range(1, MAX_LOSSES + 2):
            assert (await worker.next_given(count)).run == first
            assert await waits(replica, second)
            await replica.handle(first, WorkerLost((await replica.record(first, "a")).session, ""))
        place = MAX_LOSSES + 2
    elif how == "queue":
        # One that waits ends at once, and nobody gets the lock by that.
        await replica.handle(second, CancelRequested("", 30 * SECOND))
        assert (await replica.ended(second)).state == RUN_CANCELLED
        await until(lambda: not replica.engine._tasks)
        assert await waits(replica, third)
        await worker.answer(await worker.next_given())
        second = third
    else:
        await replica.handle(first, CancelRequested("", 0, how == "force"))
    assert (await worker.next_given(place)).run == second
    wanted = {"workers lost": RUN_FAILED, "queue": RUN_SUCCEEDED}
    assert (await replica.ended(first)).state == wanted.get(how, RUN_CANCELLED)


@pytest.mark.parametrize("wants", WANTS)
async def test_the_sweep_finds_who_holds_it(replica: Replica, workers: Connect, wants: str) -> None:
    """The process died after each commit, before it did anything else."""
    runs = [await enter(replica, wants, dies=True) for _ in range(3)]
    assert len(await claims(replica)) == 3
    await replica.sweep.once()
    await served(replica, workers, runs)
    assert await claims(replica) == []


@pytest.mark.parametrize("wants", WANTS)
@pytest.mark.parametrize("how", ["unreadable", "deleted"])
async def test_a_run_that_is_gone_holds_nobody_up(replica: Replica, workers: Connect, wants: str, how: str) -> None:
    """Its head is broken, or deleted by hand."""
    first, second = await enter(replica, wants), await enter(replica, wants)
    worker = await workers(replica, "a", mute, slots=2)
    await worker.next_given()
    if how == "unreadable":
        await replica.store.commit((), [Put(keys.head("default", first), b"\xff")])
    else:
        await replica.store.commit((), (), [keys.head("default", first)])
    replica.engine._entries.clear()
    await replica.sweep.once()
    assert (await worker.next_given(2)).run == second
    assert len(await claims(replica)) == 1


async def test_a_claim_without_a_run_is_taken_out(replica: Replica, workers: Connect) -> None:
    ended = await enter(replica, dies=True)
    (claim,) = await claims(replica)
    await replica.sweep.once()
    await served(replica, workers, [ended])
    await replica.store.commit((), [Put(key, b"") for key in (f"{keys.LOCKS}x", f"{keys.LOCKS}default/zz/r/s")])
    forged = [claim, claim.replace(ended, "00000000-0000-7000-8000-000000000000"), claim.replace("/a", "/nope")]
    await replica.store.commit((), [Put(key, b"\xff") for key in forged])
    run = await enter(replica)
    await replica.in_state(run, "a", RUNNING)
    await replica.sweep.once()
    await replica.store.commit((), (), [f"{keys.LOCKS}x", f"{keys.LOCKS}default/zz/r/s"])
    assert await claims(replica) == [claim.replace(ended, run)]


@pytest.mark.parametrize("wants", WANTS)
async def test_claims_that_are_deleted_are_made_again(replica: Replica, workers: Connect, wants: str) -> None:
    runs = [await enter(replica, wants) for _ in range(5)]
    await until(lambda: not replica.engine._tasks)
    assert not await waits(replica, runs[0])
    await replica.store.commit((), (), await claims(replica))
    await replica.sweep.once()
    await until(lambda: not replica.engine._tasks)
    assert len(await claims(replica)) == 5
    await served(replica, workers, runs)
    assert await claims(replica) == []


async def test_another_replica_hands_it_over(start_replica: StartReplica, workers: Connect) -> None:
    """Without any sweep: to a run that another one started, and to a worker of that one."""
    one, two = await start_replica("r1", shared=True), await start_replica("r2", shared=True)
    here = await workers(one, "a", mute)
    await workers(one, "f")
    first, second = await enter(one), await enter(two)
    given = await here.next_given()
    there = await workers(two, "a", mute)
    await workers(two, "f")
    assert not there.given
    # The first replica's only worker leaves its place, so that the next holder goes to the other one.
    await here.say(drain={})
    await here.answer(given)
    assert (await there.next_given()).run == second
    await there.answer(there.given[0])
    assert [(await two.ended(run)).state for run in (first, second)] == [RUN_SUCCEEDED] * 2
    assert await claims(two) == []


async def test_another_replica_goes_on_for_one_that_died(
    start_replica: StartReplica, workers: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died after the commit that ended the holder, and the other one has only seen that commit."""
    monkeypatch.setattr(locks, "OTHERS_FIRST", 0.05)
    one, two = await start_replica("r1", shared=True), await start_replica("r2", shared=True)
    worker = await workers(two, "a", mute, slots=2)
    await workers(two, "f")
    first = await enter(one)
    second = await enter(one, dies=True)
    given = await worker.next_given()
    one.engine.locks._look_soon = lambda *_, **__: None  # type: ignore[method-assign]
    await one.handle(first, CancelRequested("", 0, force=True))
    await one.kill()
    assert (await worker.next_given(2)).run == second
    assert given.run == first


@pytest.mark.parametrize("when", ["before", "after"])
async def test_lost_answers_lose_no_claim(replica: Replica, workers: Connect, when: str) -> None:
    """Each commit of a run's end, and of a lock that is handed over, is answered by nothing."""
    left = {"n": 6}

    def lose(puts: Sequence[Put]) -> str:
        if not left["n"] or not any(put.key.startswith(keys.RUNS) for put in puts):
            return ""
        left["n"] -= 1
        return when

    runs = [await enter(replica) for _ in range(4)]
    replica.store.lose = lose
    await served(replica, workers, runs)
    assert (left["n"], await claims(replica)) == (0, [])


async def test_one_that_goes_costs_as_much_as_the_next_one_not_all_that_wait(
    replica: Replica, workers: Connect
) -> None:
    worker = await workers(replica, "a", mute, slots=2)
    await workers(replica, "f")
    runs = [await enter(replica) for _ in range(100)]
    await worker.next_given()
    await until(lambda: not replica.engine._tasks)
    # What is in hand may have been given up by then; who waits is not to be read for that either.
    replica.engine._entries.clear()
    asked: list[str] = []
    get, ranges = replica.store.get, replica.store.ranges

    async def counted_get(key: str) -> KeyValue | None:
        asked.append(key)
        return await get(key)

    async def counted_ranges(prefixes: Sequence[str]) -> Sequence[Sequence[KeyValue]]:
        asked.extend(prefixes)
        return await ranges(prefixes)

    replica.store.get, replica.store.ranges = counted_get, counted_ranges  # type: ignore[method-assign]
    await worker.answer(await worker.next_given())
    assert (await worker.next_given(2)).run == runs[1]
    await replica.ended(runs[0])
    await until(lambda: not replica.engine._tasks)
    read = {run for run in runs if any(run in key for key in asked)}
    assert read <= set(runs[:2])


async def test_hundreds_of_claims_of_one_run_fit_into_commits(replica: Replica) -> None:
    steps = [step(f"s{n:03}", lock=Lock(key="x" * 256)) for n in range(150)]
    run = await replica.launch(*steps, order=pipeline_pb2.ORDER_GRAPH)
    await until(lambda: not replica.engine._tasks)
    assert len(await claims(replica)) == 150
    await replica.handle(run, CancelRequested("", 0))
    assert (await replica.ended(run)).state == RUN_CANCELLED
    assert await claims(replica) == []


async def test_get_says_who_has_it_and_who_goes_first(replica: Replica, workers: Connect) -> None:
    runs = [await enter(replica, wants) for wants in ("step", "step", "run", "run")]
    await until(lambda: not replica.engine._tasks)

    async def told(run: str) -> run_pb2.Run:
        stored = await replica.stored(run)
        shown = full_run(stored.head, stored.revision, stored.spec, stored.state.steps)
        await Waits(replica.engine, replica.session_store).explain(stored, shown)
        return shown

    holders = [run_pb2.LockHolder(run=runs[0], step="a")]
    first = await told(runs[0])
    assert (first.steps[0].lock, first.steps[0].wait.HasField("lock")) == ("deploy", False)
    second = (await told(runs[1])).steps[0]
    assert second.state == QUEUED
    assert second.wait.lock == run_pb2.LockWait(key="deploy", limit=1, holders=holders)
    assert second.wait.since == second.queue_time
    last = await told(runs[3])
    assert (last.lock, last.wait.lock.ahead, list(last.wait.lock.holders)) == ("deploy", 2, holders)
    assert last.wait.run == ""


async def test_a_list_of_locks_has_pages(replica: Replica) -> None:
    names = ["a", "a/b", "ab", "ü\n", "z"]
    runs = {name: [await enter(replica, "run", key=name, limit=2) for _ in range(4)] for name in reversed(names)}
    await until(lambda: not replica.engine._tasks)
    found: list[HeldLock] = []
    request = ListLocksRequest(page_size=2)
    pages = 0
    while True:
        page = open_page(request, "default")
        locks, after = await list_locks(replica.runs.locks, "default", "", page)
        found += locks
        pages += 1
        request.page_token = page.token(after)
        if not request.page_token:
            break
    assert (pages, [lock.key for lock in found]) == (3, sorted(names))
    for lock in found:
        assert [holder.run for holder in lock.holders] == runs[lock.key][:2]
        assert ([each.run for each in lock.waiting], lock.waiting_count) == (runs[lock.key][2:], 2)
    page = open_page(ListLocksRequest(key="ab"), "default")
    assert [lock.key for lock in (await list_locks(replica.runs.locks, "default", "ab", page))[0]] == ["ab"]
    assert (await list_locks(replica.runs.locks, "default", "b", page))[0] == []
    assert (await list_locks(replica.runs.locks, "elsewhere", "", page))[0] == []


async def test_a_run_whose_key_comes_to_nothing_is_refused(replica: Replica) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await enter(replica, "run", key="${{ params.env }}")
    ((path, said),) = [(each.field, each.description) for each in caught.value.violations]
    assert (path, said) == ("pipeline.lock.key", "cannot be evaluated: params.env is not there")


async def test_one_that_waits_for_older_runs_joins_at_its_turn(replica: Replica) -> None:
    assert pipeline_pb2.CONCURRENCY_POLICY_QUEUE
    prepared = replica.launcher.prepare(
        "default",
        replica.prepare(step("a")).state.spec.resource,
        pipeline_pb2.Pipeline(namespace="default", name="p", steps=[step("a")], lock=DEPLOY),
        labels={},
        waits=True,
    )
    assert not [put.key for put in prepared.puts if put.key.startswith(keys.LOCKS)]
    assert prepared.state.head.reason == run_pb2.RUN_REASON_WAITING_FOR_RUN

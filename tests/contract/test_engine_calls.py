"""Runs within runs: made once, told of once, and never made for a step that was stopped, whoever dies in between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest

from conveyor.core import errors, limits
from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND
from conveyor.state import keys
from conveyor.state.callers import Descendants
from conveyor.state.repositories import Repositories
from conveyor.state.runs import Runs
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Put, Store
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.support.faulty import FaultyStore, once, touches
from tests.support.rig import RUN_CANCELLED, RUN_SUCCEEDED, RUNNING, Replica, Worker, mute, step, until

Connect = Callable[..., Awaitable[Worker]]
StartReplica = Callable[..., Awaitable[Replica]]

INNER = pipeline_pb2.Pipeline(namespace="default", name="inner", uid="u", generation=1, steps=[step("work")])
CALL = pipeline_pb2.Step(id="call", runs=pipeline_pb2.SubPipeline(pipeline="inner"))


async def calling(replica: Replica) -> Replica:
    """The replica with all that makes runs for steps, and a pipeline that these run."""
    replica.engine.calls.starts = Repositories(replica.store, replica.runs, replica.launcher, replica.clock).starts
    stored = storage_pb2.StoredPipeline(object=INNER)
    await replica.store.commit((), [Put(keys.pipeline("default", "inner"), stored.SerializeToString())])
    return replica


async def child_of(replica: Replica, run: str) -> str:
    """The id of the run that the step waits for."""
    await replica.in_state(run, "call", RUNNING)
    return (await replica.record(run, "call")).child_run


async def within(runs: Runs, run: str) -> list[str]:
    """The ids of all runs within a run."""
    return (await runs.page(keys.index_within("default", run), "", 10))[0]


def leaves(replica: Replica, wanted: Callable[[Sequence[Put]], bool]) -> Callable[[Sequence[Put]], str]:
    """For FaultyStore.lose: the store is away once such a commit went through."""

    def lose(puts: Sequence[Put]) -> str:
        replica.store.away = replica.store.away or wanted(puts)
        return ""

    return lose


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_run_is_made_once_when_the_answer_is_lost(replica: Replica, workers: Connect, where: str) -> None:
    await calling(replica)
    worker = await workers(replica, "work")
    replica.store.lose = once(where, touches("/within/"))
    run = await replica.launch(CALL)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert await within(replica.runs, run) == [(await replica.record(run, "call")).child_run]
    assert len({given.run for given in worker.given}) == 1
    await until(lambda: not replica.engine._tasks)
    replica.assert_at_rest()


async def test_two_replicas_make_one_run(start_replica: StartReplica, workers: Connect) -> None:
    one, two = [await calling(await start_replica(name, shared=True)) for name in ("one", "two")]
    await workers(one, "work")
    run = await two.launch(CALL)
    for replica in (one, two, one):
        await replica.sweep.once()
    assert (await two.ended(run)).state == RUN_SUCCEEDED
    assert len(await within(two.runs, run)) == 1


async def test_no_run_is_made_for_a_step_that_was_stopped(start_replica: StartReplica, workers: Connect) -> None:
    """The one that is to make it was away meanwhile, and comes back with what it knew before."""
    one, two = [await calling(await start_replica(name, shared=True)) for name in ("one", "two")]
    one.store.lose = leaves(one, touches("/steps/call"))
    run = await one.launch(CALL)
    await until(lambda: one.store.refused)
    child = await child_of(two, run)
    await two.engine.request("default", run, CancelRequested("enough", 30 * SECOND))
    assert (await two.ended(run)).state == RUN_CANCELLED
    record = await two.record(run, "call")
    assert (record.child_run, record.message) == ("", "it was stopped before its run was made")
    one.store.lose, one.store.away = lambda puts: "", False
    await until(lambda: not one.engine._tasks)
    assert await within(two.runs, run) == []
    with pytest.raises(errors.NotFound):
        await two.runs.load("default", child)


async def test_a_run_is_kept_until_its_step_has_its_result(replica: Replica, embedded: Store, workers: Connect) -> None:
    await calling(replica)
    worker = await workers(replica, "work", mute)
    run = await replica.launch(CALL)
    child = await child_of(replica, run)
    await until(lambda: worker.given)
    replica.store.lose = leaves(replica, touches(f"{child}/head"))
    await worker.answer(worker.given[0])
    await until(lambda: replica.store.refused)
    other = Runs(embedded)
    assert (await other.load("default", child)).state.terminal
    with pytest.raises(errors.InUse, match=f"step call of run {run} has not taken the result of run {child} yet"):
        await other.delete("default", child)
    replica.store.lose, replica.store.away = lambda puts: "", False
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    await other.delete("default", child)
    assert await within(replica.runs, run) == []


async def test_a_run_that_cannot_be_read_fails_its_step(replica: Replica, workers: Connect) -> None:
    await calling(replica)
    worker = await workers(replica, "work", mute)
    run = await replica.launch(CALL)
    child = await child_of(replica, run)
    await until(lambda: worker.given)
    await replica.store.commit((), [Put(keys.head("default", child), b"\xff")])
    replica.engine.outdated("default", child, 1 << 60)
    await replica.sweep.once()
    assert (await replica.ended(run)).reason == run_pb2.RUN_REASON_STEP_FAILED
    assert (await replica.record(run, "call")).message.startswith(f"run {child} was put aside: ")


async def test_a_run_whose_caller_is_gone_is_cancelled(replica: Replica, embedded: Store, workers: Connect) -> None:
    await calling(replica)
    worker = await workers(replica, "work", mute)
    run = await replica.launch(CALL)
    child = await child_of(replica, run)
    await until(lambda: worker.given)
    await replica.store.commit((), (), [keys.head("default", run), keys.step("default", run, "call")])
    await replica.sweep.once()
    await until(lambda: worker.told)
    await worker.answer(worker.given[0])
    head = await replica.ended(child)
    assert (head.state, head.cancel_message) == (RUN_CANCELLED, f"step call of run {run} was stopped")


async def test_runs_within_one_are_counted_now_and_then(embedded: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RUN_DESCENDANTS", 200)
    reads = FaultyStore(embedded)
    descendants = Descendants(reads)
    made: list[str] = []
    while await descendants.count("default", "root") < 200:
        made.append(keys.index_within("default", "root") + str(len(made)))
        await reads.commit((), [Put(made[-1], b"")])
    assert 200 <= len(made) <= 220
    assert reads.lists < 25
    for start in range(0, len(made), 80):
        await reads.commit((), (), made[start : start + 80])
    counts = [await descendants.count("default", "root") for _ in range(20)]
    assert (counts[0], counts[-1]) == (200, 0)
    assert await descendants.count("default", "other") == 0

"""What a person who asks is told of the steps that wait, whichever replica is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf import struct_pb2

from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND
from conveyor.engine.waits import Waits
from conveyor.engine.workers import Pool, Waiter
from conveyor.state.views import full_run
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.support.rig import GRAPH, RETRYING, Replica, Worker, fail, mute, step, until

Connect = Callable[..., Awaitable[Worker]]
StartReplica = Callable[..., Awaitable[Replica]]


async def told(replica: Replica, run: str) -> dict[str, run_pb2.StepWait]:
    """What the replica says of the steps of a run that wait."""
    stored = await replica.stored(run)
    shown = full_run(stored.head, stored.revision, stored.spec, stored.state.steps)
    await Waits(replica.engine, replica.session_store).explain(stored, shown)
    return {each.step: each.wait for each in shown.steps if each.HasField("wait")}


async def test_a_step_whose_needs_run_says_which(replica: Replica, workers: Connect) -> None:
    await workers(replica, "b")
    await workers(replica, "a", mute)
    steps = [step("a"), step("b"), step("c", "a", "b")]
    run = await replica.launch(*steps, order=GRAPH, finally_steps=[step("f")])
    await replica.in_state(run, "b", run_pb2.STEP_STATE_SUCCEEDED)
    waits = await told(replica, run)
    assert list(waits) == ["c", "f"]
    assert (list(waits["c"].needs), waits["c"].need_count) == (["a"], 1)
    assert (list(waits["f"].needs), waits["f"].need_count) == (["a", "c"], 2)


async def test_a_finally_step_waits_for_a_matrix_and_not_for_each_instance_besides(
    replica: Replica, workers: Connect
) -> None:
    await workers(replica, "m", mute, slots=2)
    axis = struct_pb2.Value(list_value=struct_pb2.ListValue(values=[struct_pb2.Value(number_value=n) for n in (1, 2)]))
    run = await replica.launch(step("m", matrix=pipeline_pb2.Matrix(axes={"k": axis})), finally_steps=[step("f")])
    await replica.in_state(run, "m", run_pb2.STEP_STATE_RUNNING)
    wait = (await told(replica, run))["f"]
    assert (list(wait.needs), wait.need_count) == (["m"], 1)


async def test_of_many_needs_the_first_are_named_and_all_counted(replica: Replica) -> None:
    names = [f"s{number}" for number in range(30)]
    run = await replica.launch(*(step(name) for name in names), step("last", *names), order=GRAPH)
    wait = (await told(replica, run))["last"]
    assert (list(wait.needs), wait.need_count) == (names[:20], 30)


async def test_in_a_list_it_is_the_step_before(replica: Replica) -> None:
    run = await replica.launch(step("a"), step("b"), step("c"))
    waits = await told(replica, run)
    assert (list(waits["b"].needs), list(waits["c"].needs)) == (["a"], ["b"])


async def test_busy_workers_are_counted_and_the_steps_ahead(replica: Replica, workers: Connect) -> None:
    a = await workers(replica, "a", mute, slots=2)
    await workers(replica, "a", mute, slots=1, definitions=["other"])
    running = [await replica.launch(step("a")) for _ in range(2)]
    await a.next_given(2)
    rows = [await replica.launch(step("a")) for _ in range(3)]
    waits = [(await told(replica, run))["a"] for run in rows]
    assert [(wait.workers, wait.slots, wait.ahead) for wait in waits] == [(1, 2, 0), (1, 2, 1), (1, 2, 2)]
    assert all(wait.HasField("ahead") and wait.HasField("since") and not wait.last_workers for wait in waits)
    await replica.handle(rows[0], CancelRequested("enough", SECOND))
    assert (await told(replica, rows[2]))["a"].ahead == 1
    assert not await told(replica, running[0])


def test_those_that_wait_longer_go_first_whatever_they_are_for() -> None:
    pool = Pool()
    times = {"r1": 50, "r2": 10, "r3": 40, "r4": 20, "r5": 30}
    for number, (run, time) in enumerate(times.items()):
        pool.wait(Waiter("default", "a", f"definition-{number % 2}", run, 0), time)
    pool.leave("r4", 0)
    assert {run: pool.ahead("default", "a", run) for run in times} == {
        "r1": {0: 3},
        "r2": {0: 0},
        "r3": {0: 2},
        "r4": {},
        "r5": {0: 1},
    }
    assert not pool.ahead("default", "b", "r1")


async def test_who_was_there_last_is_named_when_nobody_is(replica: Replica, workers: Connect) -> None:
    for name in ("first", "second", "first"):
        worker = Worker(replica, "a")
        await worker.connect(worker=name)
        await worker.cut()
        await until(lambda: not replica.engine.pool.workers("default", "a"))
    run = await replica.launch(step("a"), step("never"), order=GRAPH)
    waits = await told(replica, run)
    assert [seen.name for seen in waits["a"].last_workers] == ["first", "second"]
    assert all(seen.time.seconds for seen in waits["a"].last_workers)
    assert (waits["never"].workers, list(waits["never"].last_workers)) == (0, [])


async def test_five_workers_are_remembered(replica: Replica) -> None:
    for number in range(7):
        worker = Worker(replica, "a")
        await worker.connect(worker=f"w{number}")
        await worker.cut()
        await until(lambda: not replica.engine.pool.workers("default", "a"))
    record = await replica.session_store.driver("default", "a")
    assert record is not None
    assert [seen.name for seen in record.last_workers] == ["w6", "w5", "w4", "w3", "w2"]


async def test_the_end_of_the_wait_is_told(replica: Replica, workers: Connect) -> None:
    await workers(replica, "b", fail)
    later = step("b", retry=pipeline_pb2.RetryPolicy(max_attempts=2, jitter=0))
    later.retry.initial_backoff.seconds = 60
    bounded = step("a")
    bounded.queue_timeout.seconds = 100
    run = await replica.launch(bounded, later, step("free"), order=GRAPH)
    await replica.in_state(run, "b", RETRYING)
    waits = await told(replica, run)
    assert waits["a"].until.ToMicroseconds() == waits["a"].since.ToMicroseconds() + 100 * SECOND
    assert waits["b"].until.ToMicroseconds() == (await replica.record(run, "b")).next_time
    assert not waits["free"].HasField("until")


async def test_any_replica_says_the_same(start_replica: StartReplica, workers: Connect) -> None:
    one, two = await start_replica("one", shared=True), await start_replica("two", shared=True)
    a = await workers(one, "a", mute, slots=3)
    b = await workers(two, "a", mute, slots=2)
    for _ in range(5):
        await one.launch(step("a"))
    await a.next_given(3)
    await b.next_given(2)
    first, second = await one.launch(step("a")), await two.launch(step("a"))
    for replica in (one, two):
        pool = replica.engine.pool
        await until(lambda pool=pool: pool.waiting("default", "a") == 2)
        for ahead, run in enumerate((first, second)):
            wait = (await told(replica, run))["a"]
            assert (wait.workers, wait.slots, wait.ahead) == (2, 5, ahead)


async def test_a_worker_that_was_told_to_stop_is_waited_for_until_its_grace_is_over(
    replica: Replica, workers: Connect
) -> None:
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"), step("b"))
    await a.next_given()
    assert "a" not in await told(replica, run)
    await replica.handle(run, CancelRequested("enough", 60 * SECOND))
    waits = await told(replica, run)
    assert list(waits) == ["a"]
    assert waits["a"].until.ToMicroseconds() == (await replica.stored(run)).head.cancel_deadline

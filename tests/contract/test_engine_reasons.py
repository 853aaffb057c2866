"""What is said of steps that wait stays true, and what is counted is counted once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry

from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND
from conveyor.engine.metrics import EngineMetrics
from conveyor.v1 import run_pb2
from tests.support.rig import RUNNING, Replica, Worker, mute, step, until

Connect = Callable[..., Awaitable[Worker]]
StartReplica = Callable[..., Awaitable[Replica]]


async def reason(replica: Replica, run: str) -> int:
    return (await replica.record(run, "a")).reason


async def test_a_step_that_waits_on_is_told_when_a_worker_comes(replica: Replica, workers: Connect) -> None:
    first, second = await replica.launch(step("a")), await replica.launch(step("a"))
    assert await reason(replica, second) == run_pb2.STEP_REASON_NO_WORKER
    await workers(replica, "a", mute)
    await replica.in_state(first, "a", RUNNING)

    async def busy() -> bool:
        return await reason(replica, second) == run_pb2.STEP_REASON_WORKERS_BUSY

    await until(busy)


async def test_a_step_that_waits_on_is_told_when_the_last_worker_goes(
    start_replica: StartReplica, workers: Connect
) -> None:
    replica = await start_replica(ttl=0.5)
    a = await workers(replica, "a", mute)
    await replica.launch(step("a"))
    await a.next_given()
    second = await replica.launch(step("a"))
    assert await reason(replica, second) == run_pb2.STEP_REASON_WORKERS_BUSY
    await a.cut()

    async def nobody() -> bool:
        return await reason(replica, second) == run_pb2.STEP_REASON_NO_WORKER

    await until(nobody)


async def test_a_run_is_counted_once_whatever_comes_after_its_end(replica: Replica, workers: Connect) -> None:
    registry = CollectorRegistry()
    replica.engine.metrics = EngineMetrics(registry)
    a = await workers(replica, "a", mute)
    run = await replica.launch(step("a"))
    given = await a.next_given()
    await replica.engine.request("default", run, CancelRequested("stop it", SECOND, force=True))
    await replica.ended(run)
    await a.answer(given)
    await until(lambda: a.acks)
    for name in ("conveyor_runs_finished_total", "conveyor_steps_finished_total"):
        assert registry.get_sample_value(name, {"state": "cancelled"}) == 1

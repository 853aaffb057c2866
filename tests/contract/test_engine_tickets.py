"""Steps for older drivers over a real broker: each attempt once, and what waits says why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from conveyor.store.port import Store
from conveyor.v1 import pipeline_pb2
from tests.support.jetstream import Belted
from tests.support.nats import NatsServer
from tests.support.older import Held, Older, succeed
from tests.support.rig import (
    GRAPH,
    QUEUED,
    RUN_FAILED,
    RUN_SUCCEEDED,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    Worker,
    step,
    until,
)

Connect = Callable[..., Awaitable[Worker]]
MakeOlder = Callable[..., Older]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.kill()


@pytest_asyncio.fixture
async def replica(embedded: Store, broker: NatsServer) -> AsyncIterator[Belted]:
    with capture_logs():
        belted = await Belted(embedded, broker).start()
        yield belted
        await belted.kill()


@pytest_asyncio.fixture
async def older(broker: NatsServer) -> AsyncIterator[MakeOlder]:
    """Makes older drivers: `older(name, work, …)`; all are gone at the end."""
    made: list[Older] = []

    def make(name: str, *arguments: Any, **kind: Any) -> Older:
        made.append(Older(broker.url, name, *arguments, **kind))
        return made[-1]

    yield make
    await asyncio.gather(*(driver.stop() for driver in made))


async def at_rest(replica: Belted) -> None:
    await until(lambda: not replica.engine._tasks)
    replica.assert_at_rest()


async def test_runs_through_the_steps_of_older_drivers(replica: Belted, older: MakeOlder) -> None:
    drivers = [await older(name).start() for name in "abc"]
    run = await replica.launch(step("a"), step("b"), step("c"))
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert [len(driver.tickets) for driver in drivers] == [1, 1, 1]
    assert [driver.tickets[0]["event"] for driver in drivers] == ["create", "process", "process"]
    resource = json.loads(drivers[2].tickets[0]["payload"])
    assert json.loads(resource["metadata"]["driverresults.b"])["data"] == {"n": 1}
    assert resource["metadata"]["conveyor.timeout"] == "3600s"
    assert "conveyor.deadline" not in resource["metadata"]
    await at_rest(replica)


@pytest.mark.parametrize("echo", [True, False])
async def test_the_same_older_driver_twice_in_a_pipeline(replica: Belted, older: MakeOlder, echo: bool) -> None:
    a, b = await older("a", echo=echo).start(), await older("b", echo=echo).start()
    run = await replica.launch(step("first", driver="a"), step("between", driver="b"), step("last", driver="a"))
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert (a.steps, b.steps) == (["first", "last"], ["between"])
    await at_rest(replica)


async def test_older_drivers_and_workers_in_one_pipeline(replica: Belted, older: MakeOlder, workers: Connect) -> None:
    js, worker = await older("js").start(), await workers(replica, "grpc")
    run = await replica.launch(step("a", driver="js"), step("b", driver="grpc"), step("c", driver="js"))
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert (js.steps, [given.step for given in worker.given]) == (["a", "c"], ["b"])
    assert dict(worker.given[0].results["a"].data) == {"n": 1}


async def test_two_processes_of_an_older_driver_share_the_work(replica: Belted, older: MakeOlder) -> None:
    both = [await older("a").start() for _ in range(2)]
    runs = [await replica.launch(step("s1", driver="a"), step("s2", driver="a")) for _ in range(20)]
    for run in runs:
        assert (await replica.ended(run)).state == RUN_SUCCEEDED
    given = [(run, name) for driver in both for run, name in zip(driver.runs, driver.steps, strict=True)]
    assert sorted(given) == sorted((run, name) for run in runs for name in ("s1", "s2"))


async def test_a_step_waits_while_nobody_pulls_and_says_so(replica: Belted, older: MakeOlder) -> None:
    run = await replica.launch(step("a"))
    assert await replica.because(run, "a", "NO_WORKER") == "no worker of driver a is connected"
    driver = await older("a").connect()
    told = "nobody takes messages from JetStream consumer a"

    async def says_so() -> bool:
        return (await replica.record(run, "a")).message == told

    await until(says_so)
    await driver.pull()
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    await at_rest(replica)


async def test_a_consumer_without_the_filter_gets_no_tickets(replica: Belted, older: MakeOlder) -> None:
    driver = older("a")
    driver.request["config"]["filter_subjects"] = ["resources.app"]
    await driver.start()
    run = await replica.launch(step("a"))
    assert "drivers.a.resources.app" in await replica.because(run, "a", "CONSUMER_MISMATCH")
    driver.request["config"]["filter_subjects"] = ["resources.app", "drivers.a.resources.app"]
    await driver.create()
    assert (await replica.ended(run)).state == RUN_SUCCEEDED


async def test_a_driver_between_two_short_pulls_still_takes_tickets(replica: Belted, older: MakeOlder) -> None:
    driver = await older("a").connect()
    await driver.pull(1, 0.05)
    await replica.bus.consumers.refresh("default", "a")
    await replica.ended(await replica.launch(step("a"))) if driver.tickets else None
    replica.tickets._takers.interest(("default", "a"))
    await driver.pull(1, 0.3)
    await until(lambda: replica.tickets.consumer("default", "a", "app")[0])

    def ended() -> bool:
        state = replica.bus.consumers.state("default", "a")
        return state is not None and not state.pulling

    await until(ended)
    assert replica.tickets.consumer("default", "a", "app")[0] == "a"


async def test_while_the_broker_is_away_steps_wait_and_go_on_by_themselves(replica: Belted, older: MakeOlder) -> None:
    driver = await older("a").start()
    assert (await replica.ended(await replica.launch(step("a")))).state == RUN_SUCCEEDED
    await replica.broker("kill")
    run = await replica.launch(step("a"))
    await replica.because(run, "a", "BROKER_UNAVAILABLE")
    await replica.broker("start")
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert driver.runs.count(run) == 1


async def test_a_ticket_too_large_for_the_broker_fails_its_step(embedded: Store, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", max_payload=4096).start()
    with capture_logs():
        replica = await Belted(embedded, server).start()
        driver = await Older(server.url, "a").start()
        try:
            prepared_context = {"text": "x" * 5000}
            pipeline_context: dict[str, Any] = {"context": prepared_context}
            run = await replica.launch(step("a"), **pipeline_context)
            assert (await replica.ended(run)).state == RUN_FAILED
            assert await replica.reason(run, "a") == "INPUT_TOO_LARGE"
            assert not driver.tickets
            await at_rest(replica)
        finally:
            await driver.stop()
            await replica.kill()
            server.kill()


async def test_at_most_so_many_tickets_wait_on_a_consumer(
    replica: Belted, older: MakeOlder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor.engine.tickets.MAX_UNDELIVERED", 8)
    runs = [await replica.launch(step("a")) for _ in range(30)]
    driver = await older("a").connect()
    await driver.pull(1)

    async def bounded() -> bool:
        reasons = [await replica.reason(run, "a") for run in runs]
        return reasons.count("WORKERS_BUSY") >= 30 - 9

    await until(bounded)
    info = await replica.jetstream.consumer("messages", "a")
    assert info
    assert info["num_pending"] <= 8
    await driver.pull(100)
    for run in runs:
        assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert sorted(driver.runs) == sorted(runs)
    await at_rest(replica)


# Loss


async def undelivered(replica: Belted, driver: Older) -> str:
    """A run with a ticket that is on the broker, and that nobody was given."""
    await driver.connect()
    await driver.pull(1)
    await until(lambda: replica.tickets.consumer("default", driver.name, "app")[0] or _watch(replica, driver.name))
    # The pull request is for one message: the second ticket stays.
    taken = await replica.launch(step("taken", driver=driver.name))
    await until(lambda: driver.tickets)
    run = await replica.launch(step("a", driver=driver.name))

    async def stored() -> bool:
        return (await replica.record(run, "a")).ticket.sequence > 0

    await until(stored)
    await replica.ended(taken)
    assert driver.runs == [taken]
    return run


def _watch(replica: Belted, name: str) -> None:
    replica.tickets._takers.interest(("default", name))


async def lose_stream(replica: Belted, driver: Older) -> None:
    await replica.jetstream.call("STREAM.DELETE.messages")
    await driver.create()


async def lose_consumer(replica: Belted, driver: Older) -> None:
    await replica.jetstream.call(f"CONSUMER.DELETE.messages.{driver.name}")
    await driver.create()


async def lose_message(replica: Belted, driver: Older) -> None:
    """As a full stream would drop it: only the sweep finds out."""
    for out in list(replica.tickets._out.values()):
        assert out.receipt
        await replica.jetstream.delete_message("messages", out.receipt.sequence)
    await replica.sweep.once()


async def lose_store(replica: Belted, driver: Older) -> None:
    await replica.broker("stop")
    await replica.broker("wipe")
    await replica.broker("start")
    await driver.create()


@pytest.mark.parametrize("lose", [lose_stream, lose_consumer, lose_message, lose_store])
async def test_a_lost_ticket_is_published_again(
    replica: Belted, older: MakeOlder, lose: Callable[[Belted, Older], Awaitable[None]]
) -> None:
    driver = older("a")
    run = await undelivered(replica, driver)
    before = (await replica.record(run, "a")).token
    await lose(replica, driver)
    await driver.pull(100)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert driver.runs.count(run) == 1
    assert json.loads(driver.tickets[-1]["payload"])["metadata"]["conveyor.token"] != before
    assert (await replica.record(run, "a")).attempt == 1
    await at_rest(replica)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_ticket_survives_the_broker(replica: Belted, older: MakeOlder, how: str) -> None:
    driver = older("a")
    run = await undelivered(replica, driver)
    before = (await replica.record(run, "a")).token
    await replica.broker(how)
    await replica.broker("start")
    await replica.sweep.once()
    await driver.pull(100)
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert driver.runs.count(run) == 1
    assert json.loads(driver.tickets[-1]["payload"])["metadata"]["conveyor.token"] == before


@pytest.mark.parametrize("lose", [lose_stream, lose_consumer, lose_message, lose_store])
async def test_what_is_delivered_is_never_published_again(
    replica: Belted, older: MakeOlder, lose: Callable[[Belted, Older], Awaitable[None]]
) -> None:
    held = Held()
    driver = await older("a", held).start()
    run = await replica.launch(step("a"))
    await replica.in_state(run, "a", RUNNING)
    await lose(replica, driver)
    await replica.bus.ready(20)
    await replica.sweep.once()
    held.released.set()
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    assert driver.runs == [run]


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_result_that_is_due_while_the_broker_is_away_comes_later(
    replica: Belted, older: MakeOlder, how: str
) -> None:
    held = Held()
    driver = await older("a", held).start()
    run = await replica.launch(step("a"), step("b", driver="a"))
    await replica.in_state(run, "a", RUNNING)
    await replica.broker(how)
    held.released.set()
    await replica.broker("start")
    assert (await replica.ended(run)).state == RUN_SUCCEEDED
    if how == "stop":
        assert driver.steps == ["a", "b"]
    assert set(driver.steps) == {"a", "b"}


async def test_sweeps_at_any_time_change_nothing(replica: Belted, older: MakeOlder) -> None:
    drivers = [await older(name).start() for name in "ab"]

    async def sweep() -> None:
        while True:
            await replica.sweep.once()
            await asyncio.sleep(0)

    sweeping = asyncio.create_task(sweep())
    runs = [await replica.launch(step("s", driver="a"), step("t", driver="b")) for _ in range(10)]
    for run in runs:
        assert (await replica.ended(run)).state == RUN_SUCCEEDED
    sweeping.cancel()
    for driver in drivers:
        assert sorted(driver.runs) == sorted(runs)

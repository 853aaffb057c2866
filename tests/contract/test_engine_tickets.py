"""Steps for older drivers over a real broker: each attempt once, and what waits says why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from conveyor.store.port import Store
from tests.support.jetstream import Belted
from tests.support.nats import NatsServer
from tests.support.older import Held, Older
from tests.support.rig import (
    RUN_FAILED,
    RUN_SUCCEEDED,
    RUNNING,
    Worker,
    step,
    until,
)

Connect = Callable[..., Awaitable[Worker]]
MakeOlder = Callable[..., Older]


async def test_runs_through_the_steps_of_older_drivers(belted: Belted, older: MakeOlder) -> None:
    drivers = [await older(name).start() for name in "abc"]
    run = await belted.launch(step("a"), step("b"), step("c"))
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert [len(driver.tickets) for driver in drivers] == [1, 1, 1]
    assert [driver.tickets[0]["event"] for driver in drivers] == ["create", "process", "process"]
    resource = json.loads(drivers[2].tickets[0]["payload"])
    assert json.loads(resource["metadata"]["driverresults.b"])["data"] == {"n": 1}
    assert resource["metadata"]["conveyor.timeout"] == "3600s"
    assert "conveyor.deadline" not in resource["metadata"]
    await belted.at_rest()


@pytest.mark.parametrize("echo", [True, False])
async def test_the_same_older_driver_twice_in_a_pipeline(belted: Belted, older: MakeOlder, echo: bool) -> None:
    a, b = await older("a", echo=echo).start(), await older("b", echo=echo).start()
    run = await belted.launch(step("first", driver="a"), step("between", driver="b"), step("last", driver="a"))
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert (a.steps, b.steps) == (["first", "last"], ["between"])
    await belted.at_rest()


async def test_older_drivers_and_workers_in_one_pipeline(belted: Belted, older: MakeOlder, workers: Connect) -> None:
    js, worker = await older("js").start(), await workers(belted, "grpc")
    run = await belted.launch(step("a", driver="js"), step("b", driver="grpc"), step("c", driver="js"))
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert (js.steps, [given.step for given in worker.given]) == (["a", "c"], ["b"])
    assert dict(worker.given[0].results["a"].data) == {"n": 1}


async def test_two_processes_of_an_older_driver_share_the_work(belted: Belted, older: MakeOlder) -> None:
    both = [await older("a").start() for _ in range(2)]
    runs = [await belted.launch(step("s1", driver="a"), step("s2", driver="a")) for _ in range(20)]
    for run in runs:
        assert (await belted.ended(run)).state == RUN_SUCCEEDED
    given = [(run, name) for driver in both for run, name in zip(driver.runs, driver.steps, strict=True)]
    assert sorted(given) == sorted((run, name) for run in runs for name in ("s1", "s2"))


async def test_a_step_waits_while_nobody_pulls_and_says_so(belted: Belted, older: MakeOlder) -> None:
    run = await belted.launch(step("a"))
    assert await belted.because(run, "a", "NO_WORKER") == "no worker of driver a is connected"
    driver = await older("a").connect()
    told = "nobody takes messages from JetStream consumer a"

    async def says_so() -> bool:
        return (await belted.record(run, "a")).message == told

    await until(says_so)
    await driver.pull()
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    await belted.at_rest()


async def test_a_consumer_without_the_filter_gets_no_tickets(belted: Belted, older: MakeOlder) -> None:
    driver = older("a")
    driver.request["config"]["filter_subjects"] = ["resources.app"]
    await driver.start()
    run = await belted.launch(step("a"))
    assert "drivers.a.resources.app" in await belted.because(run, "a", "CONSUMER_MISMATCH")
    driver.request["config"]["filter_subjects"] = ["resources.app", "drivers.a.resources.app"]
    await driver.create()
    assert (await belted.ended(run)).state == RUN_SUCCEEDED


async def test_a_driver_between_two_pulls_still_takes_tickets(
    belted: Belted, older: MakeOlder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor.engine.ticket_takers._BETWEEN_PULLS", 60.0)
    belted.tickets._takers.interest(("default", "a"))
    driver = await older("a").connect()
    await driver.pull()
    await until(lambda: belted.tickets.consumer("default", "a", "app")[0])
    await driver.stop()

    async def ended() -> bool:
        state = await belted.bus.consumers.refresh("default", "a")
        return state is not None and not state.pulling

    await until(ended)
    assert belted.tickets.consumer("default", "a", "app")[0] == "a"
    monkeypatch.setattr("conveyor.engine.ticket_takers._BETWEEN_PULLS", 0.0)
    assert belted.tickets.consumer("default", "a", "app")[0] == ""


async def test_while_the_broker_is_away_steps_wait_and_go_on_by_themselves(belted: Belted, older: MakeOlder) -> None:
    driver = await older("a").start()
    assert (await belted.ended(await belted.launch(step("a")))).state == RUN_SUCCEEDED
    await belted.broker("kill")
    run = await belted.launch(step("a"))
    await belted.because(run, "a", "BROKER_UNAVAILABLE")
    await belted.broker("start")
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert driver.runs.count(run) == 1


async def test_a_ticket_too_large_for_the_broker_fails_its_step(embedded: Store, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", max_payload=4096).start()
    driver = Older(server.url, "a")
    with capture_logs():
        belted = await Belted(embedded, server).start()
        try:
            await driver.start()
            context: dict[str, Any] = {"text": "x" * 5000}
            run = await belted.launch(step("a"), context=context)
            assert (await belted.ended(run)).state == RUN_FAILED
            assert await belted.reason(run, "a") == "INPUT_TOO_LARGE"
            assert not driver.tickets
            await belted.at_rest()
        finally:
            await driver.stop()
            await belted.kill()
            server.kill()


async def test_at_most_so_many_tickets_wait_on_a_consumer(
    belted: Belted, older: MakeOlder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor.engine.tickets.MAX_UNDELIVERED", 8)
    runs = [await belted.launch(step("a")) for _ in range(30)]
    driver = await older("a").connect()
    await driver.pull(1)

    async def bounded() -> bool:
        reasons = [await belted.reason(run, "a") for run in runs]
        return reasons.count("WORKERS_BUSY") >= 30 - 9

    await until(bounded)
    info = await belted.jetstream.consumer("messages", "a")
    assert info
    assert info["num_pending"] <= 8
    await driver.pull(100)
    for run in runs:
        assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert sorted(driver.runs) == sorted(runs)
    await belted.at_rest()


# Loss


async def lose_stream(belted: Belted, driver: Older) -> None:
    await belted.jetstream.call("STREAM.DELETE.messages")
    await driver.create()


async def lose_consumer(belted: Belted, driver: Older) -> None:
    await belted.jetstream.call(f"CONSUMER.DELETE.messages.{driver.name}")
    await driver.create()


async def lose_message(belted: Belted, driver: Older) -> None:
    """As a full stream would drop it: only the sweep finds out."""
    for out in list(belted.tickets._out.values()):
        assert out.receipt
        await belted.jetstream.delete_message("messages", out.receipt.sequence)
    await belted.sweep.once()


async def lose_store(belted: Belted, driver: Older) -> None:
    await belted.broker("stop")
    await belted.broker("wipe")
    await belted.broker("start")
    await driver.create()


@pytest.mark.parametrize("lose", [lose_stream, lose_consumer, lose_message, lose_store])
async def test_a_lost_ticket_is_published_again(
    belted: Belted, older: MakeOlder, lose: Callable[[Belted, Older], Awaitable[None]]
) -> None:
    driver = older("a")
    run = await belted.undelivered(driver)
    before = (await belted.record(run, "a")).token
    await lose(belted, driver)
    await driver.pull(100)
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert driver.runs.count(run) == 1
    assert json.loads(driver.tickets[-1]["payload"])["metadata"]["conveyor.token"] != before
    assert (await belted.record(run, "a")).attempt == 1
    await belted.at_rest()


async def test_a_step_whose_ticket_and_consumer_are_gone_waits_for_its_driver(belted: Belted, older: MakeOlder) -> None:
    driver = older("a")
    run = await belted.undelivered(driver)
    await belted.jetstream.call("STREAM.DELETE.messages")
    assert await belted.because(run, "a", "NO_WORKER") == "no worker of driver a is connected"
    await driver.create()
    await driver.pull(100)
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert driver.runs.count(run) == 1
    await belted.at_rest()


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_ticket_survives_the_broker(belted: Belted, older: MakeOlder, how: str) -> None:
    driver = older("a")
    run = await belted.undelivered(driver)
    before = (await belted.record(run, "a")).token
    await belted.broker(how)
    await belted.broker("start")
    await belted.sweep.once()
    await driver.pull(100)
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert driver.runs.count(run) == 1
    assert json.loads(driver.tickets[-1]["payload"])["metadata"]["conveyor.token"] == before


@pytest.mark.parametrize("lose", [lose_stream, lose_consumer, lose_message, lose_store])
async def test_what_is_delivered_is_never_published_again(
    belted: Belted, older: MakeOlder, lose: Callable[[Belted, Older], Awaitable[None]]
) -> None:
    held = Held()
    driver = await older("a", held).start()
    run = await belted.launch(step("a"))
    await belted.in_state(run, "a", RUNNING)
    await lose(belted, driver)
    await belted.bus.ready(20)
    await belted.sweep.once()
    held.released.set()
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert driver.runs == [run]


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_result_that_is_due_while_the_broker_is_away_comes_later(
    belted: Belted, older: MakeOlder, how: str
) -> None:
    held = Held()
    driver = await older("a", held).start()
    run = await belted.launch(step("a"), step("b", driver="a"))
    await belted.in_state(run, "a", RUNNING)
    await belted.broker(how)
    held.released.set()
    await belted.broker("start")
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    if how == "stop":
        assert driver.steps == ["a", "b"]
    assert set(driver.steps) == {"a", "b"}


async def test_sweeps_at_any_time_change_nothing(belted: Belted, older: MakeOlder) -> None:
    drivers = [await older(name).start() for name in "ab"]

    async def sweep() -> None:
        while True:
            await belted.sweep.once()
            await asyncio.sleep(0)

    sweeping = asyncio.create_task(sweep())
    runs = [await belted.launch(step("s", driver="a"), step("t", driver="b")) for _ in range(10)]
    for run in runs:
        assert (await belted.ended(run)).state == RUN_SUCCEEDED
    sweeping.cancel()
    for driver in drivers:
        assert sorted(driver.runs) == sorted(runs)

"""Tickets whose steps end or move, whose server dies or is not alone, and those that go to all who listen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND
from conveyor.store.port import Store
from tests.support.jetstream import Belted
from tests.support.nats import NatsServer
from tests.support.older import Held, Older, Ticket
from tests.support.rig import (
    CANCELLED,
    GRAPH,
    QUEUED,
    RUN_CANCELLED,
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

STOP = CancelRequested("enough", 30 * SECOND)


async def is_left(belted: Belted, driver: Older) -> bool:
    """Whether anything waits for the driver on the broker."""
    info = await belted.jetstream.consumer("messages", driver.name)
    assert info
    return bool(info["num_pending"])


async def until_nothing_is_left(belted: Belted, driver: Older) -> None:
    async def gone() -> bool:
        return not await is_left(belted, driver)

    await until(gone)


async def test_a_cancel_withdraws_what_nobody_was_given(belted: Belted, older: MakeOlder) -> None:
    driver = older("a")
    run = await belted.undelivered(driver)
    await belted.handle(run, STOP)
    assert (await belted.ended(run)).state == RUN_CANCELLED
    await until_nothing_is_left(belted, driver)
    await belted.at_rest()
    after = await belted.launch(step("a"))
    await driver.pull(100)
    assert (await belted.ended(after)).state == RUN_SUCCEEDED
    assert run not in driver.runs


@pytest.mark.parametrize("stored", [True, False])
async def test_fail_fast_withdraws_what_nobody_was_given(belted: Belted, older: MakeOlder, stored: bool) -> None:
    """Also while it is not stored yet where the ticket is."""
    failing_now = asyncio.Event()

    async def failing(ticket: Ticket) -> dict[str, object]:
        await failing_now.wait()
        return {"success": False, "message": "broken"}

    bad, slow = await older("bad", failing).connect(), older("a")
    await belted.undelivered(slow)
    await bad.pull(100)
    belted.tickets._takers.interest(("default", "bad"))
    await until(lambda: belted.tickets.consumer("default", "bad", "app")[0])
    run = await belted.launch(step("bad"), step("a"), order=GRAPH)
    await until(lambda: bad.tickets)
    if stored:
        await belted.until_stored(run, "a")
    failing_now.set()
    assert (await belted.ended(run)).state == RUN_FAILED
    assert (await belted.states(run))[1] == SKIPPED
    await until(lambda: not belted.engine._tasks)
    await slow.pull(100)
    await until_nothing_is_left(belted, slow)
    assert run not in slow.runs


async def test_a_cancel_while_the_broker_is_away_withdraws_later(belted: Belted, older: MakeOlder) -> None:
    driver = older("a")
    run = await belted.undelivered(driver)
    await belted.broker("stop")
    await belted.handle(run, STOP)
    assert (await belted.ended(run)).state == RUN_CANCELLED
    await belted.broker("start")
    await until_nothing_is_left(belted, driver)
    await driver.pull(100)
    await belted.at_rest()
    assert run not in driver.runs


async def test_a_cancel_tells_a_driver_at_work_to_stop(belted: Belted, older: MakeOlder) -> None:
    held = Held()
    driver = await older("a", held).start()
    run = await belted.launch(step("a"))
    await belted.in_state(run, "a", RUNNING)
    await belted.handle(run, STOP)
    await until(lambda: driver.told)
    ((subject, told),) = driver.told
    assert subject == f"cancel.{run}.a"
    token = (await belted.record(run, "a")).token
    assert told == {"attempt": 1, "token": token, "message": "enough", "grace": 30.0}
    await driver.answer(driver.tickets[0], {"success": False, "outcome": "CANCELLED"})
    assert (await belted.ended(run)).state == RUN_CANCELLED
    await belted.at_rest()


async def test_a_cancel_reaches_a_driver_that_was_not_known_to_be_at_work(belted: Belted, older: MakeOlder) -> None:
    driver = await older("a", Held()).start()
    belted.tickets._takers.interest(("default", "a"))
    await until(lambda: belted.tickets.consumer("default", "a", "app")[0])
    run = await belted.launch(step("a"))
    await until(lambda: driver.tickets)
    assert (await belted.states(run)) == [QUEUED]
    await belted.handle(run, STOP)
    assert (await belted.ended(run)).state == RUN_CANCELLED
    await until(lambda: driver.told)
    assert driver.told[0][0] == f"cancel.{run}.a"
    await belted.at_rest()


async def test_a_cancel_reaches_such_a_driver_also_when_store_and_broker_were_away(
    belted: Belted, older: MakeOlder
) -> None:
    driver = await older("a", Held()).start()
    belted.tickets._takers.interest(("default", "a"))
    await until(lambda: belted.tickets.consumer("default", "a", "app")[0])
    run = await belted.launch(step("a"))
    await until(lambda: driver.tickets)
    assert (await belted.states(run)) == [QUEUED]
    await belted.broker("stop")
    await belted.handle(run, STOP)
    assert (await belted.ended(run)).state == RUN_CANCELLED
    belted.store.away = True
    refused = belted.store.refused
    await belted.broker("start")
    await until(lambda: belted.store.refused > refused)
    belted.store.away = False
    await until(lambda: driver.told)
    await belted.at_rest()


async def test_a_worker_that_comes_takes_over_what_nobody_was_given(
    belted: Belted, older: MakeOlder, workers: Connect
) -> None:
    driver = older("a")
    run = await belted.undelivered(driver)
    worker = await workers(belted, "a")
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert [given.run for given in worker.given] == [run]
    await driver.pull(100)
    await until_nothing_is_left(belted, driver)
    assert run not in driver.runs
    await until(lambda: belted.held == 0)
    await belted.at_rest()


async def test_a_worker_that_comes_while_the_broker_is_away_takes_over_later(
    belted: Belted, older: MakeOlder, workers: Connect
) -> None:
    driver = older("a")
    run = await belted.undelivered(driver)
    await belted.broker("stop")
    worker = await workers(belted, "a")
    await belted.sweep.once()
    assert (await belted.states(run)) == [QUEUED]
    await belted.broker("start")
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert [given.run for given in worker.given] == [run]
    assert run not in driver.runs


async def test_a_worker_leaves_what_was_delivered_where_it_is(
    belted: Belted, older: MakeOlder, workers: Connect
) -> None:
    held = Held()
    await older("a", held).start()
    run = await belted.launch(step("a"))
    await until(lambda: held.started)
    worker = await workers(belted, "a")
    await belted.in_state(run, "a", RUNNING)
    held.released.set()
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert not worker.given


# Servers that die, or are not alone


async def restarted(belted: Belted, store: Store) -> Belted:
    """Another server in place of one that was killed."""
    await belted.kill()
    again = await Belted(store, belted.nats, "r2").start()
    await again.sweep.once()
    return again


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_ticket_that_was_published_but_not_noted_is_not_published_again(
    belted: Belted, older: MakeOlder, embedded: Store, delivered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor.engine.tickets._NOTED_AFTER", 60.0)
    held = Held()
    driver = older("a", held)
    belted.tickets._takers.interest(("default", "a"))
    await driver.connect()
    await driver.pull(2 if delivered else 1)
    await until(lambda: belted.tickets.consumer("default", "a", "app")[0])
    first = await belted.launch(step("a"))
    await until(lambda: held.started)
    run = await belted.launch(step("a"))
    await until(lambda: all(out.receipt for out in belted.tickets._out.values()))
    assert belted.out == 2
    again = await restarted(belted, embedded)
    try:
        held.released.set()
        await driver.pull(100)
        for each in (first, run):
            assert (await again.ended(each)).state == RUN_SUCCEEDED
        await again.at_rest()
        assert driver.runs == [first, run]
    finally:
        await again.kill()


async def test_a_claim_without_a_ticket_gets_it_after_a_restart(
    belted: Belted, older: MakeOlder, embedded: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await older("a").start()
    belted.tickets._takers.interest(("default", "a"))
    await until(lambda: belted.tickets.consumer("default", "a", "app")[0])
    with monkeypatch.context() as patch:
        patch.setattr(belted.tickets, "publish", lambda run, index: None)
        run = await belted.launch(step("a"))
    assert (await belted.record(run, "a")).token
    again = await restarted(belted, embedded)
    try:
        assert (await again.ended(run)).state == RUN_SUCCEEDED
        assert driver.runs == [run]
    finally:
        await again.kill()


async def test_a_running_step_stays_with_its_driver_over_a_restart(
    belted: Belted, older: MakeOlder, embedded: Store
) -> None:
    held = Held()
    driver = await older("a", held).start()
    run = await belted.launch(step("a"), step("b", driver="a"))
    await belted.in_state(run, "a", RUNNING)
    await belted.kill()
    # With the stream goes the broker's memory of what it was given.
    await driver.call("STREAM.DELETE.messages")
    again = await Belted(embedded, belted.nats, "r2").start()
    await driver.create()
    await again.sweep.once()
    try:
        await until(lambda: not again.engine._tasks)
        held.released.set()
        assert (await again.ended(run)).state == RUN_SUCCEEDED
        assert driver.steps == ["a", "b"]
        await again.at_rest()
    finally:
        await again.kill()


async def test_two_servers_give_each_attempt_out_once_and_forget_each_others(
    embedded: Store, broker: NatsServer, older: MakeOlder
) -> None:
    both = [await Belted(embedded, broker, name).start(shared=True) for name in ("r1", "r2")]
    try:
        driver = await older("a").start()
        runs = [await each.launch(step("s", driver="a"), step("t", driver="a")) for each in both * 5]

        async def ended() -> bool:
            for each in both:
                await each.sweep.once()
            return all([(await both[0].stored(run)).state.terminal for run in runs])

        await until(ended)
        assert sorted(zip(driver.runs, driver.steps, strict=True)) == sorted(
            (run, name) for run in runs for name in ("s", "t")
        )
        await until(lambda: not any(each.out for each in both))
    finally:
        for each in both:
            await each.kill()


# Broadcasts


async def test_a_broadcast_reaches_all_that_listen(belted: Belted, older: MakeOlder, workers: Connect) -> None:
    drivers = [older(name, echo=name != "e") for name in "abe"]
    drivers[1].request["config"]["filter_subjects"] = ["resources.app"]
    for driver in drivers:
        await driver.start()
    worker = await workers(belted, "c", definitions=["app"])
    elsewhere = await older("d", definition="other").start()
    await until(lambda: len(belted.tickets.listeners("default", "app")) == 3)
    run = await belted.launch()
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert (await belted.states(run)) == [SUCCEEDED] * 4
    assert [driver.runs for driver in drivers] == [[run]] * 3
    (ticket,) = drivers[0].tickets
    assert ticket["event"] == "create"
    assert ticket == drivers[1].tickets[0]
    assert [given.run for given in worker.given] == [run]
    assert not elsewhere.tickets
    await until(lambda: belted.held == 0)
    await belted.at_rest()


async def test_a_driver_that_says_nothing_of_a_broadcast_fails_nothing(belted: Belted, older: MakeOlder) -> None:
    await older("a").start()
    silent = await older("b", Held()).start()
    await until(lambda: len(belted.tickets.listeners("default", "app")) == 2)
    run = await belted.launch()
    await until(lambda: silent.tickets)

    async def answered() -> bool:
        return (await belted.states(run))[0] == SUCCEEDED

    await until(answered)
    belted.clock.advance(601)
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert (await belted.states(run)) == [SUCCEEDED, SKIPPED]
    assert await belted.reason(run, "b") == "NOT_REPORTED"
    await belted.at_rest()


async def test_a_broadcast_that_nobody_hears_ends_at_once(belted: Belted) -> None:
    assert (await belted.ended(await belted.launch())).state == RUN_SUCCEEDED


async def test_a_broadcast_begun_while_the_broker_is_away_is_sent_once(belted: Belted, older: MakeOlder) -> None:
    driver = await older("a").start()
    await until(lambda: belted.tickets.listeners("default", "app"))
    prepared = belted.prepare()
    await belted.broker("stop")
    await belted.launcher.launched(prepared, await belted.store.commit(prepared.guards, prepared.puts))
    for _ in range(3):
        await belted.sweep.once()
    await belted.broker("start")
    assert (await belted.ended(prepared.run_id)).state == RUN_SUCCEEDED
    assert driver.runs == [prepared.run_id]
    await belted.at_rest()


async def test_a_cancelled_broadcast_is_not_sent(belted: Belted, older: MakeOlder) -> None:
    driver = await older("a").start()
    await until(lambda: belted.tickets.listeners("default", "app"))
    prepared = belted.prepare()
    await belted.broker("stop")
    await belted.launcher.launched(prepared, await belted.store.commit(prepared.guards, prepared.puts))
    await belted.handle(prepared.run_id, STOP)
    assert (await belted.ended(prepared.run_id)).state == RUN_CANCELLED
    await belted.broker("start")
    await belted.at_rest()
    assert (await belted.states(prepared.run_id)) == [CANCELLED]
    await until(lambda: belted.tickets.listeners("default", "app"))
    after = await belted.launch()
    assert (await belted.ended(after)).state == RUN_SUCCEEDED
    assert driver.runs == [after]

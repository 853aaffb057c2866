"""Answers that come over JetStream: each counts at most once, and none stands in the way of others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from conveyor.bus.events import ResultArrived
from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2
from tests.support.jetstream import Belted
from tests.support.older import Held, Older
from tests.support.rig import QUEUED, RUN_FAILED, RUN_SUCCEEDED, RUNNING, SUCCEEDED, step, until

MakeOlder = Callable[..., Older]

RESULTS = "pipelines.driver.result"


async def until_all_is_acked(belted: Belted) -> None:
    """Waits until the inbox has nothing more to read or to answer."""

    async def empty() -> bool:
        info = await belted.jetstream.stream("pipeline")
        return info is not None and info["state"]["messages"] == 0

    await until(empty)


async def quarantined(belted: Belted) -> list[storage_pb2.QuarantineRecord]:
    listing = await belted.store.list(keys.QUARANTINE)
    return [storage_pb2.QuarantineRecord.FromString(kv.value) for kv in listing.items]


async def test_what_cannot_be_read_is_put_aside_and_the_rest_flows(belted: Belted, older: MakeOlder) -> None:
    driver = await older("a").start()
    bodies = [b"\xff\xfe", b"{", b"[]", b"{}", b'{"run_id": 7}', b'{"run_id": "a.b"}']
    for body in bodies:
        await driver.publish(RESULTS, body)
    await driver.publish("pipelines.something.new", b"{}")
    run = await belted.launch(step("a"))
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    await until_all_is_acked(belted)
    records = await quarantined(belted)
    assert sorted(record.body for record in records) == sorted([*bodies, b"{}"])
    assert all(record.error and record.time and RESULTS in record.source for record in records if record.body != b"{}")
    assert belted.inbox.quarantined == len(bodies) + 1


async def test_an_answer_for_a_run_that_is_not_there_is_acknowledged(belted: Belted, older: MakeOlder) -> None:
    driver = await older("a").start()
    ticket = {"run_id": "0193f3a0-0000-7000-8000-000000000000", "payload": "{}"}
    await driver.answer(ticket, {"success": True})
    await driver.answer(ticket, {"success": True, "driver": ""})
    await until_all_is_acked(belted)
    assert not await quarantined(belted)


async def test_a_result_that_is_none_fails_its_step_at_once(belted: Belted, older: MakeOlder) -> None:
    answers: list[dict[str, Any]] = [
        {"success": True, "data": {"n": float("nan")}},
        {"success": True, "data": {"n": 2**53 + 1}},
        {"success": "yes"},
    ]

    async def next_answer(ticket: dict[str, Any]) -> dict[str, Any]:
        return answers.pop()

    await older("a", next_answer).start()
    while answers:
        run = await belted.launch(step("a"))
        assert (await belted.ended(run)).state == RUN_FAILED
        assert await belted.reason(run, "a") == "RESULT_INVALID"
    assert not await quarantined(belted)


async def test_the_same_answer_twice_counts_once_and_a_later_one_not(belted: Belted, older: MakeOlder) -> None:
    held = Held()
    driver = await older("a", held).start()
    run = await belted.launch(step("a"), step("b", driver="a"))
    await until(lambda: held.started)
    (ticket,) = held.started
    answer = {"success": True, "message": "ok", "data": {"n": 1}}
    await driver.answer(ticket, answer)
    await driver.answer(ticket, answer)
    await driver.answer(ticket, {"success": False})
    held.released.set()  # answers once more
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert driver.steps == ["a", "b"]
    await until_all_is_acked(belted)


async def test_a_wrong_token_changes_nothing(belted: Belted, older: MakeOlder) -> None:
    held = Held()
    driver = await older("a", held).start()
    run = await belted.launch(step("a"))
    await until(lambda: held.started)
    (ticket,) = held.started
    resource = json.loads(ticket["payload"])
    resource["metadata"]["conveyor.token"] = "wrong"
    await driver.answer({**ticket, "payload": json.dumps(resource)}, {"success": False})
    await until_all_is_acked(belted)
    assert (await belted.states(run))[0] in (QUEUED, RUNNING)
    held.released.set()
    assert (await belted.ended(run)).state == RUN_SUCCEEDED


async def test_a_redelivered_answer_without_metadata_is_not_the_next_steps(belted: Belted, older: MakeOlder) -> None:
    """The broker delivers again what it was not told to be done with, e.g. when the server was killed before."""
    held = Held()
    driver = await older("a", held, echo=False).start()
    run = await belted.launch(step("a"), step("b", driver="a"))
    await until(lambda: held.started)
    result = result_pb2.DriverResult(outcome=result_pb2.OUTCOME_SUCCEEDED)
    arrived = ResultArrived("default", run, "", 0, "", "a", result, message_id=b"7 1")
    await belted.inbox._handle(arrived)
    await until(lambda: len(driver.tickets) == 2)
    await belted.inbox._handle(arrived)
    assert (await belted.states(run)) in ([SUCCEEDED, QUEUED], [SUCCEEDED, RUNNING])
    await belted.inbox._handle(ResultArrived("default", run, "", 0, "", "a", result, message_id=b"8 1"))
    assert (await belted.ended(run)).state == RUN_SUCCEEDED


async def test_the_same_bytes_delivered_twice_have_one_id_and_sent_twice_have_two(
    belted: Belted, older: MakeOlder
) -> None:
    """The recorded drivers say the same of each step: their messages are told apart by the broker alone."""
    driver = await older("a", echo=False).start()
    run = await belted.launch(step("a"), step("b", driver="a"), step("c", driver="a"))
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    assert driver.steps == ["a", "b", "c"]


async def test_an_answer_is_acknowledged_only_once_it_is_stored(belted: Belted, older: MakeOlder) -> None:
    held = Held()
    await older("a", held).start()
    run = await belted.launch(step("a"))
    await belted.in_state(run, "a", RUNNING)
    belted.store.hold = asyncio.Event()
    held.released.set()

    async def taken() -> bool:
        info = await belted.jetstream.consumer("pipeline", "pipeline-engine")
        return info is not None and info["num_ack_pending"] == 1

    await until(taken)
    belted.store.hold.set()
    belted.store.hold = None
    assert (await belted.ended(run)).state == RUN_SUCCEEDED
    await until_all_is_acked(belted)

"""The same thing said twice, at once, or to the wrong one."""

from __future__ import annotations

import asyncio

import pytest

from conveyor.sdk import Aborted, AlreadyExists, Client, from_struct, jetstream, to_struct
from conveyor.v1.resource_pb2 import Resource
from tests.support.behaviour import Counted, Hold, sleep
from tests.support.belt import Belt, on_both_stores, state, step
from tests.support.raw_worker import RawWorker, report, report_results
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until


@on_both_stores
async def test_f53_a_driver_that_answers_twice_and_contradicts_itself(belt: Belt) -> None:
    later = Hold()
    belt.drive("later", later)
    await belt.pipeline(step("a", "dup"), step("b", "later"))
    async with RawWorker(belt.address, belt.namespace, "dup") as dup:
        run = await belt.start()
        given = await dup.assignments.get()
        success, failure = report(given, n=1), report(given, outcome="FAILED")
        assert await dup.answer(success) == ["ACCEPTED"]
        assert await dup.answer(success, failure) == ["DUPLICATE", "CONFLICT"]
        wrong_token, unknown, stranger = report(given, token="another", n=1), report(given, n=1), report(given, n=1)
        unknown.run = "01a00000-0000-7000-8000-000000000000"
        stranger.driver = "stranger"
        reports = [success, failure, wrong_token, unknown, stranger]
        expected = ["DUPLICATE", "CONFLICT", "STALE_ATTEMPT", "NOT_FOUND", "INVALID"]
        assert await report_results(belt.address, belt.namespace, *reports) == expected
        assert await dup.answer(success) == ["DUPLICATE"]
        await later.started.wait()
        later.released.set()
        ended = await belt.ended(run)
        assert state(ended) == "SUCCEEDED"
        assert from_struct(ended.steps[0].result.data) == {"n": 1}
        assert await report_results(belt.address, belt.namespace, *reports) == expected
    async with RawWorker(belt.address, belt.namespace, "dup") as anew:
        assert await anew.answer(success, failure) == ["DUPLICATE", "CONFLICT"]
        second = await belt.start()
        assert await anew.answer(report(await anew.assignments.get())) == ["ACCEPTED"]
        assert state(await belt.ended(second)) == "SUCCEEDED"
    assert later.count == 2


async def test_f54_work_longer_than_the_brokers_patience(belt: Belt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "_ACK_WAIT", 1.0)
    monkeypatch.setattr(jetstream, "_IN_PROGRESS_EVERY", 0.3)
    counted = Counted(sleep(3))
    for worker in ("first", "second"):
        belt.drive("slow", counted, transport="jetstream", slots=1, worker=worker)
    await belt.pipeline(step("a", "slow"))
    ended = await belt.ended(await belt.start())
    assert (state(ended), len(ended.steps[0].attempts)) == ("SUCCEEDED", 1)
    assert counted.count == 1


@on_both_stores
async def test_f55_a_start_whose_answer_is_lost(belt: Belt) -> None:
    await belt.pipeline(step("a", "nobody"))
    await belt.client.resources.create(Resource(name="shop", definition="app", pipeline="release"))
    before = [run.id async for run in belt.client.runs.list()]
    async with TcpProxy(belt.address) as proxy:
        async with Client(proxy.address, namespace=belt.namespace) as client:
            await client.server_info()
            proxy.hold_answers()
            lost = asyncio.create_task(client.runs.start("app", "shop", request_id="one"))

            async def stored() -> bool:
                return len([run async for run in belt.client.runs.list()]) == len(before) + 1

            await until(stored, "the run to be stored")
            proxy.cut()
            run = await lost
        again = await asyncio.gather(*(belt.client.runs.start("app", "shop", request_id="one") for _ in range(20)))
    assert {each.id for each in again} == {run.id}
    assert len([each async for each in belt.client.runs.list()]) == len(before) + 1
    with pytest.raises(AlreadyExists) as reused:
        await belt.client.runs.start("app", "shop", labels={"a": "b"}, request_id="one")
    assert reused.value.reason == "REQUEST_ID_REUSED"


@on_both_stores
async def test_f56_twenty_creates_and_updates_of_one_name(belt: Belt) -> None:
    await belt.pipeline(step("a", "nobody"))
    clients = [Client(belt.address, namespace=belt.namespace) for _ in range(4)]

    def shop(n: int, etag: str = "") -> Resource:
        return Resource(name="shop", definition="app", pipeline="release", spec=to_struct({"n": n}), etag=etag)

    try:
        created = await asyncio.gather(
            *(clients[n % 4].resources.create(shop(n)) for n in range(20)), return_exceptions=True
        )
        won = [each for each in created if not isinstance(each, BaseException)]
        assert len(won) == 1
        assert [type(each) for each in created if isinstance(each, BaseException)] == [AlreadyExists] * 19
        stored = await belt.client.resources.get("app", "shop")
        assert stored.spec == won[0].resource.spec
        updated = await asyncio.gather(
            *(clients[n % 4].resources.update(shop(100 + n, stored.etag)) for n in range(20)), return_exceptions=True
        )
        won = [each for each in updated if not isinstance(each, BaseException)]
        assert len(won) == 1
        assert [type(each) for each in updated if isinstance(each, BaseException)] == [Aborted] * 19
        assert len([run async for run in belt.client.runs.list()]) == 2
    finally:
        for client in clients:
            await client.close()

"""Several engines on one store: each run ends once, work finds workers elsewhere, and the dead are followed by others.

With etcd that is how production runs; on SQLite two engines in one process stand for two servers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND
from conveyor.engine.remote import RemoteRuns
from conveyor.engine.results import result_event
from conveyor.state import keys
from conveyor.store import open_etcd, open_sqlite
from conveyor.store.port import Change, Changes, Put, Store
from conveyor.v1 import result_pb2, run_pb2
from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.faulty import Clock
from tests.support.rig import GRAPH, QUEUED, RUN_CANCELLED, RUN_SUCCEEDED, Replica, Worker, mute, report, step, until

Connect = Callable[..., Awaitable[Worker]]
StartReplica = Callable[..., Awaitable[Replica]]


@pytest_asyncio.fixture(params=["sqlite", *(f"etcd-{version}" for version in VERSIONS)])
async def pair(
    request: pytest.FixtureRequest, tmp_path: Path, start_replica: StartReplica
) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas that share a store, on each store."""
    clock = Clock()
    server: Etcd | None = None
    stores: list[Store] = []
    if request.param == "sqlite":
        stores.append(await open_sqlite(tmp_path / "shared"))
    else:
        server = Etcd(binary(request.param.removeprefix("etcd-")), tmp_path / "etcd")
        await asyncio.to_thread(server.start)
        stores += [await open_etcd([server.url], compaction_interval=0) for _ in range(2)]
    kind = {"shared": True, "clock": clock, "lease": 1.0}
    one = await start_replica("one", store=stores[0], **kind)
    two = await start_replica("two", store=stores[-1], **kind)
    yield one, two
    for replica in (one, two):
        replica.store.hold = None
        await replica.kill()
    for store in stores:
        await store.close()
    if server is not None:
        await asyncio.to_thread(server.stop)


async def test_every_run_ends_once_whoever_hears_what(pair: tuple[Replica, Replica], workers: Connect) -> None:
    """Results come in at the other server, too; every attempt is given out once."""
    one, _ = pair

    async def tells_another(worker: Worker, given: object) -> None:
        event = report(given, driver=worker.driver)  # type: ignore[arg-type]
        other = random.choice(pair)
        await other.engine.handle("default", event.run, result_event(event, worker.driver))

    given = [await workers(replica, driver, tells_another, slots=8) for replica in pair for driver in ("a", "b", "c")]
    runs = await asyncio.gather(
        *(
            pair[i % 2].launch(step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c", driver="a"), order=GRAPH)
            for i in range(60)
        )
    )
    for run in runs:
        assert (await one.ended(run, 60)).state == RUN_SUCCEEDED
    all_given = [(each.run, each.step) for worker in given for each in worker.given]
    assert len(all_given) == len(set(all_given)) == 60 * 4
    for replica in pair:
        await until(lambda replica=replica: not replica.engine._tasks and not replica.held)
        await until(lambda replica=replica: not replica.engine.pool.waiting_runs())
        await until(lambda replica=replica: not len(replica.engine.timers))


async def test_a_step_goes_to_the_replica_that_has_a_worker(pair: tuple[Replica, Replica], workers: Connect) -> None:
    one, two = pair
    early = await one.launch(step("a"))
    assert one.engine.pool.waiting("default", "a") == 1
    a = await workers(two, "a")
    late = await one.launch(step("a"))
    for run in (early, late):
        assert (await one.ended(run)).state == RUN_SUCCEEDED
    assert len(a.given) == 2
    await until(lambda: not one.engine.pool.waiting("default", "a"))


async def test_a_cancel_reaches_a_worker_of_another_replica(pair: tuple[Replica, Replica], workers: Connect) -> None:
    one, two = pair
    a = await workers(two, "a", mute)
    run = await one.launch(step("a"))
    given = await a.next_given()
    await one.engine.request("default", run, CancelRequested("", 60 * SECOND))
    await until(lambda: a.told)
    await a.answer(given, result_pb2.OUTCOME_CANCELLED)
    assert (await one.ended(run)).state == RUN_CANCELLED
    await until(lambda: two.held == 0)


async def test_a_timeout_seen_by_another_replica_reaches_the_worker(
    pair: tuple[Replica, Replica], workers: Connect
) -> None:
    one, two = pair
    a = await workers(two, "a", mute)
    run = await one.launch(step("a", timeout={"seconds": 60}))
    await a.next_given()
    two.engine.timers.forget(("default", run))
    await one.sweep.once()
    one.clock.advance(61)
    await one.ended(run)
    await until(lambda: a.told)
    await a.answer(a.given[0])
    await until(lambda: two.held == 0)


async def test_a_result_that_another_replica_hears_frees_the_worker(
    pair: tuple[Replica, Replica], workers: Connect
) -> None:
    one, two = pair
    a = await workers(two, "a", mute)
    run = await one.launch(step("a"))
    given = await a.next_given()
    decision = await one.handle(run, result_event(report(given), "a"))
    assert decision.disposition == result_pb2.DISPOSITION_ACCEPTED
    await until(lambda: two.held == 0)


async def test_a_result_is_not_judged_by_a_state_that_is_out_of_date(
    pair: tuple[Replica, Replica], workers: Connect
) -> None:
    """The replica that hears it has the run in hand as it was before the claim."""
    one, two = pair
    run = await one.launch(step("a"))
    one.engine.outdated = lambda *args: None  # type: ignore[method-assign]
    assert one.engine._in_hand(("default", run)) is not None
    a = await workers(two, "a", mute)
    given = await a.next_given()
    decision = await one.handle(run, result_event(report(given), "a"))
    assert decision.disposition == result_pb2.DISPOSITION_ACCEPTED
    assert (await one.ended(run)).state == RUN_SUCCEEDED


async def test_a_worker_that_moves_takes_its_work_along(pair: tuple[Replica, Replica], workers: Connect) -> None:
    one, two = pair
    run = await one.launch(step("a"))
    # Its new server has an older state of the run in hand.
    two.engine.outdated = lambda *args: None  # type: ignore[method-assign]
    [_ async for _ in two.engine.take_in_hand([("default", run)])]
    a = await workers(one, "a", mute)
    given = await a.next_given()
    for target in (two, one, two):
        session = a.session
        await a.cut()
        await a.connect(target)
        assert a.session == session
        assert list(a.welcome.revoked) == []
    await until(lambda: one.engine.pool.session(a.session) is None)
    assert a.error is None
    await a.answer(given)
    assert (await two.ended(run)).state == RUN_SUCCEEDED
    assert len(a.given) == 1
    assert a.error is None


async def test_one_leads_and_the_other_follows_when_it_is_gone(pair: tuple[Replica, Replica]) -> None:
    one, two = pair
    await until(lambda: one.presence.leading_for >= 0 or two.presence.leading_for >= 0)
    await until(lambda: one.presence.others == {"two"} and two.presence.others == {"one"})
    leader, other = (one, two) if one.presence.leading_for >= 0 else (two, one)
    assert other.presence.leading_for < 0
    await leader.kill()
    await until(lambda: other.presence.leading_for >= 0)
    await until(lambda: other.presence.others == frozenset())
    assert leader.presence.leading_for < 0 or leader is not other


async def test_steps_of_a_dead_replica_run_elsewhere(pair: tuple[Replica, Replica], workers: Connect) -> None:
    one, two = pair
    one.sessions.ttl, one.sessions.heartbeat = 1.5, 0.5
    a = await workers(one, "a", mute)
    run = await one.launch(step("a"))
    await a.next_given()
    await until(lambda: two.engine.sessions.has("default", "a", a.session))
    await one.kill()
    b = await workers(two, "a")

    async def looked_after() -> bool:
        await two.orphans.once()
        await two.sweep.once()
        return (await two.stored(run)).state.terminal

    await until(looked_after)
    assert (await two.ended(run)).state == RUN_SUCCEEDED
    assert [given.attempt for given in b.given] == [2]
    assert (await two.record(run, "a")).attempts[0].reason == run_pb2.STEP_REASON_WORKER_LOST


async def test_a_worker_of_a_dead_replica_may_come_back_in_time(
    pair: tuple[Replica, Replica], workers: Connect
) -> None:
    one, two = pair
    a = await workers(one, "a", mute)
    run = await one.launch(step("a"))
    given = await a.next_given()
    await one.kill()
    await a.cut()
    await a.connect(two)
    for _ in range(3):
        await two.orphans.once()
        await two.sweep.once()
    await a.answer(given)
    assert (await two.ended(run)).state == RUN_SUCCEEDED
    assert len((await two.record(run, "a")).attempts) == 1


async def test_a_change_that_cannot_be_read_stops_nothing(pair: tuple[Replica, Replica], workers: Connect) -> None:
    one, two = pair
    run = await one.launch(step("a"))
    await one.store.commit((), [Put(keys.head("default", run), b"\xff\xff")])
    await one.store.commit((), [Put(keys.step("default", run, "a"), b"\xff\xff")])
    await one.store.commit((), [Put(keys.session("default", "a", "broken"), b"\xff\xff")])
    await workers(one, "b")
    assert (await two.ended(await two.launch(step("b")))).state == RUN_SUCCEEDED
    assert one.ended_tasks == two.ended_tasks == []


async def test_a_process_that_was_stopped_does_not_lead(start_replica: StartReplica) -> None:
    replica = await start_replica(lease=5.0)
    await replica.presence.renew()
    assert replica.presence.leading_for >= 0
    replica.presence._renewed -= 6
    assert replica.presence.leading_for < 0
    await replica.presence.renew()
    assert 0 <= replica.presence.leading_for < 5


async def test_old_news_takes_no_step_out_of_its_row(pair: tuple[Replica, Replica], workers: Connect) -> None:
    """The watch tells of a change by the other replica when this one has long moved the run on."""
    one, two = pair
    run = await two.launch(step("a"), step("b"))
    before = await two.store.get(keys.head("default", run))
    assert before is not None
    a = await workers(one, "a")
    await one.in_state(run, "b", QUEUED)
    await until(lambda: one.engine.pool.waiting("default", "b") == 1)
    old = Change(before.key, before.value, None, before.mod_revision)
    RemoteRuns(one.engine).take(Changes(before.mod_revision, (old,)))
    assert one.engine.pool.waiting("default", "b") == 1
    assert len(a.given) == 1


async def test_a_step_that_waits_is_looked_at_as_it_is_now(
    pair: tuple[Replica, Replica], workers: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is in use here while the other replica queues its next step: what is in hand is older than the news."""
    one, two = pair
    run = await one.launch(step("a"), step("b"))
    [_ async for _ in two.engine.take_in_hand([("default", run)])]
    monkeypatch.setattr(two.engine, "outdated", lambda *args: None)
    await workers(one, "a")
    await until(lambda: two.engine.pool.waiting("default", "b") == 1)

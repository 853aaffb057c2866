"""Watches of runs: a snapshot, then every change in order, or an explicit reset or skip."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from conveyor.core import errors
from conveyor.core.events import CancelRequested
from conveyor.state import keys
from conveyor.store.port import Put, Reset
from conveyor.v1 import run_pb2, run_service_pb2
from conveyor.watch import cursor as cursors
from conveyor.watch import hub as hubs
from conveyor.watch import subscription as subscriptions
from conveyor.watch.hub import RunFilter
from tests.support.rig import QUEUED, RUN_CANCELLED, RUN_RUNNING, RUN_SUCCEEDED, Replica, Worker, mute, step, until

Message = run_service_pb2.WatchRunResponse | run_service_pb2.WatchRunsResponse
ALL = RunFilter("default")


def kind(message: Message) -> str:
    for name in ("snapshot", "snapshot_end", "changes", "deleted", "heartbeat", "reset"):
        if message.HasField(name):  # type: ignore[arg-type]
            return name
    raise AssertionError(message)


class Watch:
    """Reads a watch in the background; `messages` is what came."""

    def __init__(self, stream: AsyncIterator[Any]) -> None:
        self.messages: list[Any] = []
        self.error: Exception | None = None
        self.task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: Any) -> None:
        try:
            async with aclosing(stream):
                async for message in stream:
                    self.messages.append(message)
        except errors.DomainError as error:
            self.error = error

    @property
    def kinds(self) -> list[str]:
        return [kind(message) for message in self.messages]

    @property
    def changes(self) -> list[run_pb2.RunChange]:
        return [change for message in self.messages for change in message.changes.changes]

    @property
    def cursor(self) -> str:
        return next(message.cursor for message in reversed(self.messages) if message.cursor)

    async def begun(self) -> Watch:
        await until(lambda: "snapshot_end" in self.kinds)
        return self

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def finish(replica: Replica, run: str) -> None:
    await replica.engine.request("default", run, CancelRequested("", 0, force=True))


async def caught_up(replica: Replica) -> None:
    listing = await replica.store.list(keys.ACTIVE, limit=1)
    await until(lambda: replica.feed.revision >= listing.revision - 1)


async def test_one_run_from_its_snapshot_to_its_end(replica: Replica) -> None:
    run = await replica.launch(step("a"), step("b"))
    watch = await Watch(replica.hub.watch_run("default", run)).begun()
    worker_a = await Worker(replica, "a").connect()
    worker_b = await Worker(replica, "b").connect()
    await asyncio.wait_for(watch.task, 30)
    assert watch.kinds[:2] == ["snapshot", "snapshot_end"]
    assert set(watch.kinds[2:]) == {"changes"}
    snapshot = watch.messages[0].snapshot.runs[0]
    assert [each.state for each in snapshot.steps] == [QUEUED, run_pb2.STEP_STATE_PENDING]
    states = [tuple(change.run.step_states) for change in watch.changes]
    assert states == sorted(states, key=lambda s: [s[0], s[1]])
    assert len(set(states)) == len(states)
    assert watch.changes[-1].run.state == RUN_SUCCEEDED
    assert all(change.steps for change in watch.changes)
    await worker_a.cut()
    await worker_b.cut()


async def test_a_run_that_has_ended_is_shown_and_the_watch_ends(replica: Replica) -> None:
    run = await replica.launch(step("a"))
    await finish(replica, run)
    watch = Watch(replica.hub.watch_run("default", run))
    await asyncio.wait_for(watch.task, 10)
    assert watch.kinds == ["snapshot", "snapshot_end"]
    assert watch.messages[0].snapshot.runs[0].state == RUN_CANCELLED
    again = Watch(replica.hub.watch_run("default", run, watch.cursor))
    await asyncio.wait_for(again.task, 10)
    assert again.messages == []


async def test_an_unknown_run_and_a_broken_cursor_are_refused(replica: Replica) -> None:
    with pytest.raises(errors.NotFound):
        await anext(aiter(replica.hub.watch_run("default", "0190c2a0-0000-7000-8000-000000000000")))
    with pytest.raises(errors.InvalidCursor):
        await anext(aiter(replica.hub.watch_run("default", "x", "no cursor!")))
    assert replica.hub.subscribers == 0


async def test_whoever_resumes_misses_nothing_and_sees_nothing_twice(replica: Replica) -> None:
    a = await Worker(replica, "d", mute).connect()
    run = await replica.launch(*(step(f"s{i}", driver="d") for i in range(10)))
    whole = await Watch(replica.hub.watch_run("default", run)).begun()
    cursor = whole.cursor
    seen: list[tuple[int, ...]] = []
    for i in range(10):
        part = Watch(replica.hub.watch_run("default", run, cursor))
        await a.answer(await a.next_given(i + 1))
        await until(lambda part=part: part.changes)
        await part.stop()
        assert set(part.kinds) == {"changes"}
        seen += [tuple(change.run.step_states) for change in part.changes]
        cursor = part.cursor
    await asyncio.wait_for(whole.task, 30)
    rest = Watch(replica.hub.watch_run("default", run, cursor))
    await asyncio.wait_for(rest.task, 10)
    seen += [tuple(change.run.step_states) for change in rest.changes]
    assert seen == [tuple(change.run.step_states) for change in whole.changes]
    await a.cut()


@pytest.mark.parametrize("foreign", ["other epoch", "future", "too old"])
async def test_a_cursor_that_means_nothing_here_begins_anew(replica: Replica, foreign: str) -> None:
    old = cursors.encode(replica.store.epoch, replica.feed.revision - 1 if replica.feed.revision else 0)
    run = await replica.launch(step("a"))
    await caught_up(replica)
    cursor = {
        "other epoch": cursors.encode("elsewhere", replica.feed.revision),
        "future": cursors.encode(replica.store.epoch, replica.feed.revision + 1000),
        "too old": old,
    }[foreign]
    if foreign == "too old":
        replica.feed._start = replica.feed.revision
    one = Watch(replica.hub.watch_run("default", run, cursor))
    many = Watch(replica.hub.watch_runs(ALL, cursor))
    for watch in (one, many):
        await watch.begun()
        assert watch.kinds == ["reset", "snapshot", "snapshot_end"]
        await watch.stop()


async def test_history_is_bounded_and_says_so(replica: Replica) -> None:
    await replica.launch(step("a"))
    watch = await Watch(replica.hub.watch_runs(ALL)).begun()
    await watch.stop()
    cursor = watch.cursor
    for _ in range(10):
        await replica.launch(step("a"))
    await caught_up(replica)
    within = Watch(replica.hub.watch_runs(ALL, cursor))
    await until(lambda: len(within.changes) == 10)
    await within.stop()
    replica.feed._history = type(replica.feed._history)(replica.feed._history, maxlen=5)
    beyond = await Watch(replica.hub.watch_runs(ALL, cursor)).begun()
    assert beyond.kinds[0] == "reset"
    assert len(beyond.messages[1].snapshot.runs) == 11
    await beyond.stop()


async def test_many_runs_and_filters(replica: Replica) -> None:
    first = await replica.launch(step("a"))
    everything = await Watch(replica.hub.watch_runs(ALL)).begun()
    running = await Watch(replica.hub.watch_runs(RunFilter("default", states={RUN_RUNNING}))).begun()
    nothing = [
        await Watch(replica.hub.watch_runs(each)).begun()
        for each in (
            RunFilter("other"),
            RunFilter("default", pipeline="other"),
            RunFilter("default", definition="other"),
            RunFilter("default", resource="other"),
            RunFilter("default", labels={"k": "v"}),
        )
    ]
    second = await replica.launch(step("a"))
    await finish(replica, first)
    await until(lambda: len(everything.changes) == 2 and len(running.changes) == 2)
    assert [run.id for run in everything.messages[0].snapshot.runs] == [first]
    # A run that leaves the filter by its state is shown a last time.
    assert [(change.run.id, change.run.state) for change in running.changes] == [
        (second, RUN_RUNNING),
        (first, RUN_CANCELLED),
    ]
    await replica.runs.delete("default", first)
    await until(lambda: "deleted" in everything.kinds)
    assert everything.messages[-1].deleted.runs[0].id == first
    await finish(replica, second)
    await until(lambda: len(running.changes) == 3)
    assert "deleted" not in running.kinds
    assert {tuple(watch.kinds) for watch in nothing} == {("snapshot_end",)}
    for watch in (everything, running, *nothing):
        await watch.stop()


async def test_a_run_that_is_deleted_ends_its_watch(replica: Replica) -> None:
    run = await replica.launch(step("a"))
    stream = replica.hub.watch_run("default", run)
    assert kind(await anext(stream)) == "snapshot"
    await finish(replica, run)
    await replica.runs.delete("default", run)
    rest = [kind(message) async for message in stream]
    assert rest == ["snapshot_end", "changes"]
    assert replica.hub.subscribers == 0


async def test_changes_of_a_run_that_is_gone_do_not_end_the_watches_of_others(replica: Replica) -> None:
    stream = replica.hub.watch_runs(ALL)
    assert kind(await anext(stream)) == "snapshot_end"
    run = await replica.launch(step("a"))
    await finish(replica, run)
    await replica.runs.delete("default", run)
    other = await replica.launch(step("a"))
    shown: list[str] = []
    while other not in shown:
        message = await asyncio.wait_for(anext(stream), 10)
        shown += [change.run.id for change in message.changes.changes]
    assert shown[0] == run
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_record_that_cannot_be_read_ends_no_watch(replica: Replica) -> None:
    bad, good = await replica.launch(step("a")), await replica.launch(step("a"))
    watch = await Watch(replica.hub.watch_runs(ALL)).begun()
    await replica.store.commit((), [Put(keys.head("default", bad), b"\xff\xff")])
    snapshot = await Watch(replica.hub.watch_runs(ALL)).begun()
    assert [run.id for run in snapshot.messages[0].snapshot.runs] == [good]
    await finish(replica, good)
    await until(lambda: watch.changes)
    assert watch.changes[0].run.id == good
    assert replica.ended_tasks == []
    await watch.stop()
    await snapshot.stop()


async def test_a_slow_reader_gets_the_newest_state_and_how_much_it_missed(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "KEEPS_UP", 2)
    stream = replica.hub.watch_runs(ALL)
    assert kind(await anext(stream)) == "snapshot_end"
    run = await replica.launch(*(step(f"s{i}", driver="d") for i in range(10)))
    worker = await Worker(replica, "d").connect()
    await replica.ended(run)
    await caught_up(replica)
    changes = []
    while not changes or changes[-1].run.state != RUN_SUCCEEDED:
        changes += (await asyncio.wait_for(anext(stream), 10)).changes.changes
    assert [change.skipped for change in changes[:2]] == [0, 0]
    assert len(changes) == 3
    assert changes[2].skipped >= 5
    assert {each.step for each in changes[2].steps} >= {f"s{i}" for i in range(3, 10)}
    await stream.aclose()  # type: ignore[attr-defined]
    await worker.cut()


async def test_a_reader_that_is_hopelessly_behind_begins_anew(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "KEEPS_UP", 2)
    monkeypatch.setattr(subscriptions, "MAX_RUNS_BEHIND", 5)
    stream = replica.hub.watch_runs(ALL)
    assert kind(await anext(stream)) == "snapshot_end"
    runs = [await replica.launch(step("a")) for _ in range(20)]
    await caught_up(replica)
    await until(lambda: replica.feed.since(0))
    assert kind(await asyncio.wait_for(anext(stream), 10)) == "reset"
    message = await asyncio.wait_for(anext(stream), 10)
    assert [run.id for run in message.snapshot.runs] == runs
    await stream.aclose()  # type: ignore[attr-defined]


async def test_nothing_older_than_the_snapshot_is_shown_after_it(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is slow, so that changes from before the snapshot are merged with some from after it."""
    monkeypatch.setattr(subscriptions, "KEEPS_UP", 0)
    run = await replica.launch(step("a"), step("b"))
    plain = replica.runs.active_at
    held = asyncio.Event()

    async def slow() -> tuple[list[tuple[str, str]], int]:
        found = await plain()
        await held.wait()
        return found

    monkeypatch.setattr(replica.runs, "active_at", slow)
    stream = replica.hub.watch_runs(ALL)
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: replica.hub.subscribers)
    worker = await Worker(replica, "a").connect()
    await replica.in_state(run, "b", QUEUED)
    await caught_up(replica)
    held.set()
    message = await first
    assert list(message.snapshot.runs[0].step_states) == [run_pb2.STEP_STATE_SUCCEEDED, QUEUED]
    other = await replica.launch(step("c"))
    shown: list[str] = []
    while other not in shown:
        message = await asyncio.wait_for(anext(stream), 10)
        shown += [change.run.id for change in message.changes.changes]
    assert run not in shown
    await stream.aclose()  # type: ignore[attr-defined]
    await worker.cut()


async def test_nothing_older_than_the_snapshot_is_shown_to_who_resumes(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is newer than the feed, and the stream breaks right behind it: its reader has to begin anew."""
    run = await replica.launch(step("a"), step("b"))
    plain = replica.runs.active_at
    held = asyncio.Event()

    async def slow() -> tuple[list[tuple[str, str]], int]:
        found = await plain()
        await held.wait()
        return found

    monkeypatch.setattr(replica.runs, "active_at", slow)
    stream = replica.hub.watch_runs(ALL)
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: replica.hub.subscribers)
    worker = await Worker(replica, "a").connect()
    await replica.in_state(run, "b", QUEUED)
    await caught_up(replica)
    held.set()
    (shown,) = (await first).snapshot.runs
    end = await anext(stream)
    assert (kind(end), end.cursor) == ("snapshot_end", "")
    await replica.launch(step("c"))
    cursor = ""
    while not cursor:
        cursor = (await asyncio.wait_for(anext(stream), 10)).cursor
    await stream.aclose()  # type: ignore[attr-defined]
    resumed = Watch(replica.hub.watch_runs(ALL, cursor))
    await finish(replica, run)
    await until(lambda: any(change.run.id == run for change in resumed.changes))
    assert all(int(change.run.etag, 16) > int(shown.etag, 16) for change in resumed.changes if change.run.id == run)
    await resumed.stop()
    await worker.cut()


async def test_nothing_is_shown_of_runs_that_had_ended_when_the_snapshot_was_made(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed lags: it has yet to tell of changes that were over before the reader came."""
    waiting: list[Any] = []
    take = replica.feed._take
    monkeypatch.setattr(replica.feed, "_take", waiting.append)
    run = await replica.launch(step("a"))
    await finish(replica, run)
    watch = await Watch(replica.hub.watch_runs(ALL)).begun()
    cursor = watch.cursor
    resumed = Watch(replica.hub.watch_runs(ALL, cursor))
    other = await replica.launch(step("b"))
    await until(lambda: len(waiting) >= 3)
    monkeypatch.setattr(replica.feed, "_take", take)
    for item in waiting:
        take(item)
    for each in (watch, resumed):
        await until(lambda each=each: each.changes)
        assert [change.run.id for change in each.changes] == [other]
        await each.stop()
    assert "reset" not in resumed.kinds


async def test_a_reset_of_the_store_begins_anew(replica: Replica) -> None:
    run = await replica.launch(step("a"))
    one = await Watch(replica.hub.watch_run("default", run)).begun()
    many = await Watch(replica.hub.watch_runs(ALL)).begun()
    await caught_up(replica)
    replica.feed._take(Reset(replica.feed.revision))
    for watch in (one, many):
        await until(lambda watch=watch: watch.kinds.count("snapshot_end") == 2)
        assert watch.kinds == ["snapshot", "snapshot_end", "reset", "snapshot", "snapshot_end"]
    await finish(replica, run)
    await asyncio.wait_for(one.task, 10)
    assert one.changes[-1].run.state == RUN_CANCELLED
    await many.stop()


async def test_heartbeats_carry_a_position(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "HEARTBEAT", 0.02)
    run = await replica.launch(step("a"))
    elsewhere = Watch(replica.hub.watch_runs(RunFilter("other")))
    one = Watch(replica.hub.watch_run("default", run))
    for watch in (elsewhere, one):
        await until(lambda watch=watch: "heartbeat" in watch.kinds)
    await replica.launch(step("a"))
    await caught_up(replica)
    # What was of no interest needs not be gone through again.
    await until(lambda: cursors.parse(elsewhere.cursor)[1] == replica.feed.revision)
    await elsewhere.stop()
    await one.stop()


async def test_the_end_of_the_server_ends_all_watches(replica: Replica) -> None:
    run = await replica.launch(step("a"))
    watches = [
        await Watch(replica.hub.watch_run("default", run)).begun(),
        await Watch(replica.hub.watch_runs(ALL)).begun(),
    ]
    replica.hub.close()
    for watch in watches:
        await asyncio.wait_for(watch.task, 10)
    assert all(isinstance(watch.error, errors.ShuttingDown) for watch in watches)


async def test_thousand_subscribers_see_the_end_of_a_run(replica: Replica) -> None:
    run = await replica.launch(step("a"))
    watches = [Watch(replica.hub.watch_run("default", run)) for _ in range(1000)]
    for watch in watches:
        await watch.begun()
    await finish(replica, run)
    for watch in watches:
        await asyncio.wait_for(watch.task, 30)
        assert [change.run.state for change in watch.changes] == [RUN_CANCELLED]
    assert replica.hub.subscribers == 0


async def test_nothing_is_left_of_subscribers_that_came_and_went(replica: Replica) -> None:
    run = await replica.launch(step("a"))

    async def visit() -> None:
        watches = [
            await Watch(replica.hub.watch_run("default", run)).begun(),
            await Watch(replica.hub.watch_runs(ALL)).begun(),
        ]
        for watch in watches:
            await watch.stop()

    def subscriptions_in_memory() -> int:
        gc.collect()
        return sum(isinstance(each, subscriptions.Subscription) for each in gc.get_objects())

    await visit()
    tasks, before = len(asyncio.all_tasks()), subscriptions_in_memory()
    for _ in range(50):
        await visit()
    assert replica.hub.subscribers == 0
    assert not replica.feed._followers
    assert not replica.feed._run_followers
    assert len(asyncio.all_tasks()) == tasks
    assert subscriptions_in_memory() <= before

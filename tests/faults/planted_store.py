"""Deliberate bugs in what is stored and shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

from conveyor.core import errors
from conveyor.core.model import Decision
from conveyor.logs.store import LogStore
from conveyor.state import keys, lanes, requests, runs
from conveyor.store import etcd_watch
from conveyor.store.port import Change, Changes, Put, Reset, StoreError
from conveyor.v1 import log_pb2
from conveyor.watch import hub
from conveyor.watch.feed import RunDelta, RunKey, run_of
from conveyor.watch.subscription import Subscription
from tests.faults.plant import plant, put

# What is stored


@plant("request ids are not stored", 2, faults=("kill-grpc",))
def request_ids_forgotten() -> None:
    async def none(*_: object) -> requests.Slip | None:
        return None

    put(requests.Requests, "slip", none)


@plant(
    "a store that is away is taken for one without the run",
    8,
    store="etcd",
    faults=("kill-etcd", "freeze-etcd"),
    rate=30,
)
def away_is_not_found() -> None:
    head, load = runs.Runs.head, runs.Runs.load

    def blind(read: Callable[..., Any]) -> Callable[..., Any]:
        async def reading(self: runs.Runs, namespace: str, run_id: str) -> Any:
            try:
                return await read(self, namespace, run_id)
            except StoreError as error:
                raise errors.NotFound(f"there is no run {run_id}") from error

        return reading

    put(runs.Runs, "head", blind(head))
    put(runs.Runs, "load", blind(load))


@plant("a transition is stored whatever another server has stored since", 3, 4, 5, 7, store="etcd", servers=3)
def no_guard_on_the_head() -> None:
    async def commit(
        self: runs.Runs, run: runs.StoredRun, decision: Decision, lane: lanes.Change | None = None
    ) -> runs.StoredRun:
        puts: list[Put] = runs._changes(decision)
        head = decision.state.head
        deletes = [keys.active(head.namespace, head.id)] if decision.state.terminal else []
        if lane is not None:
            puts.extend(lane.puts)
            deletes.extend(lane.deletes)
        return run.moved(decision.state, await self._store.commit((), puts, deletes))

    put(runs.Runs, "commit", commit)


# What is seen


@plant("a watch that resumes skips a revision", 7, store="etcd", faults=("kill-etcd",))
def watch_skips_a_revision() -> None:
    needed = etcd_watch.Watch._reset_needed

    async def ahead(self: etcd_watch.Watch, compacted: bool = False) -> Reset | None:
        reset = await needed(self, compacted)
        if reset is None and self._backoff > etcd_watch._FIRST_BACKOFF_S:
            self._position += 1
        return reset

    put(etcd_watch.Watch, "_reset_needed", ahead)


@plant("a watch goes on in the middle of a revision", 7, store="etcd", faults=("kill-etcd", "cut-store"))
def watch_resumes_in_a_revision() -> None:
    follow = etcd_watch.Watch._follow

    async def torn(self: etcd_watch.Watch) -> AsyncGenerator[Changes | Reset, None]:
        async with contextlib.aclosing(follow(self)) as followed:
            ahead = asyncio.ensure_future(anext(followed))
            try:
                while True:
                    item = await ahead
                    ahead = asyncio.ensure_future(anext(followed))
                    if isinstance(item, Changes) and (rest := _of_other_runs(item)):
                        yield Changes(item.revision, tuple(each for each in item.changes if each not in rest))
                        # As a later fragment: when the stream breaks before it, the next one begins behind it.
                        await asyncio.wait([ahead], timeout=0.1)
                        if ahead.done() and ahead.exception() is not None:
                            continue
                        item = Changes(item.revision, rest)
                    yield item
            finally:
                ahead.cancel()
                await asyncio.wait([ahead])

    put(etcd_watch.Watch, "_follow", torn)


def _of_other_runs(changes: Changes) -> tuple[Change, ...]:
    """All that is not of the run that comes first."""
    first = run_of(changes.changes[0].key) if changes.changes else None
    return tuple(change for change in changes.changes if run_of(change.key) != first)


@plant("a watcher is subscribed only after its snapshot was read", 7)
def snapshot_before_subscription() -> None:
    @contextlib.contextmanager
    def late(self: hub.Hub, wanted: Callable[[RunDelta], bool], run: RunKey | None = None) -> Iterator[Subscription]:
        subscription = Subscription(wanted)
        take = subscription.take
        following = asyncio.get_running_loop().call_later(0.1, self._feed.follow, take, run)
        self._open.add(subscription)
        try:
            yield subscription
        finally:
            following.cancel()
            self._open.discard(subscription)
            self._feed.leave(take, run)

    put(hub.Hub, "_subscribed", late)


@plant("a watcher that has left is still there", 9, faults=("kill-grpc-driver",))
def watchers_stay() -> None:
    subscribed = hub.Hub._subscribed

    @contextlib.contextmanager
    def leaking(self: hub.Hub, wanted: Callable[[RunDelta], bool], run: RunKey | None = None) -> Iterator[Subscription]:
        with subscribed(self, wanted, run) as subscription:
            yield subscription
        self._open.add(subscription)

    put(hub.Hub, "_subscribed", leaking)


@plant("log lines are acked before they are stored", 7, rate=30)
def log_ack_before_store() -> None:
    append = LogStore.append

    async def soon(self: LogStore, namespace: str, lines: Sequence[log_pb2.LogLine], driver: str) -> None:
        await asyncio.sleep(0.5)
        await append(self, namespace, lines, driver)

    async def hasty(
        self: LogStore, namespace: str, lines: Sequence[log_pb2.LogLine], driver: str, *, timeout: float = 5.0
    ) -> list[log_pb2.LogAck]:
        task = asyncio.ensure_future(soon(self, namespace, lines, driver))
        _storing.add(task)
        task.add_done_callback(_storing.discard)
        last = {(line.run, line.step, line.attempt): line.seq for line in lines}
        return [
            log_pb2.LogAck(run=run, step=step, attempt=attempt, next_seq=seq + 1)
            for (run, step, attempt), seq in last.items()
        ]

    put(LogStore, "append", hasty)


_storing: set[asyncio.Future[None]] = set()

"""Deliberate bugs: each a small patch of the server, and the invariants that must notice it.

A fault suite that finds nothing may just be blind. `hunt.py` plays rounds with one of these in the servers until the
checks find it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conveyor.bus.events import InboxEvent
from conveyor.core import errors, rules, settle, transitions
from conveyor.core.draft import Draft
from conveyor.core.model import CancelRequested, Decision, ResultReceived, RunState, WorkerLost, inheritable
from conveyor.core.results import on_result
from conveyor.engine import inbox, sweep
from conveyor.engine.loop import Engine
from conveyor.gateway import sessions, stream
from conveyor.logs.store import LogStore
from conveyor.state import admission, keys, lanes, requests, runs, starts
from conveyor.storage.v1 import storage_pb2
from conveyor.store import etcd_watch
from conveyor.store.port import Put, Reset, StoreError
from conveyor.v1 import log_pb2, result_pb2, run_pb2
from conveyor.watch import hub
from conveyor.watch.feed import RunDelta, RunKey
from conveyor.watch.subscription import Subscription


@dataclass(frozen=True, slots=True)
class Plant:
    """One bug."""

    name: str
    breaks: str
    """What it does wrong, in a line."""
    invariants: frozenset[int]
    """Those of the design that are to notice it; any of them will do."""
    patch: Callable[[], None]
    store: str
    """Where it shows: sqlite or etcd."""
    servers: int
    faults: tuple[str, ...]
    """What brings it out: names of faults, or how they begin."""


PLANTED: dict[str, Plant] = {}


def _plant(
    breaks: str, *invariants: int, store: str = "sqlite", servers: int = 1, faults: tuple[str, ...] = ("kill-server",)
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(patch: Callable[[], None]) -> Callable[[], None]:
        name = patch.__name__.replace("_", "-")
        PLANTED[name] = Plant(name, breaks, frozenset(invariants), patch, store, servers, faults)
        return patch

    return add


def _handle(event: type, handler: Callable[..., Decision]) -> None:
    transitions._HANDLERS[event] = handler


def _assign(target: object, name: str, value: object) -> None:
    """What the patches do, past the type checker: they put something else where a function was."""
    assert hasattr(target, name), f"there is no {name} any more"
    setattr(target, name, value)


# Results


@_plant("a gRPC result is acked, and its commit follows", 1, 4)
def ack_before_commit() -> None:
    answer = stream.answer

    async def soon(engine: Engine, namespace: str, report: result_pb2.ResultReport, driver: str) -> None:
        await asyncio.sleep(0.1)
        await answer(engine, namespace, report, driver)

    async def hasty(
        engine: Engine, namespace: str, report: result_pb2.ResultReport, driver: str
    ) -> result_pb2.ResultAck:
        engine.spawn(soon(engine, namespace, report, driver))
        return result_pb2.ResultAck(
            run=report.run,
            step=report.step,
            attempt=report.attempt,
            disposition=result_pb2.DISPOSITION_ACCEPTED,
        )

    _assign(stream, "answer", hasty)


@_plant("a JetStream result is acknowledged to the broker, and its commit follows", 1, 3, 6)
def inbox_ack_before_commit() -> None:
    handle = inbox.Inbox._handle

    async def soon(self: inbox.Inbox, event: InboxEvent) -> None:
        await asyncio.sleep(0.1)
        await handle(self, event)

    async def hasty(self: inbox.Inbox, event: InboxEvent) -> None:
        self._engine.spawn(soon(self, event))

    _assign(inbox.Inbox, "_handle", hasty)


@_plant(
    "a result counts whatever its attempt and token", 3, 4, faults=("kill-jetstream", "freeze-grpc", "freeze-jetstream")
)
def no_token_check() -> None:
    def lax(state: RunState, event: ResultReceived, now: int, jitter: float) -> Decision:
        record = state.steps[state.plan.index[event.step]] if event.step in state.plan.index else None
        if record is not None and record.token:
            event = replace(event, attempt=record.attempt, token=record.token)
        return on_result(state, event, now, jitter)

    _handle(ResultReceived, lax)


@_plant("a result that was there already counts again", 4, faults=("failpoint-gateway", "kill-server"))
def duplicate_counts() -> None:
    def again(state: RunState, event: ResultReceived, now: int, jitter: float) -> Decision:
        decision = on_result(state, event, now, jitter)
        if decision.disposition == result_pb2.DISPOSITION_DUPLICATE:
            return replace(decision, disposition=result_pb2.DISPOSITION_ACCEPTED)
        return decision

    _handle(ResultReceived, again)


@_plant("a late result changes a run that has ended", 5, faults=("freeze-",))
def ends_change() -> None:
    def late(state: RunState, event: ResultReceived, now: int, jitter: float) -> Decision:
        index = state.plan.index.get(event.step, -1)
        record = state.steps[index] if index >= 0 else None
        if not state.terminal or record is None or record.state != run_pb2.STEP_STATE_CANCELLED:
            return on_result(state, event, now, jitter)
        draft = Draft(state, now, jitter)
        draft.set_state(index, run_pb2.STEP_STATE_SUCCEEDED)
        return draft.decide(result_pb2.DISPOSITION_ACCEPTED)

    _handle(ResultReceived, late)


# The order of steps


@_plant("a step is dispatched when one of its needs has not ended", 3)
def dispatch_before_all_needs() -> None:
    def hasty(draft: Draft) -> None:
        draft.candidates = [
            i
            for i in range(draft.plan.main)
            if draft.states[i] == run_pb2.STEP_STATE_PENDING and draft.open_needs[i] <= 1
        ]

    _assign(transitions, "find_candidates", hasty)


@_plant("a failed need counts as a success", 3)
def failed_needs_count() -> None:
    judge = rules.judge

    def blind(plan: Any, states: bytes | bytearray, index: int) -> run_pb2.StepReason.ValueType:
        good, bad = run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_STATE_FAILED
        return judge(plan, bytes(good if state == bad else state for state in states), index)

    _assign(settle, "judge", blind)


@_plant("finally steps do not run in a run that was cancelled", 3)
def no_finally_after_cancel() -> None:
    settle_finally = settle._settle_finally_steps

    def skip(draft: Draft) -> None:
        if not draft.head.outcome:
            settle_finally(draft)
            return
        for index in range(draft.plan.main, len(draft.plan.steps)):
            if draft.states[index] == run_pb2.STEP_STATE_PENDING:
                draft.finish(index, run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_RUN_CANCELLED)

    _assign(settle, "_settle_finally_steps", skip)


@_plant("runs of a resource that should queue go side by side", 3)
def lanes_are_free() -> None:
    async def none(*_: object) -> lanes.Lane | None:
        return None

    _assign(admission.Admission, "_lane", none)


@_plant("a retry takes over steps that failed", 3)
def retry_inherits_failures() -> None:
    def generous(state: RunState) -> list[storage_pb2.StepRecord]:
        kept = list(inheritable(state))
        for record in state.steps[: state.plan.main]:
            if record is not None and record.state == run_pb2.STEP_STATE_FAILED:
                copy = storage_pb2.StepRecord()
                copy.CopyFrom(record)
                copy.inherited = True
                kept.append(copy)
        return kept

    _assign(starts, "inheritable", generous)


# Requests


@_plant("request ids are not stored", 2)
def request_ids_forgotten() -> None:
    async def none(*_: object) -> requests.Slip | None:
        return None

    _assign(requests.Requests, "slip", none)


@_plant("a cancel is answered with OK and does nothing", 8)
def cancel_does_nothing() -> None:
    def deaf(state: RunState, event: CancelRequested, now: int, jitter: float) -> Decision:
        return Decision(state)

    _handle(CancelRequested, deaf)


@_plant("a store that is away is taken for one without the run", 8, store="etcd", faults=("kill-etcd", "freeze-etcd"))
def away_is_not_found() -> None:
    head, load = runs.Runs.head, runs.Runs.load

    def blind(read: Callable[..., Any]) -> Callable[..., Any]:
        async def reading(self: runs.Runs, namespace: str, run_id: str) -> Any:
            try:
                return await read(self, namespace, run_id)
            except StoreError as error:
                raise errors.NotFound(f"there is no run {run_id}") from error

        return reading

    _assign(runs.Runs, "head", blind(head))
    _assign(runs.Runs, "load", blind(load))


# Commits


@_plant("a commit of which nobody knows is taken for stored", 1, 3, 4, 6, store="etcd", faults=("kill-etcd",))
def uncertain_is_stored() -> None:
    async def trusting(self: Engine, run: runs.StoredRun, decision: Decision, *, patient: bool) -> runs.StoredRun:
        return run.moved(decision.state, run.revision)

    _assign(Engine, "_look_for", trusting)


@_plant("a transition is stored whatever another server has stored since", 3, 4, 5, 7, store="etcd", servers=3)
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

    _assign(runs.Runs, "commit", commit)


# What is repaired


@_plant("nothing sweeps", 6)
def no_sweep() -> None:
    async def nothing(self: sweep.Sweep) -> None:
        pass

    _assign(sweep.Sweep, "once", nothing)


@_plant("the steps of a lost worker are not given to another", 3, 6, faults=("kill-grpc-driver",))
def lost_worker_keeps_its_steps() -> None:
    def deaf(state: RunState, event: WorkerLost, now: int, jitter: float) -> Decision:
        return Decision(state)

    _handle(WorkerLost, deaf)


@_plant("a worker that is silent for its TTL is not lost", 3, 6, 9, faults=("kill-grpc-driver",))
def sessions_never_end() -> None:
    async def keep(self: sessions.Sessions, session: sessions.Session) -> None:
        pass

    _assign(sessions.Sessions, "_lose", keep)


# What is seen


@_plant("a watch that resumes skips a revision", 7, store="etcd", faults=("kill-etcd",))
def watch_skips_a_revision() -> None:
    needed = etcd_watch.Watch._reset_needed

    async def ahead(self: etcd_watch.Watch, compacted: bool = False) -> Reset | None:
        reset = await needed(self, compacted)
        if reset is None and self._backoff > etcd_watch._FIRST_BACKOFF_S:
            self._position += 1
        return reset

    _assign(etcd_watch.Watch, "_reset_needed", ahead)


@_plant("a watcher is subscribed only after its snapshot was read", 7)
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

    _assign(hub.Hub, "_subscribed", late)


@_plant("a watcher that has left is still there", 9, faults=("kill-grpc-driver",))
def watchers_stay() -> None:
    subscribed = hub.Hub._subscribed

    @contextlib.contextmanager
    def leaking(self: hub.Hub, wanted: Callable[[RunDelta], bool], run: RunKey | None = None) -> Iterator[Subscription]:
        with subscribed(self, wanted, run) as subscription:
            yield subscription
        self._open.add(subscription)

    _assign(hub.Hub, "_subscribed", leaking)


@_plant("log lines are acked before they are stored", 7)
def log_ack_before_store() -> None:
    append = LogStore.append

    async def soon(self: LogStore, namespace: str, lines: Sequence[log_pb2.LogLine], driver: str) -> None:
        await asyncio.sleep(0.3)
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

    _assign(LogStore, "append", hasty)


_storing: set[asyncio.Future[None]] = set()

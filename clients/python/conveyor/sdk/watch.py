"""Follows runs: merges what the server sends into whole runs, and closes the gaps that a lost connection leaves."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from conveyor.sdk.connection import Connection
from conveyor.sdk.errors import ApiError, NotFound
from conveyor.sdk.resume import Patience, resumed
from conveyor.v1.run_pb2 import Run, RunChange, RunState, RunView, StepRun
from conveyor.v1.run_service_pb2 import (
    GetRunRequest,
    WatchRunRequest,
    WatchRunResponse,
    WatchRunsRequest,
    WatchRunsResponse,
)
from conveyor.v1.run_service_pb2_grpc import RunServiceStub

TERMINAL = frozenset({RunState.RUN_STATE_SUCCEEDED, RunState.RUN_STATE_FAILED, RunState.RUN_STATE_CANCELLED})

# The server says something every 15 s.
_SILENCE = 50.0


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """A run after a change."""

    run: Run
    """The run. In `watch` with all its steps and snapshots, in `watch_all` without them."""
    changed: tuple[StepRun, ...] = ()
    """The steps that changed; at first all that there are."""
    skipped: int = 0
    """So many changes before this one were left out, because the reader was slow; this is the newest state."""
    reset: bool = False
    """Changes before this one may be missing, because the server no longer had them; this is the newest state."""
    deleted: bool = False
    """The run was deleted; this is how it was. Only in `watch_all`."""


async def watch_run(
    connection: Connection, namespace: str, run_id: str, give_up_after: float | None
) -> AsyncGenerator[RunUpdate, None]:
    """One run as it is, then after each change, its terminal state last."""
    cursor = ""
    reset = False
    known: Run | None = None

    def start() -> grpc.aio.UnaryStreamCall[WatchRunRequest, WatchRunResponse]:
        nonlocal reset
        # Without a cursor the server begins anew, and what happened meanwhile is not told.
        reset = not cursor and known is not None
        request = WatchRunRequest(namespace=namespace, id=run_id, cursor=cursor)
        return connection.stub(RunServiceStub).WatchRun(request)

    # A stream that ends before the run does, e.g. with its server, is opened again.
    while known is None or known.state not in TERMINAL:
        messages = resumed(connection, start, give_up_after=give_up_after, silence=_SILENCE)
        async with aclosing(messages):
            async for message in messages:
                event = message.WhichOneof("event")
                if event == "snapshot":
                    for run in message.snapshot.runs:
                        update = _replaced(known, run, reset)
                        known, reset = run, False
                        if update is not None:
                            yield update
                elif event == "changes":
                    for change in message.changes.changes:
                        update = _merged(known, change)
                        known = update.run
                        yield update
                elif event == "deleted":
                    raise NotFound(f"run {run_id} was deleted", reason="NOT_FOUND")
                elif event == "reset":
                    reset, cursor = known is not None, ""
                cursor = message.cursor or cursor


async def watch_runs(
    connection: Connection, request: WatchRunsRequest, give_up_after: float | None
) -> AsyncGenerator[RunUpdate, None]:
    """The matching unfinished runs as they are, then each after each change, without end."""
    # What is unfinished as far as we know: what a later snapshot leaves out has ended meanwhile.
    unfinished: dict[str, Run] = {}
    before_reset: dict[str, Run] = {}

    def start() -> grpc.aio.UnaryStreamCall[WatchRunsRequest, WatchRunsResponse]:
        if not request.cursor:
            forget()
        return connection.stub(RunServiceStub).WatchRuns(request)

    def forget() -> None:
        before_reset.update(unfinished)
        unfinished.clear()

    while True:
        messages = resumed(connection, start, give_up_after=give_up_after, silence=_SILENCE)
        async with aclosing(messages):
            async for message in messages:
                event = message.WhichOneof("event")
                if event == "snapshot":
                    for run in message.snapshot.runs:
                        old = before_reset.pop(run.id, None) or unfinished.get(run.id)
                        unfinished[run.id] = run
                        if old is None or old.etag != run.etag:
                            yield RunUpdate(run, reset=old is not None)
                elif event == "snapshot_end":
                    for old in before_reset.values():
                        yield await _missed(connection, request.namespace, old, give_up_after)
                    before_reset.clear()
                elif event == "changes":
                    for change in message.changes.changes:
                        if change.run.state in TERMINAL:
                            unfinished.pop(change.run.id, None)
                        else:
                            unfinished[change.run.id] = change.run
                        yield RunUpdate(change.run, tuple(change.steps), change.skipped)
                elif event == "deleted":
                    for run in message.deleted.runs:
                        unfinished.pop(run.id, None)
                        yield RunUpdate(run, deleted=True)
                elif event == "reset":
                    forget()
                    request.cursor = ""
                request.cursor = message.cursor or request.cursor


def _replaced(known: Run | None, run: Run, reset: bool) -> RunUpdate | None:
    """The update for a snapshot. None when it says nothing new."""
    if known is None:
        return RunUpdate(run, tuple(run.steps))
    if known.etag == run.etag:
        return None
    before = {step.step: step for step in known.steps}
    changed = tuple(step for step in run.steps if before.get(step.step) != step)
    return RunUpdate(run, changed, reset=reset)


def _merged(known: Run | None, change: RunChange) -> RunUpdate:
    """The update for a change: what it leaves out of the run stays as it was."""
    run = Run()
    run.CopyFrom(change.run)
    changed = {step.step: step for step in change.steps}
    if known is None:
        run.steps.extend(change.steps)
        return RunUpdate(run, tuple(run.steps), change.skipped)
    for step in known.steps:
        run.steps.append(changed.pop(step.step, step))
    run.steps.extend(changed.values())
    for field in ("pipeline_snapshot", "resource_snapshot", "params"):
        if known.HasField(field):
            getattr(run, field).CopyFrom(getattr(known, field))
    seen = {step.step for step in change.steps}
    # Every step has its state in the run itself, also those that have not started and hence are not sent.
    for step, state in zip(run.steps, run.step_states, strict=False):
        if step.state != state:
            step.state = state
            seen.add(step.step)
    return RunUpdate(run, tuple(step for step in run.steps if step.step in seen), change.skipped)


async def _missed(connection: Connection, namespace: str, old: Run, give_up_after: float | None) -> RunUpdate:
    """How a run ended that was unfinished and that a new snapshot leaves out."""
    request = GetRunRequest(namespace=namespace, id=old.id, view=RunView.RUN_VIEW_BASIC)
    patience = Patience(give_up_after)
    while True:
        try:
            answer = await connection.call(lambda: connection.stub(RunServiceStub).GetRun, request)
        except NotFound:
            return RunUpdate(old, deleted=True, reset=True)
        except ApiError as failure:
            await patience.wait(failure)
        else:
            return RunUpdate(answer.run, reset=True)

# Derived from conveyor/sdk/watch.py by `make gen`; change that.
"""Follows runs: merges what the server sends into whole runs, and closes the gaps that a lost connection leaves."""

from collections.abc import Generator
from contextlib import closing

from conveyor.sdk.answers import RunUpdate
from conveyor.sdk.errors import ApiError, NotFound
from conveyor.sdk.merging import TERMINAL, merged, replaced
from conveyor.sdk.sync import calls
from conveyor.sdk.sync.connection import Connection
from conveyor.sdk.sync.resume import Patience, resumed
from conveyor.v1.run_pb2 import Run, RunView
from conveyor.v1.run_service_pb2 import (
    GetRunRequest,
    WatchRunRequest,
    WatchRunResponse,
    WatchRunsRequest,
    WatchRunsResponse,
)
from conveyor.v1.run_service_pb2_grpc import RunServiceStub

# The server says something every 15 s.
_SILENCE = 50.0


def watch_run(
    connection: Connection,
    namespace: str,
    run_id: str,
    give_up_after: float | None,
    deadline: float | None = None,
) -> Generator[RunUpdate, None, None]:
    """One run as it is, then after each change, its terminal state last. DeadlineExceeded at the `deadline`."""
    cursor = ""
    reset = False
    known: Run | None = None

    def start(timeout: float | None) -> calls.Messages[WatchRunResponse]:
        nonlocal reset
        # Without a cursor the server begins anew, and what happened meanwhile is not told.
        reset = not cursor and known is not None
        request = WatchRunRequest(namespace=namespace, id=run_id, cursor=cursor)
        return connection.stub(RunServiceStub).WatchRun(request, timeout=timeout)

    # A stream that ends before the run does, e.g. with its server, is opened again.
    while known is None or known.state not in TERMINAL:
        messages = resumed(connection, start, give_up_after=give_up_after, silence=_SILENCE, deadline=deadline)
        with closing(messages):
            for message in messages:
                event = message.WhichOneof("event")
                if event == "snapshot":
                    for run in message.snapshot.runs:
                        update = replaced(known, run, reset)
                        known, reset = run, False
                        if update is not None:
                            yield update
                elif event == "changes":
                    for change in message.changes.changes:
                        update = merged(known, change)
                        known = update.run
                        yield update
                elif event == "deleted":
                    raise NotFound(f"run {run_id} was deleted", reason="NOT_FOUND")
                elif event == "reset":
                    reset, cursor = known is not None, ""
                cursor = message.cursor or cursor


def watch_runs(
    connection: Connection, request: WatchRunsRequest, give_up_after: float | None
) -> Generator[RunUpdate, None, None]:
    """The matching unfinished runs as they are, then each after each change, without end."""
    # What is unfinished as far as we know: what a later snapshot leaves out has ended meanwhile.
    unfinished: dict[str, Run] = {}
    before_reset: dict[str, Run] = {}

    def start(timeout: float | None) -> calls.Messages[WatchRunsResponse]:
        if not request.cursor:
            forget()
        return connection.stub(RunServiceStub).WatchRuns(request, timeout=timeout)

    def forget() -> None:
        before_reset.update(unfinished)
        unfinished.clear()

    while True:
        messages = resumed(connection, start, give_up_after=give_up_after, silence=_SILENCE)
        with closing(messages):
            for message in messages:
                event = message.WhichOneof("event")
                if event == "snapshot":
                    for run in message.snapshot.runs:
                        old = before_reset.pop(run.id, None) or unfinished.get(run.id)
                        unfinished[run.id] = run
                        if old is None or old.etag != run.etag:
                            yield RunUpdate(run, reset=old is not None)
                elif event == "snapshot_end":
                    for old in before_reset.values():
                        yield _missed(connection, request.namespace, old, give_up_after)
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


def _missed(connection: Connection, namespace: str, old: Run, give_up_after: float | None) -> RunUpdate:
    """How a run ended that was unfinished and that a new snapshot leaves out."""
    request = GetRunRequest(namespace=namespace, id=old.id, view=RunView.RUN_VIEW_BASIC)
    patience = Patience(give_up_after)
    while True:
        try:
            answer = connection.call(lambda: connection.stub(RunServiceStub).GetRun, request)
        except NotFound:
            return RunUpdate(old, deleted=True, reset=True)
        except ApiError as failure:
            patience.wait(failure)
        else:
            return RunUpdate(answer.run, reset=True)

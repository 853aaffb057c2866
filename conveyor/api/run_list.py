"""Lists of runs: newest first, filtered while they are read, bounded in bytes and in work."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.api.paging import PageRequest
from conveyor.core import errors, limits
from conveyor.state import keys
from conveyor.state.ids import created_at, first_id_at
from conveyor.state.runs import Runs
from conveyor.state.views import basic_run, full_run
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2, run_service_pb2

MOST_SCANNED = 2000
"""Heads that are read for one page, at most."""

_CHUNK = 250

_CLOCKS_APART = 3600 * 1_000_000
"""Microseconds by which a run may seem to be older than the one that it retries or is within: another server's."""


async def list_runs(
    runs: Runs, request: run_service_pb2.ListRunsRequest, namespace: str, page: PageRequest
) -> tuple[list[run_pb2.Run], str]:
    """The page, and the id of the run to go on after ("" at the end). A page may be short and yet not the last."""
    wanted = _filter(request)
    prefix = await _index(runs, request, namespace)
    earliest = micros(request.create_time_from) if request.HasField("create_time_from") else 0
    oldest = first_id_at(earliest)
    elder = request.parent_run or request.caller_run
    if elder:
        oldest = max(oldest, first_id_at(max(0, created_at(elder) - _CLOCKS_APART)))
    after = page.after or _start(request)
    # With a filter most of what is read may be passed over: read on in large steps.
    filtered = request.states or request.labels or request.definition or elder
    found: list[run_pb2.Run] = []
    size = scanned = 0
    while True:
        chunk = _CHUNK if filtered and not request.resource else min(_CHUNK, page.size - len(found))
        ids, more = await runs.page(prefix, after, chunk)
        for run_id, head in zip(ids, await runs.heads(namespace, ids), strict=True):
            if run_id < oldest:
                return found, ""
            if head is not None and wanted(head[0]):
                run = await _view(runs, request.view, namespace, *head)
                size += run.ByteSize() if run is not None else 0
                if found and size > limits.PAGE_BYTES:
                    return found, after
                found += [run] if run is not None else []
            after = run_id
            if len(found) == page.size:
                break
        scanned += len(ids)
        if len(found) == page.size:
            last = not more and bool(ids) and after == ids[-1]
            return found, "" if last else after
        if not more:
            return found, ""
        if scanned >= MOST_SCANNED:
            return found, after


async def _view(
    runs: Runs, view: run_pb2.RunView.ValueType, namespace: str, head: storage_pb2.RunHead, revision: int
) -> run_pb2.Run | None:
    if view != run_pb2.RUN_VIEW_FULL:
        return basic_run(head, revision)
    try:
        run = await runs.load(namespace, head.id)
    except errors.NotFound:
        return None  # deleted since
    return full_run(run.head, run.revision, run.spec, run.state.steps)


async def _index(runs: Runs, request: run_service_pb2.ListRunsRequest, namespace: str) -> str:
    """The narrowest index that has all runs that are wanted."""
    if request.schedule:
        return keys.index_schedule(namespace, request.schedule)
    if request.resource:
        return keys.index_resource(namespace, request.definition, request.resource)
    if request.caller_run:
        caller = (await runs.heads(namespace, [request.caller_run]))[0]
        within = keys.index_within(namespace, (caller[0].root_run if caller is not None else "") or request.caller_run)
        # One that is deleted may have been within another, which nobody knows any more.
        if caller is not None or (await runs.page(within, "", 1))[0]:
            return within
    if request.parent_run:
        parent = (await runs.heads(namespace, [request.parent_run]))[0]
        if parent is not None:
            # Those that retry it are of the same resource.
            return keys.index_resource(namespace, parent[0].definition, parent[0].resource)
    if request.pipeline:
        return keys.index_pipeline(namespace, request.pipeline)
    return keys.index_runs(namespace)


def _start(request: run_service_pb2.ListRunsRequest) -> str:
    """An id that all runs created too late are not below."""
    if not request.HasField("create_time_before"):
        return ""
    return first_id_at(max(0, micros(request.create_time_before)) + 1000)


def _filter(request: run_service_pb2.ListRunsRequest) -> Callable[[storage_pb2.RunHead], bool]:
    states, labels = frozenset(request.states), dict(request.labels)
    earliest = micros(request.create_time_from) if request.HasField("create_time_from") else None
    latest = micros(request.create_time_before) if request.HasField("create_time_before") else None

    def wanted(head: storage_pb2.RunHead) -> bool:
        return (
            (not states or head.state in states)
            and (not request.pipeline or head.pipeline == request.pipeline)
            and (not request.definition or head.definition == request.definition)
            and (not request.resource or head.resource == request.resource)
            and (not request.schedule or head.schedule == request.schedule)
            and (not request.parent_run or head.parent_run == request.parent_run)
            and (not request.caller_run or head.caller_run == request.caller_run)
            and (earliest is None or head.create_time >= earliest)
            and (latest is None or head.create_time < latest)
            and all(head.labels.get(key) == value for key, value in labels.items())
        )

    return wanted


def micros(time: Timestamp) -> int:
    """Microseconds since 1970, rounded up, so that a bound means the same to stored times."""
    return time.seconds * 1_000_000 + -(-time.nanos // 1000)

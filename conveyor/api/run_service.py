"""RunService."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import structlog

from conveyor.api.decisions import Decisions, finished
from conveyor.api.lock_list import list_locks
from conveyor.api.object_calls import request_slip
from conveyor.api.paging import open_page
from conveyor.api.ports import Engine, Hub, Logs, Waits, closing
from conveyor.api.run_list import list_runs
from conveyor.api.validation import validate
from conveyor.core import errors, limits
from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND, micros
from conveyor.logs.errors import LogsUnavailable
from conveyor.state.repositories import Repositories
from conveyor.state.views import basic_run, etag, full_run
from conveyor.store.port import Conflict
from conveyor.v1 import run_pb2, run_service_pb2_grpc
from conveyor.v1 import run_service_pb2 as pb
from conveyor.watch.hub import RunFilter

DEFAULT_GRACE = 30 * SECOND
"""Microseconds that workers of a cancelled run have to confirm."""

_DELETE_TRIES = 5

_SPARE_BYTES = 64 << 10
"""Room in a message for what is around a run."""

log = structlog.get_logger("conveyor.api")


class RunServicer(run_service_pb2_grpc.RunServiceServicer):
    """Starts, shows, watches and ends runs. Each method does what the comment of its rpc says."""

    def __init__(self, repositories: Repositories, engine: Engine, hub: Hub, logs: Logs, waits: Waits) -> None:
        self._repositories = repositories
        self._runs = repositories.runs
        self._engine = engine
        self._hub = hub
        self._logs = logs
        self._waits = waits
        self._decisions = Decisions(repositories, engine)

    async def StartRun(self, request: pb.StartRunRequest, context: Any) -> pb.StartRunResponse:
        request.namespace = namespace = await validate(request)
        run = await self._repositories.starts.start(
            namespace,
            request.definition,
            request.resource,
            pipeline=request.pipeline,
            params=request.params if request.HasField("params") else None,
            labels=request.labels,
            slip=await request_slip(self._repositories, namespace, request),
            validate_only=request.validate_only,
        )
        return pb.StartRunResponse(run=run)

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        namespace = await validate(request)
        if request.view == run_pb2.RUN_VIEW_BASIC:
            return pb.GetRunResponse(run=basic_run(*await self._runs.head(namespace, request.id)))
        stored = await self._runs.load(namespace, request.id)
        run = full_run(stored.head, stored.revision, stored.spec, stored.state.steps)
        await self._waits.explain(stored, run)
        if run.ByteSize() > limits.MESSAGE_BYTES - _SPARE_BYTES:
            # What steps came to matters more than what they wait for.
            for step in run.steps:
                step.ClearField("wait")
        return pb.GetRunResponse(run=run)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        namespace = await validate(request)
        page = open_page(request, namespace)
        runs, after = await list_runs(self._runs, request, namespace, page)
        return pb.ListRunsResponse(runs=runs, next_page_token=page.token(after))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncGenerator[pb.WatchRunResponse, None]:
        namespace = await validate(request)
        async with closing(self._hub.watch_run(namespace, request.id, request.cursor)) as responses:
            async for response in responses:
                yield response

    async def WatchRuns(self, request: pb.WatchRunsRequest, context: Any) -> AsyncGenerator[pb.WatchRunsResponse, None]:
        wanted = RunFilter(
            await validate(request),
            request.pipeline,
            request.definition,
            request.resource,
            frozenset(request.states),
            dict(request.labels),
        )
        async with closing(self._hub.watch_runs(wanted, request.cursor)) as responses:
            async for response in responses:
                yield response

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.CancelRunResponse:
        request.namespace = namespace = await validate(request)
        repeated = await self._remember_cancel(namespace, request)
        grace = micros(request.grace) if request.HasField("grace") else DEFAULT_GRACE
        event = CancelRequested(request.message, grace, request.force)
        decision, run = await self._engine.request(namespace, request.id, event)
        # One that was noted before may have ended by itself before anything came of that.
        carried_out = decision.dirty or (repeated and run.head.cancel_deadline)
        if run.state.terminal and not carried_out:
            raise finished(run)
        return pb.CancelRunResponse(run=basic_run(run.head, run.revision))

    async def RetryRun(self, request: pb.RetryRunRequest, context: Any) -> pb.RetryRunResponse:
        request.namespace = namespace = await validate(request)
        slip = await request_slip(self._repositories, namespace, request)
        run = await self._repositories.starts.retry(namespace, request.id, labels=request.labels, slip=slip)
        return pb.RetryRunResponse(run=run)

    async def DecideStep(self, request: pb.DecideStepRequest, context: Any) -> pb.DecideStepResponse:
        request.namespace = namespace = await validate(request)
        slip = await request_slip(self._repositories, namespace, request)
        return pb.DecideStepResponse(step=await self._decisions.decide(namespace, request, slip))

    async def ListLocks(self, request: pb.ListLocksRequest, context: Any) -> pb.ListLocksResponse:
        namespace = await validate(request)
        page = open_page(request, namespace)
        locks, after = await list_locks(self._runs.locks, namespace, request.key, page)
        return pb.ListLocksResponse(locks=locks, next_page_token=page.token(after))

    async def DeleteRun(self, request: pb.DeleteRunRequest, context: Any) -> pb.DeleteRunResponse:
        namespace = await validate(request)
        for _ in range(_DELETE_TRIES):
            head, revision = await self._runs.head(namespace, request.id)
            if request.etag and request.etag != etag(revision):
                raise errors.EtagMismatch(f"run {request.id} has changed since")
            try:
                await self._runs.delete(namespace, request.id, revision if request.etag else 0)
            except Conflict:
                continue  # a late result was written into its history
            try:
                await self._logs.purge(namespace, request.id)
            except LogsUnavailable as error:
                # Nobody can ask for them any more, and the log stream has bounds of its own.
                log.warning("logs_not_purged", run_id=request.id, error=str(error))
            return pb.DeleteRunResponse(run=basic_run(head, revision))
        raise errors.Contention

    async def _remember_cancel(self, namespace: str, request: pb.CancelRunRequest) -> bool:
        """Note the request before it takes effect; whether it was noted before.

        Cancelling again does no harm. So a request that was noted, but maybe not carried out, is simply carried out
        again, and finding the run cancelled is then no error.
        """
        slip = await request_slip(self._repositories, namespace, request)
        if slip is None:
            return False
        if await self._repositories.requests.find(slip) is not None:
            return True
        run = await self._engine.run(namespace, request.id)
        if run.state.terminal:
            raise finished(run)
        return not await self._repositories.requests.note(slip, run=request.id)

"""Runs: start, look at, follow, end."""

import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from conveyor.sdk.answers import RunUpdate
from conveyor.sdk.connection import Connection
from conveyor.sdk.errors import DeadlineExceeded, WaitTimeout
from conveyor.sdk.merging import TERMINAL
from conveyor.sdk.requests import new_request_id
from conveyor.sdk.values import to_struct
from conveyor.sdk.watch import watch_run, watch_runs
from conveyor.v1.pipeline_pb2 import Decision
from conveyor.v1.run_pb2 import Run, RunState, RunView, StepRun
from conveyor.v1.run_service_pb2 import (
    CancelRunRequest,
    DecideStepRequest,
    DeleteRunRequest,
    GetRunRequest,
    HeldLock,
    ListLocksRequest,
    ListRunsRequest,
    RetryRunRequest,
    StartRunRequest,
    WatchRunsRequest,
)
from conveyor.v1.run_service_pb2_grpc import RunServiceStub

if TYPE_CHECKING:
    from conveyor.v1.run_service_pb2_grpc import RunServiceAsyncStub


class Runs:
    """The Runs of a namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    @property
    def _stub(self) -> "RunServiceAsyncStub":
        return self._connection.stub(RunServiceStub)

    async def start(
        self,
        definition: str,
        resource: str,
        pipeline: str = "",
        params: Mapping[str, object] | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        request_id: str = "",
        validate_only: bool = False,
    ) -> Run:
        """Start a run of a resource on its pipeline, or on another one.

        `request_id` defaults to a new UUID; give the same one again to repeat a call whose answer was lost: it starts
        one run only. `validate_only` checks everything and stores nothing.
        """
        request = StartRunRequest(
            namespace=self._namespace,
            definition=definition,
            resource=resource,
            pipeline=pipeline,
            params=None if params is None else to_struct(params),
            labels=labels or {},
            request_id=request_id or new_request_id(),
            validate_only=validate_only,
        )
        return (await self._connection.call(lambda: self._stub.StartRun, request)).run

    async def get(self, run_id: str, view: RunView.ValueType = RunView.RUN_VIEW_FULL) -> Run:
        """The run. NotFound when there is none."""
        request = GetRunRequest(namespace=self._namespace, id=run_id, view=view)
        return (await self._connection.call(lambda: self._stub.GetRun, request)).run

    async def list(
        self,
        *,
        pipeline: str = "",
        definition: str = "",
        resource: str = "",
        states: Iterable[RunState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        parent_run: str = "",
        caller_run: str = "",
        schedule: str = "",
        view: RunView.ValueType = RunView.RUN_VIEW_BASIC,
        page_size: int = 0,
    ) -> AsyncGenerator[Run, None]:
        """All that match, newest first, page after page.

        `resource` needs `definition`; `parent_run` was retried; steps of `caller_run`, or `schedule`, started them.
        """
        request = ListRunsRequest(
            namespace=self._namespace,
            pipeline=pipeline,
            definition=definition,
            resource=resource,
            states=states,
            labels=labels or {},
            parent_run=parent_run,
            caller_run=caller_run,
            schedule=schedule,
            view=view,
            page_size=page_size,
        )
        if created_from is not None:
            request.create_time_from.FromDatetime(created_from)
        if created_before is not None:
            request.create_time_before.FromDatetime(created_before)
        while True:
            answer = await self._connection.call(lambda: self._stub.ListRuns, request)
            for run in answer.runs:
                yield run
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    def children(self, run_id: str) -> AsyncGenerator[Run, None]:
        """The runs that steps of a run started, newest first: one for each attempt of a step that runs a pipeline."""
        return self.list(caller_run=run_id)

    def watch(self, run_id: str, *, give_up_after: float | None = None) -> AsyncGenerator[RunUpdate, None]:
        """The run as it is, then after each change; ends after its terminal state.

        Goes on by itself after the connection was lost. NotFound when there is no such run, or when it is deleted;
        ConnectionGivenUp when no server could be reached for `give_up_after` seconds (None: never give up).
        """
        return watch_run(self._connection, self._namespace, run_id, give_up_after)

    def watch_all(
        self,
        *,
        pipeline: str = "",
        definition: str = "",
        resource: str = "",
        states: Iterable[RunState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        give_up_after: float | None = None,
    ) -> AsyncGenerator[RunUpdate, None]:
        """The matching unfinished runs as they are, then each after each change, without end.

        Goes on by itself after the connection was lost; the end of a run that was seen is never missed.
        """
        request = WatchRunsRequest(
            namespace=self._namespace,
            pipeline=pipeline,
            definition=definition,
            resource=resource,
            states=states,
            labels=labels or {},
        )
        return watch_runs(self._connection, request, give_up_after)

    async def wait(self, run_id: str, timeout: float | None = None, *, give_up_after: float | None = None) -> Run:
        """The run as it ended. WaitTimeout when it has not ended after `timeout` seconds (None: no limit)."""
        state = "unknown"
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            async with aclosing(
                watch_run(self._connection, self._namespace, run_id, give_up_after, deadline)
            ) as updates:
                async for update in updates:
                    if update.run.state in TERMINAL:
                        return update.run
                    state = RunState.Name(update.run.state).removeprefix("RUN_STATE_")
        except DeadlineExceeded:
            raise WaitTimeout(f"run {run_id} has not ended within {timeout:g} s; its state is {state}") from None
        raise AssertionError("a watch ends with a terminal state")

    async def locks(self, key: str = "", *, page_size: int = 0) -> AsyncGenerator[HeldLock, None]:
        """The locks that runs and steps hold, in the order of their keys, or only the one of a key; page after page."""
        request = ListLocksRequest(namespace=self._namespace, key=key, page_size=page_size)
        while True:
            answer = await self._connection.call(lambda: self._stub.ListLocks, request)
            for lock in answer.locks:
                yield lock
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def cancel(
        self,
        run_id: str,
        message: str = "",
        force: bool = False,
        grace: float | timedelta | None = None,
        *,
        request_id: str = "",
    ) -> Run:
        """Cancel a run: what waits ends at once, what runs is told to stop.

        The server waits `grace` (seconds; None: 30 s) for the workers to confirm, with `force` not at all.
        FailedPrecondition when the run has ended.
        """
        request = CancelRunRequest(
            namespace=self._namespace,
            id=run_id,
            message=message,
            force=force,
            request_id=request_id or new_request_id(),
        )
        if grace is not None:
            request.grace.FromTimedelta(grace if isinstance(grace, timedelta) else timedelta(seconds=grace))
        return (await self._connection.call(lambda: self._stub.CancelRun, request)).run

    async def retry(self, run_id: str, labels: Mapping[str, str] | None = None, *, request_id: str = "") -> Run:
        """Start a new run that takes over what succeeded and runs the other steps again.

        FailedPrecondition when the run has not ended, or succeeded.
        """
        request = RetryRunRequest(
            namespace=self._namespace, id=run_id, labels=labels or {}, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(lambda: self._stub.RetryRun, request)).run

    async def approve(self, run_id: str, step: str, by: str, comment: str = "", *, request_id: str = "") -> StepRun:
        """Approve a gate that waits, in the name of `by`; the gate as it is afterwards.

        Approving again in the same name changes nothing. FailedPrecondition when the gate does not wait, or `by` has
        rejected it.
        """
        approved = Decision.DECISION_APPROVED
        return await self.decide(run_id, step, approved, by, comment, request_id=request_id)

    async def reject(self, run_id: str, step: str, by: str, comment: str = "", *, request_id: str = "") -> StepRun:
        """Reject a gate that waits, in the name of `by`: its step fails. Otherwise as `approve`."""
        rejected = Decision.DECISION_REJECTED
        return await self.decide(run_id, step, rejected, by, comment, request_id=request_id)

    async def decide(
        self,
        run_id: str,
        step: str,
        decision: Decision.ValueType,
        by: str,
        comment: str = "",
        *,
        request_id: str = "",
    ) -> StepRun:
        """Approve or reject a gate; see there."""
        request = DecideStepRequest(
            namespace=self._namespace,
            id=run_id,
            step=step,
            decision=decision,
            by=by,
            comment=comment,
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(lambda: self._stub.DecideStep, request)).step

    async def delete(self, run_id: str, etag: str = "") -> Run:
        """Delete a finished run with its logs, and return it as it was. FailedPrecondition when it has not ended."""
        request = DeleteRunRequest(namespace=self._namespace, id=run_id, etag=etag)
        return (await self._connection.call(lambda: self._stub.DeleteRun, request)).run

"""A watch of all runs without the SDK's help: it also writes down when the server has it begin anew."""

from __future__ import annotations

import asyncio

import grpc

from conveyor.sdk.connection import Connection
from conveyor.v1.run_pb2 import Run, RunChange
from conveyor.v1.run_service_pb2 import WatchRunsRequest, WatchRunsResponse
from conveyor.v1.run_service_pb2_grpc import RunServiceStub
from tests.faults.history import Recorder, seen, step_state

_SILENCE = 25.0
"""Seconds; the server says something every 15 s."""


class RawWatcher:
    """Follows WatchRuns by cursor, from server to server, until it is cancelled."""

    def __init__(self, name: str, addresses: str, namespace: str, recorder: Recorder) -> None:
        self.known: dict[str, str] = {}
        """The last etag of each run, since it last had to begin anew."""
        self._name = name
        self._recorder = recorder
        self._connection = Connection(addresses)
        self._request = WatchRunsRequest(namespace=namespace)

    async def run(self) -> None:
        """Watch."""
        try:
            while True:
                address = self._connection.address
                try:
                    await self._follow()
                except (grpc.aio.AioRpcError, TimeoutError):
                    self._connection.failed(address)
                await asyncio.sleep(0.1)
        finally:
            await self._connection.close()

    async def _follow(self) -> None:
        if not self._request.cursor:
            self._begin_anew()
        call = self._connection.stub(RunServiceStub).WatchRuns(self._request)
        try:
            while True:
                async with asyncio.timeout(_SILENCE):
                    message = await call.read()
                if not isinstance(message, WatchRunsResponse):
                    return
                self._take(message)
                self._request.cursor = message.cursor or self._request.cursor
        finally:
            call.cancel()

    def _begin_anew(self) -> None:
        self._request.cursor = ""
        self.known.clear()
        self._recorder.note("anew", watcher=self._name)

    def _take(self, message: WatchRunsResponse) -> None:
        for run in message.snapshot.runs:
            # Whatever happened to it before is not told.
            self._saw(run, reset=True)
        for change in message.changes.changes:
            self._saw(change.run, change)
        for run in message.deleted.runs:
            self._saw(run, deleted=True)
        if message.HasField("reset"):
            self._begin_anew()

    def _saw(self, run: Run, change: RunChange | None = None, *, reset: bool = False, deleted: bool = False) -> None:
        steps = change.steps if change is not None else []
        self.known[run.id] = run.etag
        self._recorder.note(
            "saw",
            watcher=self._name,
            **seen(run),
            changed={step.step: step_state(step.state) for step in steps},
            skipped=change.skipped if change is not None else 0,
            reset=reset,
            deleted=deleted,
        )

"""What the servicers need of the parts below."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar, cast

from conveyor.core.events import Event
from conveyor.core.model import Decision
from conveyor.state.runs import StoredRun
from conveyor.v1 import driver_pb2, log_pb2, run_pb2, run_service_pb2
from conveyor.watch.hub import RunFilter

T = TypeVar("T")


class Engine(Protocol):
    """Moves runs on."""

    async def request(self, namespace: str, run_id: str, event: Event) -> tuple[Decision, StoredRun]:
        """Apply an event; the decision, and the run after it. Raises errors.NotFound and the store's errors."""
        ...

    async def run(self, namespace: str, run_id: str) -> StoredRun:
        """The run, from memory when this process has it in hand. Raises errors.NotFound."""
        ...


class Hub(Protocol):
    """Watches runs."""

    def watch_run(
        self, namespace: str, run_id: str, cursor: str = ""
    ) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
        """One run, until it has ended. Raises errors.NotFound, errors.InvalidCursor."""
        ...

    def watch_runs(self, wanted: RunFilter, cursor: str = "") -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        """All matching runs, without end. Raises errors.InvalidCursor."""
        ...


class Logs(Protocol):
    """Keeps log lines. See `conveyor.logs.store.LogStore`."""

    async def append(self, namespace: str, lines: Sequence[log_pb2.LogLine], driver: str) -> list[log_pb2.LogAck]:
        """Store lines of one driver; how far those of each attempt are stored. Raises LogsUnavailable."""
        ...

    def read(
        self,
        namespace: str,
        run: str,
        *,
        step: str = "",
        attempt: int = 0,
        driver: str = "",
        cursor: str = "",
        tail: int = 0,
    ) -> AsyncGenerator[list[log_pb2.LogLine], None]:
        """The lines that are stored. Raises BadCursor, LogsUnavailable."""
        ...

    def follow(
        self,
        namespace: str,
        run: str,
        finished: asyncio.Event,
        *,
        step: str = "",
        attempt: int = 0,
        driver: str = "",
        cursor: str = "",
        tail: int = 0,
    ) -> AsyncGenerator[list[log_pb2.LogLine], None]:
        """As `read`, then every new line, until `finished` is set and all that is stored was given."""
        ...

    async def purge(self, namespace: str, run: str) -> None:
        """Delete all lines of a run. Raises LogsUnavailable."""
        ...


class Drivers(Protocol):
    """Knows the drivers."""

    async def get(self, namespace: str, name: str) -> driver_pb2.Driver:
        """One driver. Raises errors.NotFound."""
        ...

    async def list(self, namespace: str, after: str, limit: int) -> tuple[Sequence[driver_pb2.Driver], bool]:
        """Drivers in the order of their names, after a name, and whether more follow."""
        ...

    async def delete(self, namespace: str, name: str) -> driver_pb2.Driver:
        """Forget a driver. Raises errors.NotFound, errors.InUse."""
        ...


class Waits(Protocol):
    """Knows what runs and steps wait for."""

    async def explain(self, run: StoredRun, shown: run_pb2.Run) -> None:
        """Add to the full view of a run, and to each of its steps, what it waits for. Raises the store's errors."""
        ...


def closing(stream: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """A context that ends the stream, so that what stands behind it is freed at once and not by the collector."""
    return aclosing(cast(AsyncGenerator[T, None], stream))

"""The log lines of all runs, on the stream `logs`."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence

import structlog

from conveyor.bus import subjects
from conveyor.bus.errors import BusError
from conveyor.bus.nats import Bus
from conveyor.logs.errors import LogsUnavailable
from conveyor.logs.reader import Query, read
from conveyor.logs.writer import StepWriter
from conveyor.v1 import log_pb2

_log = structlog.get_logger("conveyor.logs")

APPEND_S = 5.0
"""How long lines wait for a broker that is away."""
_MAX_WRITERS = 4_096
"""Steps whose progress is remembered; that of others is read again."""
_MAX_INFLIGHT = 64
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_MAX_MISSING = 10_000
MARK_AFTER_S = 60.0
"""Lines that a writer has not sent again so long after the broker came back are marked as lost."""

_StepKey = tuple[str, str, str]


class LogStore:
    """Appends and reads lines. Lines of one attempt keep their order; each is stored once, however often it is sent."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._writers: OrderedDict[_StepKey, StepWriter] = OrderedDict()
        self._inflight = asyncio.Semaphore(_MAX_INFLIGHT)
        self._waiting_bytes = 0
        self._missing: OrderedDict[tuple[_StepKey, int], tuple[int, str]] = OrderedDict()
        self._marking: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        bus.on_available(self._available)

    async def append(
        self, namespace: str, lines: Sequence[log_pb2.LogLine], driver: str, *, timeout: float = APPEND_S
    ) -> list[log_pb2.LogAck]:
        """Stores the lines and returns how far those of each attempt are stored now.

        Lines that are stored already are ignored. What comes after a gap is not stored: the ack says which line is
        wanted next. A writer that no longer has it sends its next line with `lost` set, or, having none, an empty line
        with the number of the last lost one and `lost` set. Lines without a number get the next one.

        Raises LogsUnavailable when the broker stays away for `timeout` seconds. The writer keeps its lines and sends
        them again; should it never do that, a mark takes their place.
        """
        steps: dict[_StepKey, list[log_pb2.LogLine]] = {}
        size = 0
        for line in lines:
            steps.setdefault((namespace or subjects.DEFAULT_NAMESPACE, line.run, line.step), []).append(line)
            size += len(line.text)
        writers = {key: self._writer(key) for key in steps}
        try:
            async with asyncio.timeout(timeout):
                await self._wait_for_room(size)
                try:
                    await asyncio.gather(*(writers[key].append(own, driver) for key, own in steps.items()))
                finally:
                    self._waiting_bytes -= size
                    self._room.set()
        except TimeoutError:
            for key, own in steps.items():
                self._miss(key, own, driver)
            reason = next((writer.reason for writer in writers.values() if writer.reason), "the broker is away")
            raise LogsUnavailable(reason) from None
        return [
            log_pb2.LogAck(run=key[1], step=key[2], attempt=attempt, next_seq=writers[key].next_seq(attempt))
            for key, own in steps.items()
            for attempt in dict.fromkeys(line.attempt for line in own)
        ]

    def read(
        self,
        namespace: str,
        run: str,
        *,
        step: str = "",
        instances: bool = False,
        attempt: int = 0,
        driver: str = "",
        cursor: str = "",
        tail: int = 0,
    ) -> AsyncGenerator[list[log_pb2.LogLine], None]:
        """The lines that are stored, in stream order, in lists of up to about a MiB.

        With `step` only those of this step, and lines of older drivers, which name no step, when they are from
        `driver`; with `instances` also those of the instances of its matrix. `cursor` is that of the last line that was
        seen; with `tail` only the last so many lines come. A line with `lost` set stands where lines are missing: its
        number is that of the last missing one.
        Raises BadCursor, and LogsUnavailable when the broker stays away for five seconds.
        """
        return read(self._bus, Query(namespace, run, step, instances, attempt, driver, cursor, tail), None)

    def follow(
        self,
        namespace: str,
        run: str,
        finished: asyncio.Event,
        *,
        step: str = "",
        instances: bool = False,
        attempt: int = 0,
        driver: str = "",
        cursor: str = "",
        tail: int = 0,
    ) -> AsyncGenerator[list[log_pb2.LogLine], None]:
        """As `read`, then every new line as it comes, until `finished` is set and all that is stored was given.

        Waits for a broker that is away for as long as it takes.
        """
        return read(self._bus, Query(namespace, run, step, instances, attempt, driver, cursor, tail), finished)

    async def purge(self, namespace: str, run: str) -> None:
        """Deletes all lines of the run. Raises LogsUnavailable."""
        try:
            await self._bus.purge_logs(namespace, run)
        except BusError as error:
            raise LogsUnavailable(str(error)) from error

    async def close(self) -> None:
        """Gives up what is not stored yet."""
        if self._marking is not None:
            self._marking.cancel()
            await asyncio.wait({self._marking})
        await asyncio.gather(*(writer.close() for writer in self._writers.values()))

    def _writer(self, key: _StepKey) -> StepWriter:
        writer = self._writers.get(key)
        if writer is None:
            writer = self._writers[key] = StepWriter(self._bus, self._inflight, *key)
            self._shrink()
        else:
            self._writers.move_to_end(key)
        return writer

    def _shrink(self) -> None:
        for key in list(self._writers)[: len(self._writers) - _MAX_WRITERS]:
            if self._writers[key].idle:
                del self._writers[key]

    async def _wait_for_room(self, size: int) -> None:
        """Bounds what waits for a broker that is slow or away."""
        while self._waiting_bytes and self._waiting_bytes + size > _MAX_WAITING_BYTES:
            self._room.clear()
            await self._room.wait()
        self._waiting_bytes += size

    def _miss(self, key: _StepKey, lines: Sequence[log_pb2.LogLine], driver: str) -> None:
        for line in lines:
            if line.seq:
                highest, _ = self._missing.get((key, line.attempt), (0, ""))
                self._missing[key, line.attempt] = (max(highest, line.seq), driver)
        while len(self._missing) > _MAX_MISSING:
            self._missing.popitem(last=False)

    def _available(self, available: bool) -> None:
        if available and self._missing and self._marking is None:
            self._marking = asyncio.get_running_loop().create_task(self._mark_missing())

    async def _mark_missing(self) -> None:
        try:
            await asyncio.sleep(MARK_AFTER_S)
            while self._missing:
                (key, attempt), (seq, driver) = self._missing.popitem(last=False)
                mark = log_pb2.LogLine(run=key[1], step=key[2], attempt=attempt, seq=seq, lost=1)
                try:
                    await self.append(key[0], [mark], driver)
                except LogsUnavailable:
                    return
        finally:
            self._marking = None

"""Stores the lines of one step: in order, once, many in one message."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from conveyor.bus.errors import BusError, TooLarge, WrongSequence
from conveyor.bus.loglines import MAX_BODY_BYTES, StoredLine, decode_lines, encode_line, join
from conveyor.bus.nats import Bus
from conveyor.bus.subjects import logs
from conveyor.logs.attempts import Attempts
from conveyor.v1 import log_pb2

_log = structlog.get_logger("conveyor.logs")

_MERGED_LINES = 5_000
"""Lines of several calls that are stored together."""
_PUBLISH_S = 5.0
_RETRY_S = 0.1


@dataclass(slots=True, eq=False)
class _Call:
    """Lines that somebody waits for."""

    lines: Sequence[log_pb2.LogLine]
    driver: str
    done: asyncio.Future[None]


class StepWriter:
    """The one in this process who writes to the subject of a step.

    Another replica, or the driver itself by JetStream, may write to it too: each batch names the sequence of the one
    before it, so that the broker refuses what was decided on old knowledge.
    """

    def __init__(self, bus: Bus, inflight: asyncio.Semaphore, namespace: str, run: str, step: str) -> None:
        self._bus = bus
        self._inflight = inflight
        self._where = (namespace, run, step)
        self._last = 0
        self._known = False
        """Whether the progress is that of the subject; until then it is that of a new one."""
        self._attempts = Attempts()
        self._calls: deque[_Call] = deque()
        self._task: asyncio.Task[None] | None = None
        self.reason = ""
        """Why the last try did not succeed."""

    @property
    def idle(self) -> bool:
        return self._task is None and not self._calls

    def next_seq(self, attempt: int) -> int:
        return self._attempts.next_seq(attempt)

    async def append(self, lines: Sequence[log_pb2.LogLine], driver: str) -> None:
        """Returns when the lines are stored as far as there is no gap; keeps trying until cancelled."""
        call = _Call(lines, driver, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        try:
            await call.done
        except asyncio.CancelledError:
            if call in self._calls:
                self._calls.remove(call)
            self._owe(lines)
            raise

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _owe(self, lines: Sequence[log_pb2.LogLine]) -> None:
        """Lines without a number cannot be sent again; the next ones tell how many were lost."""
        for line in lines:
            if not line.seq:
                self._attempts.owe(line.attempt, 1)

    async def _work(self) -> None:
        try:
            while self._calls:
                calls = self._next_calls()
                try:
                    await self._store(calls)
                except BusError as error:
                    self.reason = str(error)
                    await asyncio.sleep(_RETRY_S)
                    continue
                for call in calls:
                    if call in self._calls:
                        self._calls.remove(call)
                    if not call.done.done():
                        call.done.set_result(None)
        finally:
            self._task = None

    def _next_calls(self) -> list[_Call]:
        calls: list[_Call] = []
        size = 0
        for call in self._calls:
            size += len(call.lines)
            if calls and size > _MERGED_LINES:
                break
            calls.append(call)
        return calls

    async def _store(self, calls: Sequence[_Call]) -> None:
        while True:
            if not self._known and any(line.seq != 1 for call in calls for line in call.lines[:1]):
                await self._load()
            staged = self._attempts.copy()
            lines = [line for call in calls for line in staged.take(call.lines, call.driver)]
            try:
                for batch, encoded in _batches(lines):
                    await self._publish(batch, encoded)
            except WrongSequence:
                # New to this process, written by somebody else, or stored although the answer was lost.
                await self._load()
                continue
            return

    async def _publish(self, batch: Sequence[StoredLine], encoded: Sequence[str]) -> None:
        after = self._attempts.copy()
        for line in batch:
            after.saw(line)
        namespace, run, step = self._where
        async with self._inflight:
            try:
                self._last = await self._bus.append_log(
                    namespace, run, step, join(encoded), expected=self._last, note=after.note(), timeout=_PUBLISH_S
                )
            except TooLarge as error:
                # The broker takes less than a batch of ours: its lines are lost, and that is said.
                _log.error("logs.too_large", run_id=run, step=step, size=error.size, limit=error.limit)
                mark = log_pb2.LogLine()
                mark.CopyFrom(batch[-1].line)
                mark.ClearField("text")
                mark.lost = len(batch)
                self._last = await self._bus.append_log(
                    namespace,
                    run,
                    step,
                    join([encode_line(StoredLine(mark))]),
                    expected=self._last,
                    note=after.note(),
                    timeout=_PUBLISH_S,
                )
        self._attempts = after
        self._known = True

    async def _load(self) -> None:
        """Reads what others have written since the batch that is known."""
        namespace, run, step = self._where
        last, note = await self._bus.last_log(namespace, run, step)
        if note:
            self._attempts.read_note(note)
        elif last > self._last:
            subject = logs(namespace, run, step)
            async with self._bus.read_logs([subject], start=self._last + 1) as reader:
                while True:
                    message = await reader.next()
                    if message is not None:
                        for line in decode_lines(message.subject, message.body):
                            self._attempts.saw(line)
                        last = message.sequence
                    if (message is None or message.pending == 0) and (reader.pending == 0 or await reader.at_end()):
                        break
        self._last = last
        self._known = True


def _batches(lines: Sequence[StoredLine]) -> list[tuple[list[StoredLine], list[str]]]:
    """The lines, and the same encoded, in portions that a message takes."""
    batches: list[tuple[list[StoredLine], list[str]]] = []
    size = MAX_BODY_BYTES
    for line in lines:
        encoded = encode_line(line)
        length = len(encoded.encode()) + 1
        if size + length > MAX_BODY_BYTES:
            batches.append(([], []))
            size = 1
        batches[-1][0].append(line)
        batches[-1][1].append(encoded)
        size += length
    return batches

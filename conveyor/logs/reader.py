"""Reads the lines of a run, those that are there and those that come, and says where some are missing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

import structlog

from conveyor.bus import subjects
from conveyor.bus.errors import BusError
from conveyor.bus.loglines import StoredLine, decode_lines
from conveyor.bus.nats import Bus
from conveyor.bus.ordered import OrderedReader, StreamMessage
from conveyor.logs.errors import BadCursor, LogsUnavailable
from conveyor.v1 import log_pb2

_log = structlog.get_logger("conveyor.logs")

AWAY_S = 5.0
"""How long a read waits for a broker that is away."""
_RETRY_S = 0.2
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Query:
    """Which lines of which run; see `LogStore.read`."""

    namespace: str
    run: str
    step: str = ""
    instances: bool = False
    attempt: int = 0
    driver: str = ""
    cursor: str = ""
    tail: int = 0

    def filters(self) -> list[str]:
        if not self.step or self.instances:
            return subjects.logs_of_run(self.namespace, self.run)
        wanted = [subjects.logs(self.namespace, self.run, self.step)]
        if self.driver and not self.attempt:
            wanted.append(subjects.logs(self.namespace, self.run))
        return wanted

    def wants(self, line: log_pb2.LogLine) -> bool:
        if self.attempt and line.attempt != self.attempt:
            return False
        if not self.step or line.step == self.step or (not line.step and line.driver == self.driver):
            return True
        return self.instances and line.step.startswith(f"{self.step}[")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position: the stream, the sequence of a message in it, and the index of a line in the message."""

    stream: str
    sequence: int
    index: int

    def __str__(self) -> str:
        return f"{self.stream}-{self.sequence}-{self.index}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises BadCursor."""
        match text.split("-"):
            case [stream, sequence, index] if (
                len(stream) == 8
                and len(sequence) < 20
                and len(index) < 10
                and (sequence + index).isascii()
                and (sequence + index).isdigit()
            ):
                return cls(stream, int(sequence), int(index))
        raise BadCursor(f"{text[:80]!r} is no cursor of a log line")


class Continuity:
    """Finds the lines that are missing, and leaves out those that are there twice."""

    def __init__(self, *, from_start: bool) -> None:
        self._from_start = from_start
        self._seen: dict[tuple[str, int], tuple[int, int]] = {}

    def check(self, stored: StoredLine) -> list[log_pb2.LogLine]:
        """The line, after a mark if some are missing before it; nothing if it was there before."""
        line, part, parts = stored
        if not line.seq:
            return [line]
        key = (line.step, line.attempt)
        seen, seen_part = self._seen.get(key, (0, 0) if self._from_start else (line.seq - 1 - line.lost, 0))
        # Within a line that was split, the next part; otherwise the first part of a later line.
        if line.seq < seen or (line.seq == seen and part <= seen_part):
            return []
        self._seen[key] = (line.seq, part if part + 1 < parts else parts)
        if line.lost:
            line.lost = line.seq - seen
            return [line]
        missing = line.seq - 1 - seen
        if missing <= 0:
            return [line]
        mark = log_pb2.LogLine(
            run=line.run, step=line.step, attempt=line.attempt, seq=line.seq - 1, driver=line.driver, lost=missing
        )
        return [mark, line]


def read(bus: Bus, query: Query, finished: asyncio.Event | None) -> AsyncGenerator[list[log_pb2.LogLine], None]:
    """Reads to the end of what is stored or, with `finished`, on until that is set. Raises BadCursor at once."""
    return _Reading(bus, query, finished).lines()


class _Reading:
    """One reader's way through the stream."""

    def __init__(self, bus: Bus, query: Query, finished: asyncio.Event | None) -> None:
        self._bus = bus
        self._query = query
        self._finished = finished
        self._from = Cursor.parse(query.cursor) if query.cursor else None
        self._continuity = Continuity(from_start=self._from is None)
        self._created = ""
        self._stream = ""
        self._position = query.cursor

    async def lines(self) -> AsyncGenerator[list[log_pb2.LogLine], None]:
        start = self._from.sequence if self._from else 1
        tail: deque[log_pb2.LogLine] | None = deque(maxlen=self._query.tail) if self._query.tail else None
        async with self._bus.read_logs(self._query.filters(), start=start) as reader:
            waker = asyncio.create_task(self._wake(reader))
            try:
                while True:
                    message = await self._next(reader)
                    lines = await self._renewed(reader)
                    if message is not None:
                        lines += self._lines_of(message)
                    at_end = await self._at_end(reader, message)
                    if tail is not None:
                        tail.extend(lines)
                        lines = list(tail) if at_end else []
                        tail = None if at_end else tail
                    for chunk in _chunks(lines):
                        yield chunk
                    if at_end and (self._finished is None or await self._done(reader)):
                        return
            finally:
                waker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waker

    async def _wake(self, reader: OrderedReader) -> None:
        if self._finished is not None:
            await self._finished.wait()
            reader.wake()

    async def _next(self, reader: OrderedReader) -> StreamMessage | None:
        """The next message. Waits for a broker that is away: five seconds, or, following, as long as it takes."""
        loop = asyncio.get_running_loop()
        until = loop.time() + AWAY_S
        while True:
            try:
                if self._finished is not None:
                    return await reader.next()
                # Between two messages time passes that is not the broker's: only its absence counts.
                async with asyncio.timeout(None if self._bus.available else max(0.0, until - loop.time())):
                    return await reader.next()
            except (BusError, TimeoutError) as error:
                if self._finished is None and loop.time() >= until:
                    raise LogsUnavailable(str(self._bus.problem or error) or "the broker is away") from error
                await asyncio.sleep(_RETRY_S)

    async def _renewed(self, reader: OrderedReader) -> list[log_pb2.LogLine]:
        """Notices that the stream is another one than before, or begins later; how many lines that cost is unknown."""
        if reader.created == self._created or not reader.created:
            return []
        before, self._created = self._stream, reader.created
        self._stream = hashlib.sha256(reader.created.encode()).hexdigest()[:8]
        if not before and self._from is not None and self._from.stream != self._stream:
            self._from = None
            await reader.seek(1)
            before = "another"
        elif self._from is not None and self._from.sequence < reader.first:
            # The message of the cursor has been dropped for its age or for room, and maybe others after it.
            self._from = None
            before = "a longer one"
        return [log_pb2.LogLine(run=self._query.run, lost=1, cursor=self._position)] if before else []

    async def _at_end(self, reader: OrderedReader, message: StreamMessage | None) -> bool:
        """Whether all that was stored a moment ago has been read."""
        if message is not None:
            return message.pending == 0
        if reader.pending == 0:
            return True
        with contextlib.suppress(BusError):
            return await reader.at_end()
        return False

    async def _done(self, reader: OrderedReader) -> bool:
        if self._finished is None or not self._finished.is_set():
            return False
        with contextlib.suppress(BusError):
            return await reader.at_end()
        return False

    def _lines_of(self, message: StreamMessage) -> list[log_pb2.LogLine]:
        """The wanted lines of the message that come after the cursor, with marks."""
        start, self._from = self._from, None
        skip = start.index if start is not None and message.sequence == start.sequence else -1
        lines: list[log_pb2.LogLine] = []
        for index, stored in enumerate(decode_lines(message.subject, message.body)):
            if not self._query.wants(stored.line):
                continue
            checked = self._continuity.check(stored)
            if index <= skip:
                continue
            for line in checked:
                if line is stored.line:
                    self._position = f"{self._stream}-{message.sequence}-{index}"
                line.cursor = self._position
            lines += checked
        return lines


def _chunks(lines: Iterable[log_pb2.LogLine]) -> Iterable[list[log_pb2.LogLine]]:
    """Lists that fit into a gRPC message."""
    chunk: list[log_pb2.LogLine] = []
    size = 0
    for line in lines:
        length = 4 * len(line.text) + 200
        if chunk and size + length > _CHUNK_BYTES * 2:
            yield chunk
            chunk, size = [], 0
        chunk.append(line)
        size += length
    if chunk:
        yield chunk

"""Log lines between the jobs that write them and the transport that sends them. Safe for use by several threads."""

import threading
import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain

from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.v1.log_pb2 import LogLine, LogStream

AttemptKey = tuple[str, str, int]
"""Run, step and attempt."""

_LINE_OVERHEAD = 16
_PROBE_BYTES = 64 * 1024


class LogBuffer:
    """The lines of all jobs of a worker, kept until the server says that it has stored them.

    Memory is bounded: a thread that writes into a full buffer waits until there is room. The event loop cannot wait:
    what it writes above four times the bound is left out, and a line in its place says so. The same holds for threads
    while the server takes lines but does not store them, e.g. because its broker is away: jobs go on without logs.
    """

    def __init__(self, loop: AbstractEventLoop, notify: Callable[[], None], bound: int = 16 * 1024 * 1024) -> None:
        """`notify` is called on `loop` when there is something to send; `bound` is in bytes."""
        self.line_bytes = 256 * 1024
        self.patience = 10.0
        self._loop = loop
        self._notify = notify
        self._notified = False
        self._loop_thread = threading.get_ident()
        self._bound = bound
        self._room = threading.Condition()
        self._unsent: deque[LogLine] = deque()
        self._logs: dict[AttemptKey, JobLog] = {}
        self._bytes = 0
        self._sent = 0
        # Since when lines that were sent have not been acked, and whether the server is being asked if it stores again.
        self._waiting_since: float | None = None
        self._probing = False

    @property
    def written(self) -> int:
        """How many lines were ever written: a result goes out when `sent` has reached this."""
        return self._sent + len(self._unsent)

    @property
    def sent(self) -> int:
        """How many lines were handed to the transport."""
        return self._sent

    @property
    def empty(self) -> bool:
        """Whether the server has all lines."""
        return self._bytes == 0

    def open(self, key: AttemptKey) -> "JobLog":
        """The log of an attempt that begins. One that is there under the same key is forgotten."""
        self.discard([key])
        log = JobLog(self, key)
        self._logs[key] = log
        return log

    def take(self, budget: int) -> list[LogLine]:
        """The next lines to send, up to about so many bytes."""
        lines: list[LogLine] = []
        with self._room:
            self._notified = False
            unsent = self._unsent
            if self._probing:
                budget = min(budget, _PROBE_BYTES) if self._waiting_since is None else 0
            while unsent and budget > 0:
                line = unsent.popleft()
                budget -= _size(line)
                lines.append(line)
            self._sent += len(lines)
            if lines and self._waiting_since is None:
                self._waiting_since = self._loop.time()
        return lines

    def ack(self, key: AttemptKey, next_seq: int) -> None:
        """The lines of an attempt below `next_seq` are stored."""
        log = self._logs.get(key)
        if log is None:
            return
        with self._room:
            unacked = log.unacked
            if unacked and unacked[0].seq < next_seq:
                self._waiting_since = self._loop.time()
                if self._probing:
                    self._probing = False
                    self._notify()
            while unacked and unacked[0].seq < next_seq:
                self._bytes -= _size(unacked.popleft())
            if not self._bytes:
                self._waiting_since = None
            if log.closed and not unacked:
                del self._logs[key]
            self._room.notify_all()

    def rewind(self) -> None:
        """Send all that is not acked once more: the connection is a new one."""
        with self._room:
            written = self.written
            self._waiting_since = None
            self._probing = False
            self._unsent = deque(chain.from_iterable(log.unacked for log in self._logs.values()))
            self._sent = written - len(self._unsent)

    def get(self, key: AttemptKey) -> "JobLog | None":
        """The log of an attempt whose lines are not all stored yet, or will be more."""
        return self._logs.get(key)

    @property
    def stalled(self) -> bool:
        """Whether the server does not store what it gets: results need not wait for their lines."""
        return self._probing

    def check(self) -> None:
        """To be called now and then while connected: when nothing was stored for a while, ask with a few lines."""
        if self._waiting_since is not None and self._loop.time() - self._waiting_since >= self.patience:
            self.rewind()
            with self._room:
                self._probing = True
                self._room.notify_all()
            self._notify()

    def discard(self, keys: Iterable[AttemptKey]) -> None:
        """Forget attempts whose lines nobody wants any more."""
        dropped = {key: log for key in keys if (log := self._logs.pop(key, None)) is not None}
        if not dropped:
            return
        with self._room:
            for log in dropped.values():
                log.closed = True
            written = self.written
            self._unsent = deque(line for line in self._unsent if (line.run, line.step, line.attempt) not in dropped)
            self._sent = written - len(self._unsent)
            self._bytes = sum(_size(line) for log in self._logs.values() for line in log.unacked)
            self._room.notify_all()

    def _wake_threads(self) -> None:
        with self._room:
            self._room.notify_all()

    def _add(self, log: "JobLog", parts: list[tuple[str, bool]], stream: LogStream.ValueType) -> None:
        on_loop = threading.get_ident() == self._loop_thread
        with self._room:
            if self._bytes > self._bound and not on_loop:
                self._room.wait_for(lambda: self._bytes <= self._bound or log.hurry or log.closed or self._probing)
            if log.closed:
                return
            limit = self._bound if log.hurry or self._probing else 4 * self._bound
            if self._bytes > limit:
                log.dropped += len(parts)
                return
            if log.dropped:
                self._append(log, _lost(log.dropped), False, LogStream.LOG_STREAM_LOG)
                log.dropped = 0
            for text, partial in parts:
                self._append(log, text, partial, stream)
            wake = not self._notified
            self._notified = True
        if wake:
            if on_loop:
                self._notify()
            else:
                self._loop.call_soon_threadsafe(self._notify)

    def _append(self, log: "JobLog", text: str, partial: bool, stream: LogStream.ValueType) -> None:
        run, step, attempt = log.key
        now = time.time_ns()
        line = LogLine(
            run=run,
            step=step,
            attempt=attempt,
            seq=log.next_seq,
            time=Timestamp(seconds=now // 1_000_000_000, nanos=now % 1_000_000_000),
            text=text,
            stream=stream,
            partial=partial,
        )
        log.next_seq += 1
        log.unacked.append(line)
        self._unsent.append(line)
        self._bytes += _size(line)

    def _close(self, log: "JobLog") -> None:
        with self._room:
            if log.dropped:
                self._append(log, _lost(log.dropped), False, LogStream.LOG_STREAM_LOG)
                log.dropped = 0
            log.closed = True
            if not log.unacked and self._logs.get(log.key) is log:
                del self._logs[log.key]
            self._room.notify_all()


class JobLog:
    """The log of one attempt."""

    def __init__(self, buffer: LogBuffer, key: AttemptKey) -> None:
        self.key = key
        self.next_seq = 1
        # How many lines an earlier job of the same attempt left, which its numbers do not count. None: not known yet.
        self.earlier: int | None = 0
        self.dropped = 0
        self.closed = False
        self.hurry = False
        self.unacked: deque[LogLine] = deque()
        self._buffer = buffer

    def write(
        self, text: str, stream: LogStream.ValueType = LogStream.LOG_STREAM_LOG, *, partial: bool = False
    ) -> None:
        """Write a text of one or more lines; `partial` when its last line goes on in the next write.

        Lines above the server's limit are split. After `close` nothing is written any more.
        """
        limit = self._buffer.line_bytes
        lines = text.split("\n") if "\n" in text else [text]
        if len(lines) > 1 and not lines[-1]:
            lines.pop()
        parts = [(line.removesuffix("\r"), False) for line in lines]
        if len(text) * 4 > limit or not text.isascii():
            parts = [part for line, _ in parts for part in _split(line, limit)]
        if partial:
            parts[-1] = (parts[-1][0], True)
        self._buffer._add(self, parts, stream)

    def do_not_wait(self) -> None:
        """From now on no thread waits for room: the job is to stop."""
        self.hurry = True
        self._buffer._wake_threads()

    def close(self) -> None:
        """No more lines."""
        self._buffer._close(self)


def _size(line: LogLine) -> int:
    return line.ByteSize() + _LINE_OVERHEAD


def _lost(count: int) -> str:
    return f"[{count} lines are left out here: they came faster than the server stores them]"


def _split(line: str, limit: int) -> list[tuple[str, bool]]:
    """Parts of at most `limit` bytes of UTF-8; all but the last are partial."""
    data = line.encode(errors="replace")
    parts: list[tuple[str, bool]] = []
    while len(data) > limit:
        end = limit
        while end and data[end] & 0xC0 == 0x80:
            end -= 1
        parts.append((data[:end].decode(), True))
        data = data[end:]
    parts.append((data.decode(), False))
    return parts

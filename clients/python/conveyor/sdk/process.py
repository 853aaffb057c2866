"""Subprocesses of jobs: own process group, output into the run's log, nothing left behind."""

import asyncio
import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from typing import IO, Protocol

from conveyor.sdk.errors import JobCancelled, JobFailed, ProcessFailed
from conveyor.sdk.process_tree import Mark, Process, ProcessTree, names
from conveyor.v1.log_pb2 import LogStream

Command = Sequence[str | PathLike[str]]

_POLL = 0.2
_SETTLE_POLL = 0.02
_PARTIAL_AFTER = 0.8
# How long what outlives its command may take to end by itself.
_PATIENCE = 2.0
# How long the pipes are read after the command and all that it started are gone: somebody else may hold them. The same
# for what does not even end by SIGKILL.
_LINGER = 1.0
_CHUNK = 64 * 1024
_CAPTURE_BYTES = 64 * 1024 * 1024
_groups: set["_Group"] = set()
_decoder = getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended."""

    returncode: int
    """Its exit status; negative when a signal ended it."""
    stdout: str = ""
    """What it wrote to standard output, with `capture`."""
    stderr: str = ""
    """What it wrote to standard error, with `capture`."""


class ProcessOwner(Protocol):
    """What a subprocess needs of its job."""

    cancelled: bool
    cancel_message: str
    grace: float

    def log(self, message: str, *args: object) -> None:
        """Write a line into the run's log."""

    def notice(self, text: str) -> None:
        """Write a line into the run's log, and say it in the result too."""

    def write_output(self, text: str, stream: LogStream.ValueType, *, partial: bool = False) -> None:
        """Write output into the run's log."""


def run_process(
    owner: ProcessOwner,
    command: Command,
    *,
    cwd: str | PathLike[str] | None,
    env: Mapping[str, str] | None,
    check: bool,
    capture: bool,
    stop: threading.Event | None = None,
) -> Completed:
    """Run a command to its end. Blocks; see Job.run_subprocess. `stop` ends it like a cancelled job does."""
    if not command:
        raise ValueError("the command is empty")
    mark = Mark()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=mark.environment(env),
            start_new_session=True,
        )
    except OSError as error:
        raise JobFailed(f"cannot start {os.fspath(command[0])}: {error.strerror}: {error.filename}") from error
    group = _Group(owner, process, mark, stop)
    _groups.add(group)
    try:
        outputs = _pump(owner, group, process, capture)
    except BaseException:
        group.kill()
        process.wait()
        raise
    finally:
        _groups.discard(group)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if group.stopping:
        raise JobCancelled(owner.cancel_message)
    stdout, stderr = outputs
    if check and process.returncode:
        raise ProcessFailed(_failure(command, process.returncode, stderr), process.returncode)
    return Completed(process.returncode, stdout.text(), stderr.text())


async def start_process(
    owner: ProcessOwner,
    command: Command,
    *,
    cwd: str | PathLike[str] | None,
    env: Mapping[str, str] | None,
    check: bool,
    capture: bool,
) -> Completed:
    """The same without blocking. When the caller is cancelled, the process is stopped before this returns."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Completed] = loop.create_future()
    stop = threading.Event()

    def settle(result: Completed | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def body() -> None:
        result, error = None, None
        try:
            result = run_process(owner, command, cwd=cwd, env=env, check=check, capture=capture, stop=stop)
        except BaseException as caught:  # noqa: BLE001 (it is raised again where it is awaited)
            error = caught
        loop.call_soon_threadsafe(settle, result, error)

    # A thread of its own: the default pool is small, and a process lasts.
    threading.Thread(target=body, name="conveyor-subprocess", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        stop.set()
        while not done.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([done])
        with suppress(Exception):
            done.exception()
        raise


def kill_all() -> None:
    """End all subprocesses now: this process is about to exit."""
    for group in tuple(_groups):
        group.kill()


class _Group:
    """A command with all that it starts."""

    def __init__(
        self, owner: ProcessOwner, process: "subprocess.Popen[bytes]", mark: Mark, stop: threading.Event | None
    ) -> None:
        self.stopping = False
        self._owner = owner
        self._tree = ProcessTree(mark, process.pid)
        self._stop = stop
        self._kill_at = 0.0
        self._given_up = False
        self._left: dict[int, Process] = {}
        self._killed: dict[int, Process] = {}

    def check(self) -> None:
        """Go on with stopping it, when it is to stop."""
        if self.stopping:
            if time.monotonic() >= self._kill_at:
                self.kill()
        elif self._owner.cancelled or (self._stop is not None and self._stop.is_set()):
            self.stopping = True
            grace = self._owner.grace
            self._kill_at = time.monotonic() + max(grace - 2.0, grace / 2)
            self._tree.signal(signal.SIGTERM, self._tree.alive())

    def settle(self) -> bool:
        """The command has ended: go on with ending what it left behind. Whether that is done, or given up."""
        alive, now = self._tree.alive(), time.monotonic()
        if not alive or self._given_up:
            return True
        if not self._kill_at:
            self._kill_at = now + _PATIENCE
            self._tree.signal(signal.SIGTERM, alive)
        elif now >= self._kill_at + _LINGER:
            self._owner.log("[could not be ended: %s]", names(alive))
            self._given_up = True
        elif now >= self._kill_at:
            self.kill()
        if not self.stopping:
            self._left.update((process.pid, process) for process in alive)
        return False

    def kill(self) -> None:
        """End all of it now."""
        alive = self._tree.alive()
        self._tree.signal(signal.SIGKILL, alive)
        self._killed.update((process.pid, process) for process in alive)

    def report(self) -> None:
        """Tell what did not end by itself."""
        if self._left:
            count = len(self._left)
            what, were = ("process", "was") if count == 1 else ("processes", "were")
            self._owner.notice(f"{count} {what} outlived the command and {were} ended: {names(self._left.values())}")
        elif self._killed:
            self._owner.log("[did not stop when told to, and killed: %s]", names(self._killed.values()))


class _Output:
    """One of the two outputs: cuts it into lines, and lets a line that does not end through after a while."""

    def __init__(self, owner: ProcessOwner, stream: LogStream.ValueType, capture: bool) -> None:
        self._owner = owner
        self._stream = stream
        self._decoder = _decoder(errors="replace")
        self._open = ""
        self._open_since = 0.0
        self._captured: list[str] | None = [] if capture else None
        self._captured_size = 0
        self.last: deque[str] = deque(maxlen=3)

    def feed(self, data: bytes, final: bool = False) -> None:
        text = self._decoder.decode(data, final)
        if self._captured is not None and self._captured_size < _CAPTURE_BYTES:
            self._captured.append(text)
            self._captured_size += len(text)
        if not self._open:
            self._open_since = time.monotonic()
        whole, newline, rest = (self._open + text).rpartition("\n")
        self._open = rest
        if newline:
            self._write(whole + newline)
            self._open_since = time.monotonic()
        if final and self._open:
            self._write(self._open)
            self._open = ""

    def tick(self) -> None:
        if self._open and time.monotonic() - self._open_since >= _PARTIAL_AFTER:
            self._owner.write_output(self._open, self._stream, partial=True)
            self._open = ""

    def text(self) -> str:
        return "".join(self._captured or ())

    def _write(self, text: str) -> None:
        self._owner.write_output(text, self._stream)
        self.last.extend(line for line in text.rsplit("\n", 4)[-4:] if line.strip())


def _pump(
    owner: ProcessOwner, group: _Group, process: "subprocess.Popen[bytes]", capture: bool
) -> tuple[_Output, _Output]:
    stdout = _Output(owner, LogStream.LOG_STREAM_STDOUT, capture)
    stderr = _Output(owner, LogStream.LOG_STREAM_STDERR, capture)
    give_up = 0.0
    with selectors.DefaultSelector() as selector:
        for pipe, output in ((process.stdout, stdout), (process.stderr, stderr)):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, (pipe, output))
        while True:
            for key, _ in selector.select(_POLL if process.returncode is None and selector.get_map() else 0.0):
                if not _read(*key.data):
                    selector.unregister(key.fileobj)
            stdout.tick()
            stderr.tick()
            group.check()
            if not _ended(process, wait=not selector.get_map()):
                continue
            if not group.settle():
                time.sleep(_SETTLE_POLL)
            elif not selector.get_map():
                break
            elif not give_up:
                give_up = time.monotonic() + _LINGER
            elif time.monotonic() > give_up:
                owner.log("[somebody still holds its output open; what comes from now on is lost]")
                break
            else:
                time.sleep(_SETTLE_POLL)
    group.report()
    stdout.feed(b"", final=True)
    stderr.feed(b"", final=True)
    return stdout, stderr


def _ended(process: "subprocess.Popen[bytes]", *, wait: bool) -> bool:
    """Whether the command has ended; `wait`: a little, when there is nothing else to wait for."""
    if wait:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
    return process.poll() is not None


def _read(pipe: IO[bytes], output: _Output) -> bool:
    data = os.read(pipe.fileno(), _CHUNK)
    if data:
        output.feed(data)
    return bool(data)


def _failure(command: Command, returncode: int, stderr: _Output) -> str:
    text = shlex.join(os.fspath(part) for part in command)
    if len(text) > 200:
        text = text[:200] + "…"
    if returncode < 0:
        try:
            how = f"was ended by {signal.Signals(-returncode).name}"
        except ValueError:
            how = f"was ended by signal {-returncode}"
    else:
        how = f"ended with exit status {returncode}"
    last = stderr.last[-1].strip() if stderr.last else ""
    return f"{text} {how}" + (f": {last}" if last else "")

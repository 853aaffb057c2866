"""All that a command has started: its process group, and what left that for a session of its own."""

import os
import secrets
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CONVEYOR_SUBPROCESS"
"""Marks the environment of a command; whatever it starts inherits the mark, also over setsid and double forks."""

_PROC = Path("/proc")
_OWN_ENVIRON = Path("/proc/self/environ")
_LAST = Path("/proc/loadavg")
"""Its last word is the id of the youngest process."""

_SHORT = 5.0
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Process:
    """A process that lives."""

    pid: int
    name: str
    """Empty where the system does not tell."""
    in_group: bool

    def __str__(self) -> str:
        return f"{self.name or 'process'} ({self.pid})"


class Mark:
    """What makes the processes of one command known."""

    def __init__(self) -> None:
        self._id = secrets.token_hex(8)

    def environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        """The environment for the command; a command of a command has the marks of both."""
        outer = os.environ.get(VARIABLE, "")
        mark = f"{outer}:{self._id}" if outer else self._id
        return {**(os.environ if env is None else env), VARIABLE: mark}

    def is_in(self, pid: int) -> bool:
        """Whether a process has it. Others' processes do not show their environment, and are none of ours."""
        try:
            return self._id.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


class ProcessTree:
    """The processes of one command. `leader` is its id and that of its group."""

    def __init__(self, mark: Mark, leader: int) -> None:
        self._mark = mark
        self._leader = leader
        self._start = time.monotonic()

    def alive(self) -> list[Process]:
        """Those that live, the command itself included. Without /proc only whether there are any in its group."""
        if not _OWN_ENVIRON.exists():
            return [Process(self._leader, "", in_group=True)] if self._group(0) else []
        return [process for pid in self._candidates() if (process := self._member(pid)) is not None]

    def _candidates(self) -> list[int]:
        """The processes to look at. To look at all takes long beside a short command, when there are thousands.

        Ids are given out in a circle: within a short time, those of the command's descendants follow its own.
        """
        pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
        if time.monotonic() - self._start > _SHORT:
            return pids
        first, last = self._leader, int(_LAST.read_text().rpartition(" ")[2])
        return [pid for pid in pids if (first <= pid <= last if first <= last else pid >= first or pid <= last)]

    def _member(self, pid: int) -> Process | None:
        try:
            in_group = os.getpgid(pid) == self._leader
            if not in_group and not self._mark.is_in(pid):
                return None
            name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
        except OSError:
            return None  # It ended meanwhile.
        if rest.split(maxsplit=1)[0] in {"Z", "X"}:
            return None
        return Process(pid, name.partition("(")[2], in_group)

    def signal(self, number: signal.Signals, processes: Iterable[Process]) -> None:
        """Send a signal to them; to the group at once, so that none can be born meanwhile without it."""
        processes = list(processes)
        if any(process.in_group for process in processes):
            self._group(number)
        for process in processes:
            if not process.in_group:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, number)

    def _group(self, number: int) -> bool:
        try:
            os.killpg(self._leader, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def names(processes: Iterable[Process]) -> str:
    """Names and ids in one line, the first ten of them."""
    told = [str(process) for process in processes]
    more = len(told) - _NAMED
    return ", ".join(told[:_NAMED]) + (f" and {more} more" if more > 0 else "")

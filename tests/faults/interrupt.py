"""An end by SIGINT or SIGTERM that leaves no process and no mount behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


class Interruption:
    """The first signal raises KeyboardInterrupt, and the round is taken down; until it is, others change nothing."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Take both signals, also where a shell started this in the background and had SIGINT ignored."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            raise KeyboardInterrupt


def clean_up(directory: Path) -> None:
    """End what a fault had just started when it was interrupted, and what is mounted in the directory."""
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    for place in mounts_below(directory):
        subprocess.run(["umount", "--lazy", place], check=False)


def mounts_below(directory: Path) -> list[Path]:
    """What is mounted in a directory, innermost last."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    places = [Path(line.split()[1].encode().decode("unicode_escape")) for line in lines]
    return sorted(place for place in places if directory.resolve() in place.parents)


def _descendants() -> list[int]:
    """Our children, and theirs."""
    parents = dict(_processes())
    found = [os.getpid()]
    for each in found:  # grows
        found += [pid for pid, parent in parents.items() if parent == each]
    return found[1:]


def _processes() -> Iterator[tuple[int, int]]:
    """All processes, each with its parent."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may hold anything.
                yield int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1])

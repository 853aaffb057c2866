"""How far the lines of each attempt of a step are stored, and what of new lines is to be stored. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from conveyor.bus.loglines import StoredLine, split_line
from conveyor.v1 import log_pb2

_MAX_ATTEMPTS = 100
"""Attempts that a note names, the newest."""


@dataclass(slots=True)
class Progress:
    """All lines below `next_seq` are stored, and the first `part` parts of that line.

    `owed` lines without a number of their own were given up since.
    """

    next_seq: int = 1
    part: int = 0
    owed: int = 0


class Attempts:
    """The progress of each attempt of one step."""

    def __init__(self) -> None:
        self._progress: dict[int, Progress] = {}

    def copy(self) -> Attempts:
        attempts = Attempts()
        attempts._progress = {number: replace(progress) for number, progress in self._progress.items()}
        return attempts

    def next_seq(self, attempt: int) -> int:
        """The number of the first line that is not stored."""
        progress = self._progress.get(attempt)
        return progress.next_seq if progress else 1

    def owe(self, attempt: int, lines: int) -> None:
        """So many lines without a number were given up."""
        self._progress.setdefault(attempt, Progress()).owed += lines

    def note(self) -> str:
        """The progress as text, `attempt:next_seq.part` by commas."""
        newest = sorted(self._progress.items())[-_MAX_ATTEMPTS:]
        return ",".join(f"{number}:{progress.next_seq}.{progress.part}" for number, progress in newest)

    def read_note(self, note: str) -> None:
        """Takes the progress from a note."""
        for entry in note.split(","):
            number, _, rest = entry.partition(":")
            next_seq, _, part = rest.partition(".")
            if number.isdigit() and next_seq.isdigit() and part.isdigit():
                progress = self._progress.setdefault(int(number), Progress())
                progress.next_seq, progress.part = int(next_seq), int(part)

    def saw(self, stored: StoredLine) -> None:
        """The line is in the stream."""
        line, part, parts = stored
        if not line.seq:
            return
        progress = self._progress.setdefault(line.attempt, Progress())
        progress.owed = max(0, progress.owed - line.lost)
        position = (line.seq, part + 1) if part + 1 < parts else (line.seq + 1, 0)
        if position > (progress.next_seq, progress.part):
            progress.next_seq, progress.part = position

    def take(self, lines: Iterable[log_pb2.LogLine], driver: str) -> list[StoredLine]:
        """What is to be stored of these lines, in order; counts it as stored.

        What is stored already is left out. What comes after a gap is left out too, so that its writer fills it, unless
        the line says itself that lines before it are `lost`. Lines without a number get the next one.
        """
        taken: list[StoredLine] = []
        for given in lines:
            progress = self._progress.setdefault(given.attempt, Progress())
            if progress.owed:
                lost, progress.owed = progress.owed, 0
                taken.append(_mark(given, progress.next_seq + lost - 1, lost, driver))
                progress.next_seq, progress.part = progress.next_seq + lost, 0
            seq = given.seq or progress.next_seq
            if seq < progress.next_seq or (seq > progress.next_seq and not given.lost):
                continue
            if given.lost and not given.text:
                # The mark stands in the place of the lines that it tells of.
                taken.append(_mark(given, seq, seq - progress.next_seq + 1, driver))
                progress.next_seq, progress.part = seq + 1, 0
                continue
            if seq > progress.next_seq:
                taken.append(_mark(given, seq - 1, seq - progress.next_seq, driver))
                progress.next_seq, progress.part = seq, 0
            line = log_pb2.LogLine()
            line.CopyFrom(given)
            line.seq = seq
            line.driver = driver
            line.ClearField("lost")
            line.ClearField("cursor")
            taken += split_line(line)[progress.part :]
            progress.next_seq, progress.part = seq + 1, 0
        return taken


def _mark(near: log_pb2.LogLine, seq: int, lost: int, driver: str) -> StoredLine:
    mark = log_pb2.LogLine(run=near.run, step=near.step, attempt=near.attempt, seq=seq, lost=lost, driver=driver)
    if near.HasField("time"):
        mark.time.CopyFrom(near.time)
    return StoredLine(mark)

"""Conveyor's own command line in a process with a deliberate bug, or with a clock that a test steps.

    python -m tests.faults.program [--plant BUG] [--clock FILE] server dev|start …

FILE holds the seconds that are added to the server's clock; it may change while the server runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conveyor.engine import clock, schedules

_REREAD_S = 0.1


class SteppedClock:
    """The server's clock, and on top of it what stands in a file."""

    def __init__(self, file: Path, anchored: Callable[[], int]) -> None:
        self._file = file
        self._anchored = anchored
        self._ahead = 0
        self._read_again = 0.0

    def __call__(self) -> int:
        now = time.monotonic()
        if now >= self._read_again:
            self._read_again = now + _REREAD_S
            self._ahead = int(float(self._file.read_text()) * 1e6)
        return self._anchored() + self._ahead


def step_by(file: Path) -> None:
    """Have every server clock that is made from now on add what stands in the file."""
    anchored_clock = clock.anchored_clock
    # Whoever has imported the name before keeps the clock that nobody steps: the server's root is imported later.
    clock.anchored_clock = lambda offset=0: SteppedClock(file, anchored_clock(offset))
    # It looks at the clock when the next time should have come; this one may jump before that.
    schedules._LONGEST_SLEEP = _REREAD_S


def main() -> None:
    """Patch what is asked for, then be the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.program", description=__doc__)
    parser.add_argument("--plant", default="", metavar="BUG")
    parser.add_argument("--clock", type=Path, metavar="FILE")
    given, command = parser.parse_known_args()
    if given.clock is not None:
        step_by(given.clock)
    if given.plant:
        from tests.faults.planted import PLANTED

        PLANTED[given.plant].patch()
    from conveyor.cli.main import main as conveyor

    sys.argv = ["conveyor", *command]
    conveyor()


if __name__ == "__main__":
    main()

"""A run on a terminal, redrawn in place."""

import asyncio
import sys

from conveyor.cli.describe import summary
from conveyor.cli.encode import enum_name
from conveyor.cli.gates import open_block
from conveyor.cli.instances import in_order
from conveyor.cli.output import table
from conveyor.cli.tables import STEPS, step_row
from conveyor.cli.terminal import coloured, columns, cut, one_line, room_makers, rows, use_colour
from conveyor.cli.times import length, now, offset
from conveyor.sdk import RunUpdate
from conveyor.v1.run_pb2 import Run, StepRun, StepState

_EVERY = 1.0
_MIN_STEPS = 3
# What matters most when not all steps have room.
_URGENCY = {
    StepState.STEP_STATE_FAILED: 0,
    StepState.STEP_STATE_RUNNING: 1,
    StepState.STEP_STATE_RETRYING: 1,
    StepState.STEP_STATE_QUEUED: 2,
    StepState.STEP_STATE_CANCELLED: 3,
    StepState.STEP_STATE_PENDING: 4,
}


class LiveProgress:
    """Draws the run over what was drawn before, after each change and every second."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._drawn = 0
        self._notes = ""
        self._timer: asyncio.TimerHandle | None = None
        room_makers.append(self._erase)

    def update(self, update: RunUpdate) -> None:
        """Draw the run after a change."""
        self._run = update.run
        if update.skipped:
            self._notes = f"{update.skipped} changes were left out"
        self._draw()

    def close(self) -> None:
        """Draw it for the last time, with all of its steps."""
        room_makers.remove(self._erase)
        if self._timer is not None:
            self._timer.cancel()
        if self._run is not None:
            room = len(self._run.steps) + len(open_block(self._run))
            self._paint(frame(self._run, room, self._notes))
            if self._run.HasField("end_time"):
                print(summary(self._run), flush=True)

    def _draw(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._run is not None:
            self._paint(frame(self._run, max(rows() - 4, _MIN_STEPS), self._notes))
        self._timer = asyncio.get_running_loop().call_later(_EVERY, self._draw)

    def _erase(self) -> None:
        """Take away what was drawn, so that a note takes its place."""
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}A\r\x1b[J")
            sys.stdout.flush()
            self._drawn = 0

    def _paint(self, lines: list[str]) -> None:
        back = f"\x1b[{self._drawn}A\r" if self._drawn else ""
        sys.stdout.write(back + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()
        self._drawn = len(lines)


def frame(run: Run, room: int, notes: str = "") -> list[str]:
    """The lines that show a run, with at most so many steps."""
    at = now()
    state = enum_name(run, "state")
    took = length(run, at) or offset(run, at)
    target = f" on {run.pipeline}" if run.pipeline else ""
    said = run.message or enum_name(run, "reason")
    tail = f"  {run.definition}/{run.resource}{target}  {took}  {one_line(said)}".rstrip()
    head = cut(f"run {run.id}  {state}{tail}", columns())
    if use_colour(sys.stdout):
        head = head.replace(f"  {state}", f"  {coloured(state)}", 1)
    gates = [cut(line, columns()) for line in open_block(run)[: max(room // 2, _MIN_STEPS)]]
    shown = chosen(run, max(room - len(gates), _MIN_STEPS))
    lines = [head]
    if shown:
        lines += table(STEPS, [step_row(step, at) for step in shown]).splitlines()
    hidden = len(run.steps) - len(shown)
    if hidden:
        lines.append(f"… and {hidden} more steps")
    lines += gates
    if notes:
        lines.append(notes)
    return lines


def chosen(run: Run, room: int) -> list[StepRun]:
    """The steps to show when not all have room: those that matter most, in the order of the run."""
    steps = in_order(run.steps)
    if len(steps) <= room:
        return steps
    ranked = sorted(range(len(steps)), key=lambda index: (_URGENCY.get(steps[index].state, 5), index))
    return [steps[index] for index in sorted(ranked[:room])]

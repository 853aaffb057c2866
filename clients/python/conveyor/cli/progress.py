"""Shows how a run goes: redrawn on a terminal, a line per change elsewhere, an object per change in JSON."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from conveyor.cli.describe import summary
from conveyor.cli.encode import encode, encode_object, enum_name
from conveyor.cli.gates import commands, is_open
from conveyor.cli.instances import as_told, label
from conveyor.cli.live import LiveProgress
from conveyor.cli.options import Settings
from conveyor.cli.output import coloured_cell, print_line
from conveyor.cli.tables import attempt, step_message
from conveyor.cli.terminal import is_terminal, note, one_line, use_colour
from conveyor.cli.times import now, offset, time_of
from conveyor.sdk import RunUpdate
from conveyor.v1.run_pb2 import Run, StepRun, StepState

_STATE_WIDTH = len("CANCELLING")


class Progress(Protocol):
    """What takes the updates of a watch."""

    def update(self, update: RunUpdate) -> None:
        """Show a run after a change."""

    def close(self) -> None:
        """Leave the output in order."""


@contextmanager
def progress(settings: Settings, *, many: bool = False) -> Iterator[Progress]:
    """The form of progress that fits -o and where the output goes. `many`: the updates are of several runs."""
    show: Progress
    if settings.output in {"json", "yaml"}:
        show = JsonProgress()
    elif is_terminal(sys.stdout) and not many:
        show = LiveProgress()
    else:
        show = LineProgress(many=many, quiet=settings.quiet)
    try:
        yield show
    finally:
        show.close()


class JsonProgress:
    """One line of JSON per change: the run, and the steps that changed."""

    def update(self, update: RunUpdate) -> None:
        """Print a change."""
        run = Run()
        run.CopyFrom(update.run)
        for field in ("steps", "pipeline_snapshot", "resource_snapshot", "params"):
            run.ClearField(field)
        value: dict[str, object] = {"run": encode_object(run), "steps": [encode(step) for step in update.changed]}
        for name in ("skipped", "reset", "deleted"):
            if getattr(update, name):
                value[name] = getattr(update, name)
        print_line(value)

    def close(self) -> None:
        """Nothing is left to do."""


class LineProgress:
    """A line per change: the time since the run's creation, the step, its state, what there is to say."""

    def __init__(self, *, many: bool = False, quiet: bool = False) -> None:
        self._many = many
        self._quiet = quiet
        self._seen: dict[tuple[str, str], tuple[object, ...]] = {}
        self._last: Run | None = None
        self._width = 0
        self._colour = use_colour(sys.stdout)

    def update(self, update: RunUpdate) -> None:
        """Print what a change says that was not printed yet."""
        run = update.run
        first = self._last is None
        self._width = max(self._width, len("(run)"), *(len(one_line(label(step))) for step in run.steps), 0)
        self._last = run
        if update.skipped or update.reset:
            left_out = f"{update.skipped} changes" if update.skipped else "changes"
            self._print(run, now(), "(run)", "", f"{left_out} before this one were left out")
        if update.deleted:
            self._print(run, now(), "(run)", "DELETED", "")
            return
        steps = [step for step in as_told(update.changed) if step.state != StepState.STEP_STATE_PENDING]
        if first:
            steps.sort(key=lambda step: _changed_at(step, run))
        ended = bool(run.HasField("end_time"))
        if not ended:
            self._run(run)
        for step in steps:
            self._step(run, step, _changed_at(step, run) if first else _updated_at(run))
        if ended:
            self._run(run)

    def close(self) -> None:
        """Print how the run ended."""
        if self._last is not None and self._last.HasField("end_time") and not self._many:
            print(summary(self._last), flush=True)

    def _run(self, run: Run) -> None:
        if self._is_new(run.id, "", (run.state, run.reason, run.message)):
            said = run.message or enum_name(run, "reason")
            if self._many:
                target = f"{run.definition}/{run.resource}" + (f" on {run.pipeline}" if run.pipeline else "")
                said = f"{target}: {said}" if said else target
            self._print(run, _updated_at(run), "(run)", enum_name(run, "state"), said)

    def _step(self, run: Run, step: StepRun, at: datetime) -> None:
        if self._is_new(run.id, step.step, (step.state, step.reason, step.attempt, step.message, len(step.decisions))):
            said = step_message(step, now(), otherwise=enum_name(step, "reason"))
            if step.attempt > 1:
                said = f"attempt {attempt(step)} {said}"
            self._print(run, at, one_line(label(step)), enum_name(step, "state"), said)
            if is_open(step) and not step.decisions and not self._quiet:
                note(f"gate {step.step} waits for a decision: `{commands(run, step)[0]}`")

    def _is_new(self, run_id: str, step: str, what: tuple[object, ...]) -> bool:
        if self._seen.get((run_id, step)) == what:
            return False
        self._seen[run_id, step] = what
        return True

    def _print(self, run: Run, at: datetime, what: str, state: str, said: str) -> None:
        cell = f"{state:<{_STATE_WIDTH}}"
        if self._colour:
            cell = coloured_cell(cell)
        head = f"{run.id}  " if self._many else ""
        print(f"{head}{offset(run, at):>7}  {what:<{self._width}}  {cell}  {one_line(said)}".rstrip(), flush=True)


def _updated_at(run: Run) -> datetime:
    return time_of(run, "update_time") or now()


def _changed_at(step: StepRun, run: Run) -> datetime:
    for field in ("end_time", "start_time", "queue_time"):
        if (time := time_of(step, field)) is not None:
            return time
    return _updated_at(run)

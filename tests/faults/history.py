"""What happened in a round: lines that each process appends to a file of its own, and what was stored at the end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.run_pb2 import Run, RunState, StepState

Event = dict[str, Any]
"""`at` in seconds by the machine's monotonic clock, which all processes share; `by`, `kind`, and what belongs to it."""

REQUEST = "request"
"""The label of each run that names the request which started it."""

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
"""The terminal states of runs, and of attempts."""
ENDED_STEP = ENDED | {"SKIPPED"}


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    invariant: int
    """Its number in section 11 of the design."""
    run: str
    """The run concerned; empty when it is none."""
    text: str


class Recorder:
    """Appends events to a file, each by one write: a process that is killed leaves whole lines."""

    def __init__(self, path: Path, by: str) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        self._by = by

    def note(self, kind: str, **fields: Any) -> None:
        """Something happened just now."""
        event = {"at": time.monotonic(), "by": self._by, "kind": kind, **fields}
        os.write(self._file, json.dumps(event, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Nothing more comes."""
        os.close(self._file)


@dataclass
class History:
    """A round as the checks see it."""

    events: list[Event]
    """In the order of time."""
    runs: dict[str, Run] = field(default_factory=dict)
    """All that were stored at the end, by id, with their steps."""
    logs: dict[str, list[LogLine]] = field(default_factory=dict)
    """Their lines, as they were read at the end."""
    left: dict[str, str] = field(default_factory=dict)
    """What of the servers did not come back to where it was, after everybody had gone: its name, then and now."""
    mistakes: list[str] = field(default_factory=list)
    """What the servers' logs call an error."""
    unfinished: list[str] = field(default_factory=list)
    """Runs that had not ended when the wait was given up."""

    def __post_init__(self) -> None:
        self._by_run: dict[str, list[Event]] = {}

    def of(self, *kinds: str) -> Iterator[Event]:
        """The events of these kinds."""
        return (event for event in self.events if event["kind"] in kinds)

    def above(self, run: Run) -> Iterator[Event]:
        """The events that concern a run, and those that concern the runs that it is within."""
        yield from self.about(run.id)
        while run.caller_run:
            yield from self.about(run.caller_run)
            if run.caller_run not in self.runs:
                return
            run = self.runs[run.caller_run]

    def about(self, run: str) -> Iterator[Event]:
        """The events that concern a run."""
        if not self._by_run:
            for event in self.events:
                self._by_run.setdefault(event.get("run", ""), []).append(event)
        return iter(self._by_run.get(run, []))


def read(directory: Path) -> list[Event]:
    """The events of all files in a directory, in the order of time."""
    events: list[Event] = []
    for file in sorted(directory.glob("*.jsonl")):
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            try:
                events.append(json.loads(line))
            except ValueError:
                # The last line of a process that was killed in the middle of a write.
                if number != len(lines) - 1:
                    raise
    return sorted(events, key=lambda event: float(event["at"]))


def seen(run: Run) -> dict[str, Any]:
    """What a history keeps of a run that somebody was shown."""
    return {
        "run": run.id,
        # Those within a run have its labels, and no request of their own.
        "request": run.labels.get(REQUEST, "") if not run.caller_run else "",
        "etag": int(run.etag, 16),
        "state": run_state(run.state),
        "steps": [step_state(state) for state in run.step_states],
        "update_time": run.update_time.ToNanoseconds(),
    }


def run_state(state: int) -> str:
    """Without its prefix."""
    return RunState.Name(state).removeprefix("RUN_STATE_")  # type: ignore[arg-type]


def step_state(state: int) -> str:
    """Without its prefix."""
    return StepState.Name(state).removeprefix("STEP_STATE_")  # type: ignore[arg-type]

"""What a schedule starts a run for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fired:
    """A schedule by its name, and the time that was due in microseconds; 0 when somebody triggered it."""

    schedule: str
    time: int = 0

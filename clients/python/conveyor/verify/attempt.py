"""An attempt that the kit gives to a driver, and what the driver says of it."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

Name = tuple[str, str, int, str]
"""Run, step, attempt and token."""


@dataclass(frozen=True, slots=True)
class Line:
    """A log line. `at` orders all that came, `time` is what the driver says of the time."""

    seq: int
    text: str
    partial: bool
    at: int
    time: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A result. `outcome` is SUCCEEDED, FAILED or CANCELLED, or what else the driver said."""

    outcome: str
    message: str
    data: Mapping[str, Any]
    at: int
    run: str = ""
    step: str = ""
    number: int = 0
    token: str = ""

    @property
    def named(self) -> Name:
        """The attempt that it says it answers."""
        return self.run, self.step, self.number, self.token


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt. What comes of it gathers in `lines` and `answers`."""

    spec: Mapping[str, Any] = field(default_factory=dict)
    run: str = field(default_factory=lambda: str(uuid4()))
    step: str = "verify"
    number: int = 1
    token: str = field(default_factory=lambda: secrets.token_hex(12))
    lines: list[Line] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    over: bool = False
    """Whether nothing more is waited for."""

    @property
    def named(self) -> Name:
        """What its results must carry."""
        return self.run, self.step, self.number, self.token

    @property
    def texts(self) -> list[str]:
        """Its lines in the order of their numbers, each once, parts put together."""
        found: list[str] = []
        open_part = False
        for line in sorted({each.seq: each for each in self.lines}.values(), key=lambda each: each.seq):
            if open_part:
                found[-1] += line.text
            else:
                found.append(line.text)
            open_part = line.partial
        return found

    def times_written(self, text: str) -> int:
        """How often a line was written: one that was only sent again has its number and its time."""
        return len({(line.seq, line.time) for line in self.lines if line.text == text})


class Attempts:
    """All attempts that were given out."""

    def __init__(self) -> None:
        self._all: dict[str, list[Attempt]] = {}

    def add(self, attempt: Attempt) -> None:
        """One more is given out."""
        self._all.setdefault(attempt.run, []).append(attempt)

    def find(self, run: str, step: str, number: int) -> Attempt | None:
        """The attempt that a driver means: the latest of the run when it does not name it as it should."""
        mine = self._all.get(run)
        if not mine:
            return None
        return next((each for each in mine if (each.step, each.number) == (step, number)), mine[-1])

    @property
    def open(self) -> list[Attempt]:
        """Those that were not answered."""
        return [each for mine in self._all.values() for each in mine if not each.answers and not each.over]

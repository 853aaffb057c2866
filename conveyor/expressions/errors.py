"""What can be wrong with an expression: as it is written, or with what it is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong at a place in the text; lines and columns count from 1, columns in characters."""

    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"

    def moved(self, line: int, column: int) -> Fault:
        """The same in a text whose part began at this line and column."""
        return Fault(self.line + line - 1, self.column + (column - 1 if self.line == 1 else 0), self.message)


class NotAnExpression(ValueError):
    """The text cannot be compiled."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


class NoValue(Exception):
    """With what it was given, the expression comes to nothing."""


class MissingValue(NoValue):
    """Something that it takes is not there."""


class TooLarge(NoValue):
    """What it comes to is over a limit."""


class NoRoom(TooLarge):
    """What all expressions together come to is."""

"""What the benchmarks found, as a table and as JSON lines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. `floor` is what the same machine did in the same run without Conveyor; `ratio` is value / floor."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    ratio: float | None = None

    @classmethod
    def of(cls, name: str, value: float, unit: str, floor: float | None = None) -> Figure:
        """A figure with its ratio."""
        return cls(name, round(value, 4), unit, None if floor is None else round(floor, 4), floor and value / floor)


def line(figure: Figure) -> str:
    """One row of the table."""
    floor = "" if figure.floor is None else f"{figure.floor:>12.3f}"
    ratio = "" if figure.ratio is None else f"{figure.ratio:>8.2f}"
    return f"{figure.name:<28}{figure.value:>12.3f} {figure.unit:<8}{floor:>12}{ratio:>8}"


HEADER = f"{'name':<28}{'value':>12} {'unit':<8}{'floor':>12}{'ratio':>8}"


def write_json(path: Path, figures: list[Figure]) -> None:
    """One object per line."""
    path.write_text("".join(json.dumps(asdict(figure)) + "\n" for figure in figures), encoding="utf-8")

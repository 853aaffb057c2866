"""How much work and memory an expression may take with the values that it has, before it begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.message import Message

from conveyor.expressions.errors import NoValue
from conveyor.expressions.syntax import Outline

TURNS = 10_000
"""Turns of all loops of one evaluation; the library ends there."""

MOST_WORK = 250_000_000
"""In bytes looked at, by all expressions of a step: about a quarter of a second, in which nothing else is done."""

_MEMORY = 64 << 20
_PER_ITEM = 25
_PER_COMPARISON = 600
"""Bytes that are looked at in the time that finding, or comparing, one item of a list takes."""
_PER_CALL = 75
_PER_ARITHMETIC = 400
_PER_PART = 150
"""The same for calling a function, for what arithmetic takes longer, and for making a part of a list."""


def work(outline: Outline, values: Mapping[str, object], literals: int) -> int:
    """What an evaluation takes, at most, in bytes looked at. Looks at values only when loops or long sums are at work.

    `literals` is how long what is written in the expression itself may be. Raises NoValue when it is more than one
    evaluation may take.
    """
    if not outline.depth and outline.growth <= 16:
        return 0
    longest = most = max(1, literals)
    for reference in outline.references:
        text, items = _extent(_find(values, reference.names))
        longest, most = max(longest, text), max(most, items)
    turns = min(TURNS, most**outline.depth) if outline.depth else 1
    longest *= outline.growth
    taken = turns * (
        outline.calls * _PER_CALL
        + outline.arithmetic * _PER_ARITHMETIC
        + outline.made * _PER_PART
        + outline.scans * (longest + _PER_ITEM * most)
        + outline.compares * (longest + _PER_COMPARISON * most)
    )
    if taken > MOST_WORK or (outline.growth > 1 and turns * longest > _MEMORY):
        raise NoValue(f"it would take too much work: it goes through lists of {most} items, or makes text too long")
    return taken


def _find(values: Mapping[str, object], names: tuple[str, ...]) -> Any:
    value: Any = values
    for name in names:
        try:
            value = value[name]
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
    return value


def _extent(value: Any) -> tuple[int, int]:
    """The bytes of the longest text in a value, and the items of its longest list or map."""
    if isinstance(value, str):
        return len(value), 0
    if isinstance(value, Mapping):
        return _extents(value.values(), len(value))
    if isinstance(value, list):
        return _extents(value, len(value))
    if isinstance(value, Message):
        return value.ByteSize(), 0
    return 0, 0


def _extents(items: Iterable[Any], count: int) -> tuple[int, int]:
    longest, most = 0, count
    for item in items:
        text, inner = _extent(item)
        longest, most = max(longest, text), max(most, inner)
    return longest, most

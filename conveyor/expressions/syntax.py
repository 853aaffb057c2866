"""What an expression refers to and how much it may do, read from its syntax tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any

from conveyor.cel.v1 import cel_pb2

_SCANS = frozenset({"_+_", "@in", "contains", "matches", "startsWith", "endsWith"})
_COMPARES = frozenset({"_==_", "_!=_"})
_ARITHMETIC = frozenset({"_+_", "_-_", "_*_", "_/_"})
_PLAIN_KEYS = frozenset({"_[_]"})
_OPTIONAL_KEYS = frozenset({"_?._", "_[?_]"})


@dataclass(frozen=True, slots=True)
class Reference:
    """A variable and the keys that follow it, as far as they are written out; `offset` is its place in the text.

    `sure`: evaluation fails when it is not there, unlike in has() and behind a question mark.
    """

    names: tuple[str, ...]
    offset: int
    sure: bool


@dataclass(frozen=True, slots=True)
class Outline:
    """What an expression refers to and how much it may do.

    `depth`: how many loops stand in each other at most. `calls`, `arithmetic` and `made` count what a loop does in each
    turn, whatever its values: functions and operators, those among them that are written in Python, and the parts of
    lists and maps that are made. `scans` and `compares` count what takes longer for longer values. `growth`: how many
    times as long as its longest input a text or list may become.
    """

    references: tuple[Reference, ...]
    depth: int
    calls: int
    arithmetic: int
    made: int
    scans: int
    compares: int
    growth: int


def outline(serialized: bytes) -> Outline:
    """Of a checked expression, as CEL serializes it."""
    checked = cel_pb2.CheckedExpr.FromString(Any.FromString(serialized).value)
    reader = _Reader(checked.source_info.positions)
    reader.visit(checked.expr, {})
    return Outline(
        tuple(reader.references),
        reader.depth,
        reader.calls,
        reader.arithmetic,
        reader.made,
        reader.scans,
        reader.compares,
        reader.growth,
    )


class _Reader:
    """Goes through a tree once. `bound` maps the variables of loops to how much their values may have grown."""

    def __init__(self, positions: Mapping[int, int]) -> None:
        self._positions = positions
        self._inside = 0
        self.references: list[Reference] = []
        self.depth = self.calls = self.arithmetic = self.made = self.scans = self.compares = 0
        self.growth = 1

    def visit(self, expr: cel_pb2.Expr, bound: Mapping[str, int]) -> int:
        """Read a node; how much its value may have grown."""
        chain = _chain(expr, bound)
        if chain is not None:
            names, first, sure = chain
            self.references.append(Reference(names, self._positions.get(first, 0), sure))
            return 1
        kind = expr.WhichOneof("expr_kind")
        if kind == "ident_expr":
            return bound.get(expr.ident_expr.name, 1)
        if kind == "select_expr":
            return self.visit(expr.select_expr.operand, bound)
        if kind == "call_expr":
            return self._call(expr.call_expr, bound)
        if kind == "list_expr":
            self.made += len(expr.list_expr.elements) if self._inside else 0
            return max(1, sum(self.visit(item, bound) for item in expr.list_expr.elements))
        if kind == "struct_expr":
            parts = [part for entry in expr.struct_expr.entries for part in (entry.map_key, entry.value)]
            self.made += len(parts) if self._inside else 0
            return max(1, sum(self.visit(part, bound) for part in parts))
        if kind == "comprehension_expr":
            return self._loop(expr.comprehension_expr, bound)
        return 1

    def _call(self, call: cel_pb2.Call, bound: Mapping[str, int]) -> int:
        parts = [call.target, *call.args] if call.HasField("target") else list(call.args)
        grown = [self.visit(part, bound) for part in parts]
        if self._inside:
            self.calls += 1
            self.arithmetic += call.function in _ARITHMETIC
        if self._inside and call.function in _SCANS:
            self.scans += 1
        elif self._inside and call.function in _COMPARES and not any(_small(part, bound) for part in parts):
            self.compares += 1
        if call.function != "_+_":
            return max(grown, default=1)
        self.growth = max(self.growth, sum(grown))
        return sum(grown)

    def _loop(self, loop: cel_pb2.Comprehension, bound: Mapping[str, int]) -> int:
        source = self.visit(loop.iter_range, bound)
        start = self.visit(loop.accu_init, bound)
        inner = {**bound, loop.iter_var: source, loop.accu_var: start}
        if loop.iter_var2:
            inner[loop.iter_var2] = source
        self._inside += 1
        self.depth = max(self.depth, self._inside)
        self.visit(loop.loop_condition, inner)
        step = self.visit(loop.loop_step, inner)
        self._inside -= 1
        return max(step, self.visit(loop.result, inner))


def _small(expr: cel_pb2.Expr, bound: Mapping[str, int]) -> bool:
    """Whether a comparison with it ends soon: a literal, or a part of what a loop goes over."""
    kind = expr.WhichOneof("expr_kind")
    if kind == "select_expr":
        return _small(expr.select_expr.operand, bound)
    return kind == "const_expr" or (kind == "ident_expr" and expr.ident_expr.name in bound)


def _chain(expr: cel_pb2.Expr, bound: Mapping[str, int]) -> tuple[tuple[str, ...], int, bool] | None:
    """A variable with the keys behind it, the node of the variable, and whether all of it must be there."""
    keys: list[str] = []
    sure = True
    while True:
        kind = expr.WhichOneof("expr_kind")
        if kind == "ident_expr":
            name = expr.ident_expr.name.removeprefix(".")
            return None if name in bound else ((name, *reversed(keys)), expr.id, sure)
        if kind == "select_expr":
            sure = sure and not expr.select_expr.test_only
            keys.append(expr.select_expr.field)
            expr = expr.select_expr.operand
            continue
        if kind != "call_expr" or expr.call_expr.function not in _PLAIN_KEYS | _OPTIONAL_KEYS:
            return None
        target, key = expr.call_expr.args
        if not key.const_expr.HasField("string_value"):
            return None
        sure = sure and expr.call_expr.function in _PLAIN_KEYS
        keys.append(key.const_expr.string_value)
        expr = target

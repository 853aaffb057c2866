"""Text with expressions in ${{ … }}, and values with such texts in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cel_expr_python import cel
from google.protobuf.struct_pb2 import Struct, Value

from conveyor.expressions import results
from conveyor.expressions.errors import Fault, NotAnExpression
from conveyor.expressions.expression import Expression

OPEN, CLOSE = "${{", "}}"
ESCAPED = "$${{"
"""Stands for what an expression begins with, as it is."""

Compile = Callable[[str], Expression]


@dataclass(frozen=True, slots=True)
class Part:
    """An expression within text; `line` and `column` are its place there."""

    expression: Expression
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Template:
    """Text with expressions: pieces of text and parts in turn. `whole`: it is one expression and nothing else."""

    pieces: tuple[str | Part, ...]
    whole: bool

    def parts(self) -> Iterator[Part]:
        """Its expressions."""
        return (piece for piece in self.pieces if isinstance(piece, Part))


Given = Iterator[cel.Value]
"""What expressions come to, in their order. Taking the next may raise NoValue."""


def compile_text(text: str, compiled: Compile) -> Template:
    """Text with expressions in it. Raises NotAnExpression, with places in the whole text."""
    pieces: list[str | Part] = []
    faults: list[Fault] = []
    plain, at = "", 0
    while (start := text.find(OPEN, at)) >= 0:
        if start and text[start - 1] == "$":
            plain += text[at : start - 1] + OPEN
            at = start + len(OPEN)
            continue
        plain += text[at:start]
        begin = start + len(OPEN)
        end = _end(text, begin)
        if end < 0:
            faults.append(_place(text, start, "${{ has no }}"))
            break
        inner = text[begin:end]
        padding = len(inner) - len(inner.lstrip())
        place = _place(text, begin + padding, "")
        if plain:
            pieces.append(plain)
            plain = ""
        try:
            pieces.append(Part(compiled(inner.strip()), place.line, place.column))
        except NotAnExpression as error:
            faults.extend(fault.moved(place.line, place.column) for fault in error.faults)
        at = end + len(CLOSE)
    if faults:
        raise NotAnExpression(tuple(faults))
    plain += text[at:]
    if plain or not pieces:
        pieces.append(plain)
    return Template(tuple(pieces), len(pieces) == 1 and isinstance(pieces[0], Part))


def render_text(template: Template, given: Given) -> str:
    """What it comes to where only text has a place. Raises NoValue."""
    return "".join([piece if isinstance(piece, str) else results.text(next(given)) for piece in template.pieces])


def texts(struct: Struct) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """All text with an expression in it, with the keys and indexes that lead there."""
    for key, value in struct.fields.items():
        yield from _texts(value, (key,))


def _texts(value: Value, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        if OPEN in value.string_value:
            yield keys, value.string_value
    elif kind == "struct_value":
        for key, item in value.struct_value.fields.items():
            yield from _texts(item, (*keys, key))
    elif kind == "list_value":
        for i, item in enumerate(value.list_value.values):
            yield from _texts(item, (*keys, i))


def spell(keys: tuple[str | int, ...], root: str = "params") -> str:
    """Keys and indexes as a path within params, or what `root` names."""
    return root + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def _place(text: str, offset: int, message: str) -> Fault:
    before = text[:offset]
    return Fault(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1, message)


def _end(text: str, at: int) -> int:
    """Where the }} of an expression is: not one within text or a map of it; -1 if nowhere."""
    depth = 0
    while at < len(text):
        char = text[at]
        if char in "'\"":
            at = _after_literal(text, at)
            continue
        if char == "{":
            depth += 1
        elif char == "}":
            if not depth and text.startswith(CLOSE, at):
                return at
            depth = max(0, depth - 1)
        at += 1
    return -1


def _after_literal(text: str, at: int) -> int:
    quote = text[at] * 3 if text.startswith(text[at] * 3, at) else text[at]
    raw = at > 0 and text[at - 1] in "rR" and not (at > 1 and (text[at - 2].isalnum() or text[at - 2] == "_"))
    at += len(quote)
    while at < len(text) and not text.startswith(quote, at):
        at += 2 if text[at] == "\\" and not raw else 1
    return at + len(quote)

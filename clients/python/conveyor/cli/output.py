"""Prints objects in the form that -o asks for. Data goes to standard output, everything else to standard error."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from google.protobuf.message import Message

from conveyor.cli.encode import encode_object
from conveyor.cli.kinds import KINDS, RESOURCE, RUN
from conveyor.cli.options import Settings
from conveyor.cli.terminal import coloured, columns, cut, is_terminal, note, one_line, padded, use_colour, width
from conveyor.cli.times import now
from conveyor.cli.yaml_writer import to_yaml

LOCK = "HeldLock"
_WORDS = {kind.name: kind.word for kind in KINDS}

Row = Sequence[str]


def label(message: Message) -> str:
    """The kind and name of an object, e.g. pipeline/build or resource/app/shop."""
    kind = message.DESCRIPTOR.name
    if kind == LOCK:
        return f"lock/{getattr(message, 'key')}"  # noqa: B009
    if kind == RUN.name:
        return f"{RUN.word}/{getattr(message, 'id')}"  # noqa: B009
    name: str = getattr(message, "name")  # noqa: B009
    if kind == RESOURCE.name:
        name = f"{getattr(message, 'definition')}/{name}"  # noqa: B009
    return f"{_WORDS[kind]}/{name}"


def print_object(settings: Settings, message: Message, describe: Callable[[datetime], str]) -> None:
    """Print one object."""
    if settings.output == "table":
        print(describe(now()))
    elif settings.output == "name":
        print(label(message))
    else:
        print_value(settings, encode_object(message))


def print_objects(
    settings: Settings, messages: Sequence[Message], header: Row, row: Callable[[Message, datetime], Row], what: str
) -> None:
    """Print a list of objects, of which there may be none."""
    if settings.output == "name":
        for message in messages:
            print(label(message))
    elif settings.output != "table":
        print_value(settings, [encode_object(message) for message in messages])
    elif messages:
        at = now()
        print(table(header, [row(message, at) for message in messages]))
    elif not settings.quiet:
        note(f"no {what}")


def print_value(settings: Settings, value: object) -> None:
    """Print a plain value as JSON or YAML."""
    if settings.output == "yaml":
        print(to_yaml(value), end="")
    else:
        print(json.dumps(value, indent=2, ensure_ascii=False))


def print_line(value: object) -> None:
    """Print a plain value as one line of JSON, at once."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def table(header: Row, rows: Iterable[Row]) -> str:
    """A table with aligned columns; on a terminal not wider than that."""
    cells = [tuple(header), *(tuple(one_line(cell) for cell in row) for row in rows)]
    colour = use_colour(sys.stdout)
    limit = columns() if is_terminal(sys.stdout) else 0
    used = [index for index in range(len(header)) if any(row[index] for row in cells[1:])]
    sizes = {index: max(width(row[index]) for row in cells) for index in used}
    return "\n".join(
        _row(row, sizes, header, limit, colour=colour and bool(number)) for number, row in enumerate(cells)
    )


def _row(row: Row, sizes: dict[int, int], header: Row, limit: int, *, colour: bool) -> str:
    parts: list[str] = []
    at = 0
    for index, size in sizes.items():
        cell = padded(row[index], size) if index != max(sizes) else row[index]
        if limit:
            cell = cut(cell, max(limit - at, 1))
        at += width(cell) + 2
        parts.append(coloured_cell(cell) if colour and header[index] == "STATE" else cell)
        if limit and at >= limit:
            break
    return "  ".join(parts).rstrip()


def coloured_cell(cell: str) -> str:
    """A padded state in its colour."""
    state = cell.rstrip()
    return coloured(state) + cell[len(state) :]


def block(pairs: Iterable[tuple[str, str]]) -> str:
    """Lines of names and values, those without a value left out."""
    shown = [(name, one_line(value)) for name, value in pairs if value]
    size = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name + ':':<{size + 2}}{value}" for name, value in shown)

"""What expressions come to, as values of JSON."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from cel_expr_python import cel
from google.protobuf.struct_pb2 import Value

from conveyor.core import limits
from conveyor.expressions.errors import NoRoom, NoValue, TooLarge

_EXACT = 2**53
NOT_JSON = frozenset({"BYTES", "TYPE", "optional_type"})
"""Static types that no JSON value has."""


def truth(value: cel.Value) -> bool:
    """Whether a condition holds. Raises NoValue."""
    if value.type() != cel.Type.BOOL:
        raise NoValue(f"it is {_called(value)}, neither true nor false")
    return bool(value.value())


def text(value: cel.Value) -> str:
    """What stands for the value within other text. Raises NoValue."""
    kind = value.type().name()
    plain = None if kind.startswith(("LIST", "MAP")) else _scalar(value)
    if isinstance(plain, str):
        return plain
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, float):
        return f"{plain:.0f}" if plain.is_integer() and abs(plain) <= _EXACT else repr(plain)
    raise NoValue(f"it is {_called(value)}, which has no place within other text")


def fill(target: Value, value: cel.Value, room: int) -> int:
    """Write the value as JSON; how many bytes of `room` are left. Raises NoValue, TooLarge, NoRoom."""
    return _fill(target, value, room, limits.STRUCT_NESTING - 1)


def _fill(target: Value, value: cel.Value, room: int, depth: int) -> int:
    kind = value.type().name()
    if kind.startswith("LIST"):
        if depth < 1:
            raise TooLarge(f"it is nested deeper than {limits.STRUCT_NESTING} levels")
        target.list_value.SetInParent()  # there, even if it is empty
        items = target.list_value.values
        for item in value.value():
            room = _fill(items.add(), item, _left(room, 1), depth - 1)
        return room
    if kind.startswith("MAP"):
        if depth < 1:
            raise TooLarge(f"it is nested deeper than {limits.STRUCT_NESTING} levels")
        target.struct_value.SetInParent()
        fields = target.struct_value.fields
        for key, item in value.value().items():
            if not isinstance(key, str):
                raise NoValue("a map has a key that is no text")
            room = _fill(fields[key], item, _left(room, len(key) + 4), depth - 1)
        return room
    plain = _scalar(value)
    if plain is None:
        target.null_value = 0  # type: ignore[assignment]
    elif isinstance(plain, bool):
        target.bool_value = plain
    elif isinstance(plain, str):
        room = _left(room, len(plain))
        target.string_value = plain
    else:
        target.number_value = plain
    return _left(room, 1)


def _left(room: int, taken: int) -> int:
    if room < taken:
        raise NoRoom
    return room - taken


def _scalar(value: cel.Value) -> str | bool | float | None:
    plain: Any = value.value()
    if plain is None or isinstance(plain, str | bool):
        return plain
    if isinstance(plain, int):
        if abs(plain) > _EXACT:
            raise NoValue(f"it is {plain}, which a double cannot hold")
        return float(plain)
    if isinstance(plain, float):
        if not math.isfinite(plain):
            raise NoValue(f"it is {plain}, which JSON does not have")
        return plain
    if isinstance(plain, dt.datetime):
        return plain.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(plain, dt.timedelta):
        return f"{plain.total_seconds():g}s"
    raise NoValue(f"it is {_called(value)}, which JSON does not have")


def _called(value: cel.Value) -> str:
    name = value.type().name().partition("<")[0].lower()
    return {"string": "text", "double": "a number", "int": "a number", "uint": "a number"}.get(name, f"a {name}")

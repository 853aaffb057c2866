"""What expressions come to, as values of JSON."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from cel_expr_python import cel

from conveyor.core import limits
from conveyor.expressions import encoding
from conveyor.expressions.errors import NoRoom, NoValue, TooLarge

_EXACT = 2**53
_OPTIONAL = "it is an optional; .orValue() gives it a value"
"""Said of the only kind of value that the library does not give out."""
NOT_JSON = frozenset({"BYTES", "TYPE", "optional_type"})
"""Static types that no JSON value has."""


class Room:
    """How many bytes are left for what the expressions of one field come to."""

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> None:
        """Raises NoRoom."""
        self._left -= size
        if self._left < 0:
            raise NoRoom

    def text(self, text: str) -> bytes:
        """A text as a value. Raises NoRoom."""
        data = text.encode()
        self._left -= len(data) + 1
        if self._left < 0:
            raise NoRoom
        return encoding.text(data)


def truth(value: cel.Value) -> bool:
    """Whether a condition holds. Raises NoValue."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise NoValue(f"it is {_called(value)}, neither true nor false")
    return plain


def text(value: cel.Value) -> str:
    """What stands for the value within other text. Raises NoValue."""
    plain = _plain(value)
    if isinstance(plain, str):
        return plain
    if not isinstance(plain, list | dict):
        plain = _scalar(plain, value)
        if isinstance(plain, str):
            return plain
        if isinstance(plain, bool):
            return "true" if plain else "false"
        if isinstance(plain, float):
            return f"{plain:.0f}" if plain.is_integer() and abs(plain) <= _EXACT else repr(plain)
    raise NoValue(f"it is {_called(value)}, which has no place within other text")


def encode(value: cel.Value, room: Room, depth: int = limits.STRUCT_NESTING - 1) -> bytes:
    """The value as JSON, a serialized google.protobuf.Value. Raises NoValue, TooLarge, NoRoom."""
    try:
        plain = value.value()
    except TypeError:
        raise NoValue(_OPTIONAL) from None
    if isinstance(plain, str):
        return room.text(plain)
    if isinstance(plain, list):
        _check(depth)
        return encoding.array(b"".join([encoding.item(_encode_item(each, room, depth)) for each in plain]))
    if isinstance(plain, dict):
        _check(depth)
        return encoding.mapping(b"".join([_encode_entry(key, each, room, depth) for key, each in plain.items()]))
    room.take(1)
    plain = _scalar(plain, value)
    if plain is None:
        return encoding.NULL
    if isinstance(plain, bool):
        return encoding.TRUE if plain else encoding.FALSE
    return room.text(plain) if isinstance(plain, str) else encoding.number(plain)


def _encode_item(value: cel.Value, room: Room, depth: int) -> bytes:
    room.take(1)
    return encode(value, room, depth - 1)


def _encode_entry(key: object, value: cel.Value, room: Room, depth: int) -> bytes:
    if not isinstance(key, str):
        raise NoValue("a map has a key that is no text")
    room.take(len(key) + 4)
    return encoding.entry(encoding.key(key), encode(value, room, depth - 1))


def _check(depth: int) -> None:
    if depth < 1:
        raise TooLarge(f"it is nested deeper than {limits.STRUCT_NESTING} levels")


def _plain(value: cel.Value) -> Any:
    """The value, or a list or map of such values. Raises NoValue."""
    try:
        return value.value()
    except TypeError:
        raise NoValue(_OPTIONAL) from None


def _scalar(plain: Any, value: cel.Value) -> str | bool | float | None:
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

"""Free-form values as plain Python values."""

from __future__ import annotations

import json
import math
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

PlainValue = dict[str, Any] | list[Any] | str | int | float | bool | None

_EXACT = 2.0**53


class Unrepresentable(ValueError):
    """The value cannot be JSON: it is too deep, not a number, or not set.

    `pointer` is a JSON pointer to the place, `too_deep` says which of them.
    """

    def __init__(self, pointer: str, message: str, *, too_deep: bool = False) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.too_deep = too_deep


def plain(struct: Struct, max_depth: int = 100) -> dict[str, Any]:
    """The struct as dicts and lists; whole numbers become integers. Raises Unrepresentable.

    `max_depth` bounds the levels of objects and lists, the outermost included.
    """
    return _object(struct, "", max_depth)


def json_bytes(value: PlainValue) -> int:
    """How many bytes the value takes as compact JSON in UTF-8."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text) if text.isascii() else len(text.encode())


def pointer(path: list[Any]) -> str:
    """A path of keys and indexes as a JSON pointer."""
    return "".join(f"/{escape(str(part))}" for part in path)


def escape(part: str) -> str:
    """One part of a JSON pointer."""
    return part.replace("~", "~0").replace("/", "~1")


def _object(struct: Struct, path: str, depth: int) -> dict[str, Any]:
    if depth < 1:
        raise Unrepresentable(path, "is nested too deeply", too_deep=True)
    return {key: _value(value, path, key, depth) for key, value in struct.fields.items()}


def _value(value: Value, path: str, key: str, depth: int) -> PlainValue:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        if number.is_integer():
            return int(number) if -_EXACT <= number <= _EXACT and (number or math.copysign(1, number) > 0) else number
        if math.isfinite(number):
            return number
        raise Unrepresentable(f"{path}/{escape(key)}", f"is {number}, which JSON does not have")
    if kind == "struct_value":
        return _object(value.struct_value, f"{path}/{escape(key)}", depth - 1)
    if kind == "bool_value":
        return value.bool_value
    if kind == "list_value":
        path = f"{path}/{escape(key)}"
        if depth < 2:
            raise Unrepresentable(path, "is nested too deeply", too_deep=True)
        return [_value(item, path, str(i), depth - 1) for i, item in enumerate(value.list_value.values)]
    if kind == "null_value":
        return None
    raise Unrepresentable(f"{path}/{escape(key)}", "has no value; write null for nothing")

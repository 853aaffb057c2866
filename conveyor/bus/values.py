"""JSON text to Struct and back, with nothing changed silently."""

from __future__ import annotations

import json
import math
from typing import Any

from google.protobuf import struct_pb2

MAX_NESTING = 32
"""Levels of objects and lists that a Struct may have; protobuf cannot read back much more."""

_EXACT = 1 << 53

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class BadValue(ValueError):
    """The value cannot be kept as it is; the text says where and why."""


def dumps(value: Any) -> str:
    """Compact JSON text, not escaped beyond need."""
    return _encode(value)


def loads(body: bytes | str) -> Any:
    """Reads JSON text. NaN, infinities and numbers without bound come as floats that `to_struct` refuses.

    Raises ValueError for what is no JSON text.
    """
    try:
        return json.loads(body)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError:
        # Python refuses to read an integer of thousands of digits; it is beyond any double anyway.
        return json.loads(body, parse_int=lambda digits: int(digits) if len(digits) < 400 else math.inf)


def to_struct(value: dict[str, Any], path: str = "") -> struct_pb2.Struct:
    """The object as a Struct. Raises BadValue, with the path, for what an IEEE double or a Struct cannot hold."""
    struct = struct_pb2.Struct()
    _fill_struct(struct, value, path, 1)
    return struct


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The Struct as an object; whole numbers are integers again."""
    return {key: _from_value(value) for key, value in struct.fields.items()}


def utf8(text: str) -> str:
    """The text with what UTF-8 cannot hold (lone surrogates, which JSON can spell) replaced by "?"."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def _fill_struct(struct: struct_pb2.Struct, value: dict[str, Any], path: str, depth: int) -> None:
    if depth > MAX_NESTING:
        raise BadValue(f"{path or 'it'} is nested deeper than {MAX_NESTING} levels")
    fields = struct.fields
    for key, item in value.items():
        _fill_value(fields[utf8(key)], item, f"{path}.{key}" if path else key, depth)


def _fill_value(target: struct_pb2.Value, value: Any, path: str, depth: int) -> None:
    match value:
        case None:
            target.null_value = struct_pb2.NULL_VALUE
        case bool():
            target.bool_value = value
        case str():
            target.string_value = utf8(value)
        case int():
            target.number_value = _number(value, path)
        case float():
            if not math.isfinite(value):
                raise BadValue(f"{path} is {value}, which is no JSON number")
            target.number_value = value
        case dict():
            # Set even when it is empty.
            target.struct_value.SetInParent()
            _fill_struct(target.struct_value, value, path, depth + 1)
        case list():
            if depth >= MAX_NESTING:
                raise BadValue(f"{path} is nested deeper than {MAX_NESTING} levels")
            items = target.list_value.values
            target.list_value.SetInParent()
            for i, item in enumerate(value):
                _fill_value(items.add(), item, f"{path}[{i}]", depth + 1)
        case _:
            raise BadValue(f"{path} is no JSON value")


def _number(value: int, path: str) -> float:
    if -_EXACT <= value <= _EXACT:
        return float(value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number != value:
        raise BadValue(f"{path} is an integer that a double cannot hold; send it as a string")
    return number


def _from_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            # Negative zero and what is not finite stay floats.
            if number.is_integer() and (number or math.copysign(1.0, number) > 0):
                return int(number)
            return number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_from_value(item) for item in value.list_value.values]
    return None

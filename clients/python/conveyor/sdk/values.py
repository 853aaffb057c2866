"""Free-form values: JSON as protobuf carries it, with IEEE doubles for numbers. Nothing changes silently."""

import math
from collections.abc import Mapping, Sequence

from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value

from conveyor.sdk.errors import ValueNotRepresentable

MAX_DEPTH = 32
# Above this JSON prints numbers with an exponent, in JavaScript and Go alike.
_PLAIN = 1e21


def to_struct(values: Mapping[str, object]) -> Struct:
    """A Struct of JSON-like values: None, bool, int, float, str, lists and tuples of them, mappings with text keys.

    ValueNotRepresentable, with the path, for anything that would arrive as something else: an integer that a double
    cannot hold, NaN and infinities, a key that is not text, text that is not Unicode, more than 32 levels, and other
    types. Dates and times are among those: send them as text, e.g. by `isoformat()`.
    """
    struct = Struct()
    _fill_struct(struct, values, "$", 1)
    return struct


def from_struct(struct: Struct) -> dict[str, object]:
    """The values of a Struct as a dict. Whole numbers come as int.

    Floats stay -0.0, because an int has no sign of zero, and those from 1e21 on, which JSON prints with an exponent.
    """
    return {key: from_value(value) for key, value in struct.fields.items()}


def from_value(value: Value) -> object:
    """A single value of a Struct. A value that nobody set is None."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        return _number(value.number_value)
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [from_value(each) for each in value.list_value.values]
    return None


def _number(number: float) -> int | float:
    if number.is_integer() and abs(number) < _PLAIN and (number or math.copysign(1, number) > 0):
        return int(number)
    return number


def _fill_struct(struct: Struct, values: Mapping[str, object], path: str, depth: int) -> None:
    if not isinstance(values, Mapping):
        raise ValueNotRepresentable(path, f"{type(values).__name__} is not a mapping")
    if depth > MAX_DEPTH:
        raise ValueNotRepresentable(path, f"more than {MAX_DEPTH} levels of nesting")
    fields = struct.fields
    for key, value in values.items():
        if not isinstance(key, str):
            raise ValueNotRepresentable(path, f"the key {key!r} is not a string; send it as a string")
        _check_text(key, path)
        _fill_value(fields[key], value, path, key, depth)


def _fill_value(target: Value, value: object, parent: str, key: str | int, depth: int) -> None:
    if value is None:
        target.null_value = NULL_VALUE
    elif isinstance(value, str):
        _check_text(value, parent, key)
        target.string_value = value
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int):
        target.number_value = _exact(value, parent, key)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueNotRepresentable(_path(parent, key), f"JSON has no {value}; send it as a string")
        target.number_value = value
    elif isinstance(value, Mapping):
        target.struct_value.SetInParent()
        _fill_struct(target.struct_value, value, _path(parent, key), depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        target.list_value.SetInParent()
        _fill_list(target.list_value, value, _path(parent, key), depth + 1)
    else:
        raise ValueNotRepresentable(
            _path(parent, key), f"{type(value).__name__} is not a JSON type; send it as a string"
        )


def _fill_list(target: ListValue, values: Sequence[object], path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueNotRepresentable(path, f"more than {MAX_DEPTH} levels of nesting")
    for index, value in enumerate(values):
        _fill_value(target.values.add(), value, path, index, depth)


def _exact(value: int, parent: str, key: str | int) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number != value:
        raise ValueNotRepresentable(
            _path(parent, key), f"the integer {_short(value)} does not fit a double; send it as a string"
        )
    return number


def _short(value: int) -> str:
    # Python refuses to print integers of more than some thousand digits.
    return str(value) if value.bit_length() < 256 else f"of {value.bit_length()} bits"


def _check_text(text: str, parent: str, key: str | int | None = None) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            where = parent if key is None else _path(parent, key)
            raise ValueNotRepresentable(where, "the text is not valid Unicode (a lone surrogate)") from None


def _path(parent: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{parent}[{key}]"
    return f"{parent}.{key}" if key.isidentifier() else f"{parent}[{key!r}]"

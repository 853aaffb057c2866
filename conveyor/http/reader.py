"""Messages from JSON, in protobuf's mapping and no looser: all that is wrong is told, with the path where it stands."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.core import errors, limits
from conveyor.core.errors import Violation

_MAX_VIOLATIONS = 100

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_DIGITS = re.compile(r"-?[0-9]{1,20}")
_BLANK = re.compile(r"[ \t\r\n]*")
# Each level of a free-form value is two of the parser's.
_PARSER_DEPTH = 4 * limits.STRUCT_NESTING


class _Wrong:
    """A value that could be read but has no meaning; whoever comes to it tells why, with the path that it has."""

    def __init__(self, why: str) -> None:
        self.why = why


def read(kind: type[Message], body: bytes) -> Message:
    """The one message of a body. Raises errors.InvalidRequest."""
    found = list(read_all(kind, body))
    if not found:
        raise errors.InvalidRequest("the body is empty: send a JSON object, at least {}")
    if len(found) > 1:
        raise errors.InvalidRequest("the body is no JSON: more follows after the object")
    return found[0]


def read_all(kind: type[Message], body: bytes) -> Iterator[Message]:
    """The messages of a body that has one JSON object after another, each in a line or over several.

    Raises errors.InvalidRequest.
    """
    for value in _values(body):
        message = kind()
        filler = _Filler()
        filler.message(value, message, "")
        if filler.found:
            raise errors.InvalidRequest(violations=filler.found)
        yield message


def _values(body: bytes) -> Iterator[Any]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.InvalidRequest(f"the body is no JSON: byte {error.start} is not UTF-8") from None
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
    at = _after_space(text, 0)
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise errors.InvalidRequest(f"the body is no JSON: {error.msg} at {where}") from None
        except RecursionError:
            raise errors.InvalidRequest("the body is nested too deeply") from None
        yield value
        at = _after_space(text, at)


def _after_space(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None
    return match.end()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                found[key] = _Wrong("stands twice")
            seen.add(key)
    return found


def _integer(text: str) -> int | _Wrong:
    # Python refuses to read integers of some thousand digits; no field takes one of a hundred.
    return int(text) if len(text) < 400 else _Wrong("the integer does not fit a double; send it as a string")


def _constant(text: str) -> _Wrong:
    return _Wrong(f"JSON has no {text}; send it as a string")


class _Filler:
    """Fills messages, and gathers what is wrong."""

    def __init__(self) -> None:
        self.found: list[Violation] = []

    def message(self, value: Any, message: Message, path: str) -> None:
        """Fill a message of any kind from its JSON."""
        if isinstance(message, Struct | Value):
            self._free_form(value, message, path)
        elif isinstance(message, Timestamp | Duration):
            self._time(value, message, path)
        elif isinstance(value, dict):
            self._fields(value, message, path)
        else:
            self._wrong(path, "an object", value)

    def _fields(self, value: dict[str, Any], message: Message, path: str) -> None:
        known = _fields(message.DESCRIPTOR)
        seen: dict[str, str] = {}
        for key, item in value.items():
            where = _child(path, key)
            field = known.get(key)
            if field is None:
                self._add(where, f"{message.DESCRIPTOR.name} has no such field")
                continue
            # A field has two names, and of a oneof only one field may be there.
            place = field.containing_oneof.name if field.containing_oneof is not None else field.name
            # Null is the default, but of a free-form value a value.
            if item is None and field.message_type is not Value.DESCRIPTOR:
                continue
            if place in seen:
                self._add(where, f"excludes {seen[place]}")
                continue
            seen[place] = key
            self._field(item, message, field, where)

    def _field(self, value: Any, message: Message, field: FieldDescriptor, path: str) -> None:
        target = getattr(message, field.name)
        if _is_map(field):
            self._map(value, target, field, path)
        elif field.is_repeated:
            self._list(value, target, field, path)
        elif field.message_type is not None:
            target.SetInParent()
            self.message(value, target, path)
        elif (scalar := self._scalar(value, field, path)) is not None:
            setattr(message, field.name, scalar)

    def _map(self, value: Any, target: Any, field: FieldDescriptor, path: str) -> None:
        if not isinstance(value, dict):
            self._wrong(path, "an object", value)
            return
        assert field.message_type is not None
        entry = field.message_type.fields_by_name["value"]
        for key, item in value.items():
            where = _child(path, key)
            if not _is_text(key):
                self._add(where, "is not Unicode: it has half of a pair of surrogates")
            elif entry.message_type is not None:
                self.message(item, target[key], where)
            elif (scalar := self._scalar(item, entry, where)) is not None:
                target[key] = scalar

    def _list(self, value: Any, target: Any, field: FieldDescriptor, path: str) -> None:
        if not isinstance(value, list):
            self._wrong(path, "a list", value)
            return
        for i, item in enumerate(value):
            where = f"{path}[{i}]"
            if field.message_type is not None:
                self.message(item, target.add(), where)
            elif (scalar := self._scalar(item, field, where)) is not None:
                target.append(scalar)

    def _scalar(self, value: Any, field: FieldDescriptor, path: str) -> Any:
        """The value for a field. None when it does not fit; then there is a violation more."""
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if not isinstance(value, str):
                self._wrong(path, "a string", value)
            elif _is_text(value):
                return value
            else:
                self._add(path, "is not Unicode: it has half of a pair of surrogates")
        elif kind == FieldDescriptor.CPPTYPE_BOOL:
            if isinstance(value, bool):
                return value
            self._wrong(path, "true or false", value)
        elif kind == FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return self._enum(value, field.enum_type, path)
        elif kind in _INTEGERS:
            return self._whole(value, _INTEGERS[kind], path)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        else:
            self._wrong(path, "a number", value)
        return None

    def _enum(self, value: Any, enum: EnumDescriptor, path: str) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool):
            return self._whole(value, _INTEGERS[FieldDescriptor.CPPTYPE_INT32], path)
        if not isinstance(value, str):
            self._wrong(path, f"the name of a value of {enum.name}", value)
        elif value in enum.values_by_name:
            return enum.values_by_name[value].number
        else:
            self._add(path, f"must be one of {', '.join(each.name for each in enum.values if each.number)}")
        return None

    def _whole(self, value: Any, bounds: tuple[int, int], path: str) -> int | None:
        number = value
        if (isinstance(value, str) and _DIGITS.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
            number = int(value)
        if isinstance(number, bool) or not isinstance(number, int):
            self._wrong(path, "a whole number", value)
        elif not bounds[0] <= number <= bounds[1]:
            self._add(path, f"must be from {bounds[0]} to {bounds[1]}")
        else:
            return number
        return None

    def _time(self, value: Any, message: Timestamp | Duration, path: str) -> None:
        example = '"3.5s"' if isinstance(message, Duration) else '"2030-01-31T12:00:00Z"'
        try:
            if isinstance(value, str):
                message.FromJsonString(value)
                return
        except ValueError:
            pass
        self._wrong(path, f"like {example}", value)

    def _free_form(self, value: Any, message: Struct | Value, path: str) -> None:
        if isinstance(message, Struct) and not isinstance(value, dict):
            self._wrong(path, "an object", value)
            return
        known = len(self.found)
        self._check_free(value, path, 0)
        if len(self.found) == known:
            json_format.ParseDict(value, message, max_recursion_depth=_PARSER_DEPTH)

    def _check_free(self, value: Any, path: str, depth: int) -> None:
        """Tell of all that would not arrive as it is."""
        if isinstance(value, dict | list):
            if depth >= limits.STRUCT_NESTING:
                self._add(path, f"has more than {limits.STRUCT_NESTING} levels of nesting")
                return
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                where = f"{path}/{_pointer(key)}"
                if isinstance(key, str) and not _is_text(key):
                    self._add(where, "is not Unicode: it has half of a pair of surrogates")
                else:
                    self._check_free(item, where, depth + 1)
        elif isinstance(value, str):
            if not _is_text(value):
                self._add(path, "is not Unicode: it has half of a pair of surrogates")
        elif isinstance(value, _Wrong):
            self._add(path, value.why)
        elif isinstance(value, int | float) and not _fits_double(value):
            self._add(
                path,
                f"the {'integer' if isinstance(value, int) else 'number'} does not fit a double; send it as a string",
            )

    def _wrong(self, path: str, wanted: str, value: Any) -> None:
        self._add(path, value.why if isinstance(value, _Wrong) else f"must be {wanted}, not {_kind(value)}")

    def _add(self, path: str, description: str) -> None:
        if len(self.found) < _MAX_VIOLATIONS:
            self.found.append(Violation(path, description))


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _fits_double(value: int | float) -> bool:
    try:
        return math.isfinite(value) and float(value) == value
    except OverflowError:
        return False


def _is_text(text: str) -> bool:
    """Whether it has no half of a pair of surrogates."""
    return text.isascii() or not any("\ud800" <= each <= "\udfff" for each in text)


def _child(path: str, key: str) -> str:
    step = key if key.replace("-", "_").isidentifier() else f"[{json.dumps(key)}]"
    return f"{path}.{step}" if path and not step.startswith("[") else f"{path}{step}"


def _pointer(key: str | int) -> str:
    """A step of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1").encode(errors="backslashreplace").decode()


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@cache
def _fields(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    return {field.name: field for field in descriptor.fields} | {field.json_name: field for field in descriptor.fields}

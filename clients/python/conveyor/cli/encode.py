"""Turns messages of the API into plain values for JSON and YAML.

The names are those of the protobuf JSON mapping; enum values stand without their prefix, and whole numbers as such.
"""

import math
from typing import cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.cli.decode import enum_prefix
from conveyor.sdk.values import from_struct, from_value

# Up to here Python writes a double with all of its digits.
_DIGITS = 1e16


def encode(message: Message) -> dict[str, object]:
    """The fields that are set, in the order of the proto."""
    fields = sorted(message.ListFields(), key=lambda item: item[0].number)
    return {field.json_name: _field(field, value) for field, value in fields}


def encode_object(message: Message) -> dict[str, object]:
    """The same with its kind first."""
    return {"kind": message.DESCRIPTOR.name, **encode(message)}


def enum_name(message: Message, field: str) -> str:
    """The short name of an enum's value, empty when it is unspecified."""
    number = getattr(message, field)
    return _enum(cast(FieldDescriptor, message.DESCRIPTOR.fields_by_name[field]), number) if number else ""


def _field(field: FieldDescriptor, value: object) -> object:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        entries = cast(dict[str, object], value)
        return {key: _single(entry, entries[key]) for key in sorted(entries)}
    if field.is_repeated:
        return [_single(field, each) for each in cast(list[object], value)]
    return _single(field, value)


def _single(field: FieldDescriptor, value: object) -> object:
    if isinstance(value, Timestamp | Duration):
        return value.ToJsonString()
    if isinstance(value, Struct):
        return _tidy(from_struct(value))
    if isinstance(value, Value):
        return _tidy(from_value(value))
    if isinstance(value, Message):
        return encode(value)
    if field.enum_type is not None:
        return _enum(field, cast(int, value))
    return _tidy(value)


def _enum(field: FieldDescriptor, number: int) -> str:
    enum = field.enum_type
    assert enum is not None
    value = enum.values_by_number.get(number)
    # A newer server may know more.
    return value.name.removeprefix(enum_prefix(enum)) if value else str(number)


def _tidy(value: object) -> object:
    """The value with sorted keys and whole numbers without a fraction; -0.0 has no other form."""
    if isinstance(value, dict):
        return {key: _tidy(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_tidy(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _DIGITS:
        return value if not value and math.copysign(1, value) < 0 else int(value)
    return value

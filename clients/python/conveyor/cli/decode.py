"""Turns a document into a message of the API, and says where it cannot."""

import difflib
import math
import re
from contextlib import suppress
from functools import cache
from typing import cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from conveyor.cli.durations import parse_duration
from conveyor.cli.nodes import Fault, Node, Scalar, child, shortened
from conveyor.sdk.errors import ValueNotRepresentable
from conveyor.sdk.values import MAX_DEPTH, to_struct

_DURATION = "google.protobuf.Duration"
_STRUCT = "google.protobuf.Struct"
_VALUE = "google.protobuf.Value"
# How many mistakes of one document are told.
MAX_FAULTS = 100
# What the server sets of any object: files may have it, because they may come from `get -o yaml`, and it is not read.
_SET_BY_SERVER = frozenset({"uid", "generation", "etag", "create_time", "update_time", "status"})

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def set_by_server(message: Message) -> frozenset[str]:
    """The fields of an object that the server sets."""
    return _SET_BY_SERVER.intersection(field.name for field in message.DESCRIPTOR.fields)


def decode(node: Node, message: Message, ignored: frozenset[str] = frozenset()) -> list[Fault]:
    """Fill a message from a mapping and return what is wrong with it, in the order of the document.

    Fields may be named as in the proto or as in its JSON; those in `ignored` are not read. Of more than MAX_FAULTS
    mistakes only one is returned beyond these.
    """
    decoder = _Decoder()
    with suppress(_Enough):
        decoder.message(node, message, "", ignored)
    return decoder.faults


def free_form(node: Node, path: str) -> object:
    """The JSON value of a node. Raises Fault for what would not arrive as it is."""
    decoder = _Decoder()
    value = decoder.plain(node, path, 0)
    if decoder.faults:
        raise decoder.faults[0]
    return value


def enum_value(descriptor: EnumDescriptor, text: str) -> int:
    """The number of an enum value, given by its short or full name. ValueError lists the names that there are."""
    prefix = enum_prefix(descriptor)
    name = text if text.startswith(prefix) else prefix + text
    value = descriptor.values_by_name.get(name) or descriptor.values_by_name.get(name.upper())
    if value is None or value.number == 0:
        names = ", ".join(each.name.removeprefix(prefix) for each in descriptor.values if each.number)
        raise ValueError(f"{shortened(text)!r} is not one of {names}")
    return value.number


@cache
def enum_prefix(descriptor: EnumDescriptor) -> str:
    """What the names of all values of an enum begin with: ORDER_ of ORDER_LIST."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", descriptor.name).upper() + "_"


@cache
def _alternatives(field: FieldDescriptor) -> tuple[int, ...]:
    """The numbers of the other fields of which a message has only one."""
    oneof = field.containing_oneof
    return tuple(each.number for each in oneof.fields if each.number != field.number) if oneof is not None else ()


class _Enough(Exception):
    """There are more mistakes than anybody reads."""


class _Decoder:
    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def message(self, node: Node, message: Message, path: str, ignored: frozenset[str] = frozenset()) -> None:
        if not isinstance(node.value, dict):
            self._wrong(node, path, "a mapping")
            return
        descriptor = cast(Descriptor, message.DESCRIPTOR)
        fields = fields_by_key(descriptor)
        seen: dict[int, str] = {}
        for key, value in node.value.items():
            where = child(path, key)
            field = fields.get(key)
            if value.wrong:
                self._fault(value.line, where, value.wrong)
            elif field is None:
                self._fault(node.line_of(key), where, f"unknown field{_suggestion(descriptor, key)}")
            elif field.number in seen:
                self._fault(node.line_of(key), where, f"stands twice, as {seen[field.number]} too")
            elif other := next((seen[each] for each in _alternatives(field) if each in seen), ""):
                self._fault(node.line_of(key), where, f"does not go together with {other}: give one of them")
            elif field.name not in ignored and value.value is not None:
                seen[field.number] = key
                self._field(value, message, field, where)

    def _field(self, node: Node, message: Message, field: FieldDescriptor, path: str) -> None:
        if is_map(field):
            self._map(node, message, field, path)
        elif field.is_repeated:
            if not isinstance(node.value, list):
                self._wrong(node, path, "a list")
                return
            target = getattr(message, field.name)
            for index, item in enumerate(node.value):
                where = f"{path}[{index}]"
                if field.message_type is not None:
                    self._message(item, target.add(), where)
                elif (value := self._scalar(item, field, where)) is not None:
                    target.append(value)
        elif field.message_type is not None:
            target = getattr(message, field.name)
            target.SetInParent()
            self._message(node, target, path)
        elif (value := self._scalar(node, field, path)) is not None:
            setattr(message, field.name, value)

    def _map(self, node: Node, message: Message, field: FieldDescriptor, path: str) -> None:
        if not isinstance(node.value, dict):
            self._wrong(node, path, "a mapping")
            return
        target = getattr(message, field.name)
        assert field.message_type is not None
        value_field = field.message_type.fields_by_name["value"]
        for key, item in node.value.items():
            where = child(path, key)
            if value_field.message_type is not None:
                self._message(item, target[key], where)
            elif (value := self._scalar(item, value_field, where)) is not None:
                target[key] = value

    def _message(self, node: Node, target: Message, path: str) -> None:
        kind = target.DESCRIPTOR.full_name
        try:
            if kind == _STRUCT:
                if not isinstance(node.value, dict):
                    self._wrong(node, path, "a mapping")
                    return
                value = {key: self.plain(each, child(path, key), 1) for key, each in node.value.items()}
                target.CopyFrom(to_struct(value))
            elif kind == _VALUE:
                target.CopyFrom(to_struct({"value": self.plain(node, path, 0)}).fields["value"])
            elif kind == _DURATION:
                self._duration(node, target, path)
            else:
                self.message(node, target, path)
        except ValueNotRepresentable as error:
            self._fault(node.line, path, str(error))

    def _duration(self, node: Node, target: Message, path: str) -> None:
        text = node.value if isinstance(node.value, str) else node.text
        if node.wrong or isinstance(node.value, dict | list | bool):
            self._wrong(node, path, 'a duration like "1h30m"')
            return
        try:
            seconds, nanos = parse_duration(text)
        except ValueError as error:
            self._fault(node.line, path, str(error))
        else:
            target.MergeFrom(type(target)(seconds=seconds, nanos=nanos))

    def _scalar(self, node: Node, field: FieldDescriptor, path: str) -> Scalar:
        """The value for a field. None when it does not fit; then there is a fault more."""
        value = node.value
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if isinstance(value, str):
                return value
            if isinstance(value, bool | int | float):
                self._fault(node.line, path, f'is {node.kind}, not text: quote this value: "{node.text}"')
            else:
                self._wrong(node, path, "text")
        elif kind == FieldDescriptor.CPPTYPE_BOOL:
            if isinstance(value, bool):
                return value
            self._wrong(node, path, "true or false")
        elif kind == FieldDescriptor.CPPTYPE_ENUM:
            return self._enum(node, field, path)
        elif kind in _INTEGERS:
            return self._integer(node, _INTEGERS[kind], path)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
            self._fault(node.line, path, f"the number {shortened(node.text)} is too large")
        else:
            self._wrong(node, path, "a number")
        return None

    def _enum(self, node: Node, field: FieldDescriptor, path: str) -> int | None:
        try:
            if isinstance(node.value, str) and field.enum_type is not None:
                return enum_value(field.enum_type, node.value)
            self._wrong(node, path, "a word")
        except ValueError as error:
            self._fault(node.line, path, str(error))
        return None

    def _integer(self, node: Node, bounds: tuple[int, int], path: str) -> int | None:
        value = node.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(node, path, "a whole number")
        elif not bounds[0] <= value <= bounds[1]:
            self._fault(node.line, path, f"must be from {bounds[0]} to {bounds[1]}")
        else:
            return value
        return None

    def plain(self, node: Node, path: str, depth: int) -> object:
        """The JSON value of a node. What would not arrive as it is is left out, and told."""
        value = node.value
        if node.wrong:
            self._fault(node.line, path, node.wrong)
        elif isinstance(value, dict | list) and depth >= MAX_DEPTH:
            self._fault(node.line, path, f"more than {MAX_DEPTH} levels of nesting")
        elif isinstance(value, dict):
            return {key: self.plain(each, child(path, key), depth + 1) for key, each in value.items()}
        elif isinstance(value, list):
            return [self.plain(each, f"{path}[{index}]", depth + 1) for index, each in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            self._unfit(node, path, "number")
        elif isinstance(value, int) and not isinstance(value, bool) and not _is_exact(value):
            self._unfit(node, path, "integer")
        else:
            return value
        return None

    def _unfit(self, node: Node, path: str, what: str) -> None:
        self._fault(node.line, path, f"the {what} {shortened(node.text)} does not fit a double; send it as a string")

    def _wrong(self, node: Node, path: str, wanted: str) -> None:
        self._fault(node.line, path, node.wrong or f"must be {wanted}, not {node.kind}")

    def _fault(self, line: int, path: str, message: str) -> None:
        self.faults.append(Fault(line, path, message))
        if len(self.faults) > MAX_FAULTS:
            raise _Enough


def _is_exact(value: int) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def is_map(field: FieldDescriptor) -> bool:
    """Whether it is a map, of keys that the user chooses."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@cache
def fields_by_key(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """The fields of a message by the keys that a document may have for them."""
    names = {field.name: field for field in descriptor.fields}
    return names | {field.json_name: field for field in descriptor.fields}


@cache
def _homes(descriptor: Descriptor) -> dict[str, str]:
    """The fields of the messages within, and where they belong."""
    homes: dict[str, str] = {}
    for field in descriptor.fields:
        inner = field.message_type
        if inner is not None and inner.file.package == descriptor.file.package and not is_map(field):
            for name in fields_by_key(inner):
                homes.setdefault(name, field.json_name)
            for name, home in _homes(inner).items():
                homes.setdefault(name, f"{field.json_name}.{home}")
    return homes


def _suggestion(descriptor: Descriptor, key: str) -> str:
    if key in _homes(descriptor):
        return f"; it belongs into {_homes(descriptor)[key]}"
    names = {name.lower(): name for name in (field.json_name for field in descriptor.fields)}
    close = difflib.get_close_matches(key.lower().replace("_", ""), names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else f"; there are {', '.join(sorted(names.values()))}"

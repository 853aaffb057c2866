"""Single rules that fields of requests must keep; `conveyor.api.validation` says which field has which."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

from conveyor.core import errors, limits
from conveyor.core.errors import Violation
from conveyor.core.names import is_step_id, name_fault
from conveyor.state.ids import is_run_id
from conveyor.state.structs import Unrepresentable, json_bytes, plain
from conveyor.v1 import errors_pb2

_DEPTH = limits.STRUCT_NESTING
_MS = 1_000_000
SECOND = 1000 * _MS
DAY = 24 * 3600 * SECOND


@dataclass(slots=True)
class Problems:
    """Collects what is wrong with a request."""

    found: list[Violation] = field(default_factory=list)

    def add(
        self,
        path: str,
        description: str,
        reason: errors_pb2.ErrorReason.ValueType = errors_pb2.ERROR_REASON_INVALID_FIELD,
    ) -> None:
        """The field breaks a rule."""
        self.found.append(Violation(path, description, reason))

    def too_large(self, path: str, description: str) -> None:
        """The field is over a limit."""
        self.add(path, description, errors_pb2.ERROR_REASON_TOO_LARGE)

    def raise_any(self) -> None:
        """Raise the error for what was found, if anything was."""
        if self.found:
            raise errors.refusal(self.found)


Check = Callable[[Problems, str, Any, str], None]
"""Checks one field of a message: problems, the path of the field in the request, the message, the field's name."""


def name(problems: Problems, path: str, message: Any, key: str) -> None:
    """A name that must be there."""
    _check_name(problems, path, getattr(message, key))


def optional_name(problems: Problems, path: str, message: Any, key: str) -> None:
    """A name, or nothing."""
    value = getattr(message, key)
    if value:
        _check_name(problems, path, value)


def step_id(problems: Problems, path: str, message: Any, key: str) -> None:
    """The id of a step in a run, instances of a matrix included."""
    value: str = getattr(message, key)
    if not is_step_id(value):
        _check_name(problems, path, value)


def optional_step_id(problems: Problems, path: str, message: Any, key: str) -> None:
    """The id of a step in a run, or nothing."""
    if getattr(message, key):
        step_id(problems, path, message, key)


def chosen(problems: Problems, path: str, message: Any, key: str) -> None:
    """An enum value that must be there."""
    if not getattr(message, key):
        problems.add(path, "is missing")


def names(problems: Problems, path: str, message: Any, key: str) -> None:
    """A list of names."""
    for i, value in enumerate(getattr(message, key)):
        _check_name(problems, f"{path}[{i}]", value)


def run_id(problems: Problems, path: str, message: Any, key: str) -> None:
    """A run's id."""
    if not is_run_id(getattr(message, key)):
        problems.add(path, "must be the id of a run: a UUID in lower case")


def optional_run_id(problems: Problems, path: str, message: Any, key: str) -> None:
    """A run's id, or nothing."""
    if getattr(message, key):
        run_id(problems, path, message, key)


def labels(problems: Problems, path: str, message: Any, key: str) -> None:
    """Labels, within their limits."""
    value: Mapping[str, str] = getattr(message, key)
    if not value:
        return
    if len(value) > limits.LABELS:
        problems.too_large(path, f"has {len(value)} entries; at most {limits.LABELS}")
        return
    for label, text in value.items():
        where = f'{path}["{label[:64]}"]'
        if not label:
            problems.add(path, "has an entry with an empty key")
        if (size := len(label.encode())) > limits.LABEL_KEY_BYTES:
            problems.too_large(where, f"has a key of {size} bytes; at most {limits.LABEL_KEY_BYTES}")
        if (size := len(text.encode())) > limits.LABEL_VALUE_BYTES:
            problems.too_large(where, f"has a value of {size} bytes; at most {limits.LABEL_VALUE_BYTES}")


def text(most: int) -> Check:
    """Text of at most so many bytes."""

    def check(problems: Problems, path: str, message: Any, key: str) -> None:
        value: str = getattr(message, key)
        if value and (size := len(value.encode())) > most:
            problems.too_large(path, f"has {size} bytes; at most {most}")

    return check


def one_line(most: int) -> Check:
    """Text of 1 to so many bytes that people can tell from others by its looks."""
    bounded = text(most)

    def check(problems: Problems, path: str, message: Any, key: str) -> None:
        given: str = getattr(message, key)
        if not given.strip():
            problems.add(path, "is missing")
        elif given != given.strip() or not given.isprintable():
            problems.add(path, "must be one line of printable text, without white space at its ends")
        bounded(problems, path, message, key)

    return check


def duration(least: int, most: int) -> Check:
    """A duration within bounds of nanoseconds, or nothing."""

    def check(problems: Problems, path: str, message: Any, key: str) -> None:
        if not message.HasField(key):
            return
        value: Duration = getattr(message, key)
        nanos = value.seconds * SECOND + value.nanos
        if not least <= nanos <= most or abs(value.nanos) >= SECOND or value.seconds * value.nanos < 0:
            hint = "" if nanos else "; leave it out for the default"
            problems.add(path, f"must be from {_spoken(least)} to {_spoken(most)}{hint}")

    return check


def number(least: float, most: float) -> Check:
    """An optional number within bounds."""

    def check(problems: Problems, path: str, message: Any, key: str) -> None:
        if message.HasField(key) and not least <= getattr(message, key) <= most:
            problems.add(path, f"must be from {least:g} to {most:g}")

    return check


def at_least_zero(problems: Problems, path: str, message: Any, key: str) -> None:
    """A number that is not negative."""
    if getattr(message, key) < 0:
        problems.add(path, "must not be negative")


def time(problems: Problems, path: str, message: Any, key: str) -> None:
    """A time of the years 1 to 9999, or nothing."""
    if message.HasField(key):
        value = getattr(message, key)
        if not (-62_135_596_800 <= value.seconds <= 253_402_300_799 and 0 <= value.nanos < SECOND):
            problems.add(path, "is no time of the years 1 to 9999")


def struct(most: int | None) -> Check:
    """Free-form values: JSON of at most so many bytes, not too deep, without NaN and infinities."""

    def check(problems: Problems, path: str, message: Any, key: str) -> None:
        value: Struct = getattr(message, key)
        if not value.fields:
            return
        try:
            document = plain(value, _DEPTH)
        except Unrepresentable as error:
            if error.too_deep:
                problems.too_large(path + error.pointer, f"is nested deeper than {_DEPTH} levels")
            else:
                problems.add(path + error.pointer, f"{error}; send it as a string")
            return
        if most is None:
            return
        if (size := json_bytes(document)) > most:
            problems.too_large(path, f"has {size} bytes as JSON; at most {most}")
        elif (size := value.ByteSize()) > limits.STORED_STRUCT_BYTES:
            text = f"takes {size} bytes where it is stored; at most {limits.STORED_STRUCT_BYTES}"
            problems.too_large(path, f"{text} (small numbers take more room there than in JSON)")

    return check


def value(problems: Problems, path: str, value: Value) -> None:
    """A free-form value: JSON that is not too deep, without NaN and infinities."""
    holder = Struct()
    holder.fields["value"].CopyFrom(value)
    try:
        plain(holder, _DEPTH)
    except Unrepresentable as error:
        where = path + error.pointer.removeprefix("/value")
        if error.too_deep:
            problems.too_large(where, f"is nested deeper than {_DEPTH} levels")
        else:
            problems.add(where, f"{error}; send it as a string")


def unsupported(problems: Problems, path: str, message: Any, key: str) -> None:
    """A field that the server does not act on yet."""
    value = getattr(message, key)
    present = message.DESCRIPTOR.fields_by_name[key].has_presence
    given = bool(value.fields) if isinstance(value, Struct) else message.HasField(key) if present else bool(value)
    if given:
        problems.add(path, "this server does not act on it yet", errors_pb2.ERROR_REASON_UNSUPPORTED_FIELD)


def known_enums(problems: Problems, path: str, message: Message) -> None:
    """Whether all enum values of the message, and of those in it, are numbers that the API names."""
    for key, shown, repeated, numbers in _enum_fields(message.DESCRIPTOR):
        values = getattr(message, key) if repeated else (getattr(message, key),)
        for i, value in enumerate(values):
            if value not in numbers:
                where = f"{_join(path, shown)}[{i}]" if repeated else _join(path, shown)
                problems.add(where, f"{value} is not a value that this server knows")
    for key, shown, repeated in _message_fields(message.DESCRIPTOR):
        if repeated:
            for i, item in enumerate(getattr(message, key)):
                known_enums(problems, f"{_join(path, shown)}[{i}]", item)
        elif message.HasField(key):
            known_enums(problems, _join(path, shown), getattr(message, key))


def _check_name(problems: Problems, path: str, value: str) -> None:
    fault = name_fault(value)
    if fault:
        problems.add(path, fault)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _spoken(nanos: int) -> str:
    if nanos > DAY and nanos % DAY == 0:
        return f"{nanos // DAY} days"
    for size, unit in ((3600 * SECOND, "h"), (SECOND, "s"), (_MS, "ms")):
        if nanos and nanos % size == 0:
            return f"{nanos // size} {unit}"
    return "0"


@functools.cache
def _enum_fields(descriptor: Descriptor) -> list[tuple[str, str, bool, frozenset[int]]]:
    return [
        (found.name, _shown(found), found.is_repeated, frozenset(found.enum_type.values_by_number))
        for found in descriptor.fields
        if found.enum_type is not None
    ]


@functools.cache
def _message_fields(descriptor: Descriptor) -> list[tuple[str, str, bool]]:
    """Fields with messages that have enums of ours somewhere in them; maps have none."""
    return [
        (found.name, _shown(found), found.is_repeated)
        for found in descriptor.fields
        if (kind := found.message_type) is not None
        and kind.full_name.startswith("conveyor.")
        and not kind.GetOptions().map_entry
        and (_enum_fields(kind) or _message_fields(kind))
    ]


def _shown(found: FieldDescriptor) -> str:
    # Paths say `finally`, as people write it, instead of `finally_steps`.
    return "finally" if found.json_name == "finally" else found.name

"""Finds the place in a document of a field that the server names."""

import re
from collections.abc import Iterator
from typing import cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from conveyor.cli.decode import fields_by_key, is_map
from conveyor.cli.nodes import Node

_INDEX = re.compile(r"(?:\[(\d{1,9})\]|/(\d{1,9}))(?=[./\[]|\Z)")
_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# What may follow a step of a path.
_NEXT = ("", ".", "/", "[")


def line_of(node: Node, message: Message, field: str) -> int:
    """The line of a field of the object that a document describes; of its nearest parent when it is not there.

    The path is as in errors: `pipeline.steps[0].lock`, `labels["a.b"]`, and `resource.spec/images/0` within free-form
    values.
    """
    descriptor: Descriptor | None = cast(Descriptor, message.DESCRIPTOR)
    rest = f".{field}"
    # The name that the object has in a request.
    own = "." + _WORD_BREAK.sub("_", message.DESCRIPTOR.name).lower()
    if rest.startswith(own) and rest[len(own) : len(own) + 1] in _NEXT:
        rest = rest[len(own) :]
    line = node.line
    while rest:
        step = _into(node, descriptor, rest)
        if step is None:
            break
        line, node, descriptor, rest = step
    return line


def _into(node: Node, descriptor: Descriptor | None, path: str) -> tuple[int, Node, Descriptor | None, str] | None:
    """The line, value and type of what the first step of a path leads to, and the path behind it."""
    if isinstance(node.value, list):
        match = _INDEX.match(path)
        index = int(match[1] or match[2]) if match else len(node.value)
        if match is None or index >= len(node.value):
            return None
        item = node.value[index]
        return item.line, item, descriptor, path[match.end() :]
    if not isinstance(node.value, dict):
        return None
    # Keys of free-form values may have dots, and stand in paths as they are: the longest that fits is meant.
    taken, key = max(
        (
            (len(step), key)
            for key in node.value
            for step in _spellings(key, descriptor)
            if path.startswith(step) and path[len(step) : len(step) + 1] in _NEXT
        ),
        default=(0, ""),
    )
    return (node.line_of(key), node.value[key], _type_of(key, descriptor), path[taken:]) if taken else None


def _spellings(key: str, descriptor: Descriptor | None) -> Iterator[str]:
    """How paths write a key."""
    field = fields_by_key(descriptor).get(key) if descriptor is not None else None
    for name in (field.name, field.json_name) if field is not None else (key,):
        yield f".{name}"
    yield f'["{key}"]'
    yield "/" + key.replace("~", "~0").replace("/", "~1")


def _type_of(key: str, descriptor: Descriptor | None) -> Descriptor | None:
    """The message that a key holds. None for values whose keys are of the user's choice."""
    field = fields_by_key(descriptor).get(key) if descriptor is not None else None
    if descriptor is None or field is None or is_map(field):
        return None
    inner = field.message_type
    return inner if inner is not None and inner.file.package == descriptor.file.package else None

"""Values of google.protobuf.Struct as they are serialized, written without the messages: a tenth of the work."""

from __future__ import annotations

import struct

from conveyor.core.wire import delimited, varint

_NUMBER = struct.Struct("<cd")

NULL = b"\x08\x00"
TRUE = b"\x20\x01"
FALSE = b"\x20\x00"


def number(value: float) -> bytes:
    """A number."""
    return _NUMBER.pack(b"\x11", value)


def text(value: bytes) -> bytes:
    """A text in UTF-8."""
    return delimited(b"\x1a", value)


def array(items: bytes) -> bytes:
    """A list; `items` are joined."""
    return delimited(b"\x32", items)


def item(value: bytes) -> bytes:
    """A value as an item of a list."""
    return delimited(b"\x0a", value)


def mapping(entries: bytes) -> bytes:
    """A map; `entries` are joined. By themselves they are a serialized Struct."""
    return delimited(b"\x2a", entries)


def key(name: str) -> bytes:
    """The beginning of an entry."""
    return delimited(b"\x0a", name.encode())


def entry(key: bytes, value: bytes) -> bytes:
    """An entry of a map: what `key` made, and a value."""
    content = b"".join((key, b"\x12", varint(len(value)), value))
    return b"".join((b"\x0a", varint(len(content)), content))

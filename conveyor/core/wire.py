"""Pieces of serialized messages, written without the messages."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor

_SHORT = [bytes((number,)) for number in range(128)]


def tag(field: FieldDescriptor) -> bytes:
    """What a message, text or bytes in this field begins with."""
    return varint(field.number << 3 | 2)


def delimited(tag: bytes, content: bytes) -> bytes:
    """A field with a serialized message, text or bytes."""
    size = len(content)
    return b"".join((tag, _SHORT[size] if size < 128 else varint(size), content))


def varint(number: int) -> bytes:
    """A number that is not negative."""
    if number < 128:
        return _SHORT[number]
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)

"""What was read and may be used again without reading, as long as a guard says that it is still so."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Versioned(Generic[M]):
    """An object as it is stored, and the revision of its last change. The object is shared: never change it."""

    object: M
    mod_revision: int


class Cache:
    """The objects that were used last, by their store keys, bounded by the bytes that they take when serialized."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[str, tuple[Versioned[Message], int]] = OrderedDict()

    def get(self, key: str) -> Versioned[Message] | None:
        """What is known of the key."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: str, value: Versioned[Message], size: int) -> None:
        """Remember it, unless something newer is known."""
        entry = self._entries.get(key)
        if entry is not None and entry[0].mod_revision > value.mod_revision:
            return
        self.drop(key)
        self._entries[key] = (value, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self._bytes -= dropped

    def drop(self, key: str) -> None:
        """Forget it."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]

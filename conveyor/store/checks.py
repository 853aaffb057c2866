"""What both drivers check of keys and commits before anything goes out."""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.store.port import MAX_COMMIT_BYTES, MAX_OPERATIONS, Guard, Put, TooLarge

_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


def key_size(key: str) -> int:
    """Bytes of `key` in UTF-8; raises ValueError for what cannot be a key."""
    if not key or "\0" in key:
        raise ValueError(f"a key is text without NUL, not {key!r}")
    return len(key) if key.isascii() else len(key.encode())


def commit_size(guards: Sequence[Guard], puts: Sequence[Put], deletes: Sequence[str]) -> int:
    """Bytes of all keys and values of a commit.

    Raises TooLarge beyond the bounds of the port, and ValueError for a key that stands twice.
    """
    operations = len(puts) + len(deletes)
    if operations > MAX_OPERATIONS or len(guards) > MAX_OPERATIONS:
        raise TooLarge(
            f"{operations} operations and {len(guards)} guards: a commit has at most {MAX_OPERATIONS} of each"
        )
    written = {put.key for put in puts}
    written.update(deletes)
    if len(written) != operations:
        raise ValueError("a key stands twice among the puts and deletes of one commit")
    size = 0
    for put in puts:
        size += key_size(put.key) + len(put.value)
    for guard in guards:
        size += key_size(guard.key)
    for key in deletes:
        size += key_size(key)
    if size > MAX_COMMIT_BYTES:
        raise TooLarge(f"{size} bytes: a commit has at most {MAX_COMMIT_BYTES}")
    return size


def prefix_end(prefix: str) -> str:
    """The least text greater than every text that begins with `prefix`; "" when there is none.

    Code points order like their UTF-8 bytes, so the result bounds a range of texts and of bytes alike.
    """
    for index in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[index]) + 1
        if point in _SURROGATES:
            point = _SURROGATES.stop
        if point <= _LAST_CODE_POINT:
            return prefix[:index] + chr(point)
    return ""

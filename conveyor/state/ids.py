"""Run ids: UUIDs of version 7 (RFC 9562), which sort by the time of their creation."""

from __future__ import annotations

import base64
import os
import re
import uuid

_MASK_COUNTER = 0xFFF
_POOL_BYTES = 4096
_FORM = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class RandomBytes:
    """The system's randomness, drawn in pieces: each call to the system costs more than all else that an id takes."""

    def __init__(self) -> None:
        self._pool = b""
        self._used = 0

    def take(self, count: int) -> bytes:
        """`count` bytes that nobody can guess."""
        if self._used + count > len(self._pool):
            self._pool, self._used = os.urandom(_POOL_BYTES), 0
        self._used += count
        return self._pool[self._used - count : self._used]

    def token(self) -> str:
        """Sixteen characters that nobody can guess."""
        return base64.urlsafe_b64encode(self.take(12)).decode()


class RunIds:
    """Makes run ids that ascend within this process, also within one millisecond and when the clock steps back."""

    def __init__(self) -> None:
        self._last = 0
        self._random = RandomBytes()

    def new(self, now: int) -> str:
        """A new id for the time `now` (microseconds since 1970)."""
        # 48 bits of milliseconds, then 12 bits that count on from the microseconds: method 3 of RFC 9562, section 6.2.
        milliseconds, rest = divmod(now, 1000)
        stamp = max((milliseconds << 12) | (rest * 4096 // 1000), self._last + 1)
        self._last = stamp
        value = (stamp >> 12) << 80 | 0x7 << 76 | (stamp & _MASK_COUNTER) << 64 | 0b10 << 62
        value |= int.from_bytes(self._random.take(8), "big") >> 2
        return str(uuid.UUID(int=value))


def is_run_id(text: str) -> bool:
    """Whether the text has the form of a run id, so that it may stand in a key."""
    return _FORM.fullmatch(text) is not None


def first_id_at(now: int) -> str:
    """The smallest id that a run created at `now` (microseconds since 1970) can have."""
    milliseconds = max(0, min(now // 1000, (1 << 48) - 1))
    return str(uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62))


def created_at(run_id: str) -> int:
    """The time of the creation of a run (microseconds since 1970) as its id says it, to the millisecond."""
    return (uuid.UUID(run_id).int >> 80) * 1000

"""Run ids: UUIDs of version 7 (RFC 9562), which sort by the time of their creation."""

from __future__ import annotations

import secrets
import uuid

_MASK_COUNTER = 0xFFF


class RunIds:
    """Makes run ids that ascend within this process, also within one millisecond and when the clock steps back."""

    def __init__(self) -> None:
        self._last = 0

    def new(self, now: int) -> str:
        """A new id for the time `now` (microseconds since 1970)."""
        # 48 bits of milliseconds, then 12 bits that count on from the microseconds: method 3 of RFC 9562, section 6.2.
        milliseconds, rest = divmod(now, 1000)
        stamp = max((milliseconds << 12) | (rest * 4096 // 1000), self._last + 1)
        self._last = stamp
        value = (stamp >> 12) << 80 | 0x7 << 76 | (stamp & _MASK_COUNTER) << 64 | 0b10 << 62 | secrets.randbits(62)
        return str(uuid.UUID(int=value))


def is_run_id(text: str) -> bool:
    """Whether the text has the form of a run id, so that it may stand in a key."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def first_id_at(now: int) -> str:
    """The smallest id that a run created at `now` (microseconds since 1970) can have."""
    milliseconds = max(0, min(now // 1000, (1 << 48) - 1))
    return str(uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62))

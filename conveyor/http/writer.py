"""Messages and errors as JSON, each in one line."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

_ON_THE_LOOP_BYTES = 16 << 10
"""Larger messages are written in a thread."""

# From here on JavaScript prints numbers with an exponent.
_PLAIN = 1e21


async def write(message: Message) -> bytes:
    """The message in protobuf's JSON mapping."""
    if message.ByteSize() <= _ON_THE_LOOP_BYTES:
        return _write(message)
    return await asyncio.to_thread(_write, message)


def _write(message: Message) -> bytes:
    return to_line(_tidy(json_format.MessageToDict(message)))


def _tidy(value: Any) -> Any:
    """The value with whole numbers without a fraction; -0.0 has no other form."""
    if isinstance(value, dict):
        return {key: _tidy(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_tidy(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _PLAIN:
        return value if not value and math.copysign(1, value) < 0 else int(value)
    return value


def to_line(value: Any) -> bytes:
    """JSON without line ends."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

"""Messages and errors as JSON, each in one line."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

_ON_THE_LOOP_BYTES = 16 << 10
"""Larger messages are written in a thread."""


async def write(message: Message) -> bytes:
    """The message in protobuf's JSON mapping."""
    if message.ByteSize() <= _ON_THE_LOOP_BYTES:
        return _write(message)
    return await asyncio.to_thread(_write, message)


def _write(message: Message) -> bytes:
    return to_line(json_format.MessageToDict(message))


def to_line(value: Any) -> bytes:
    """JSON without line ends."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

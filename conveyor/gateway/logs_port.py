"""What the gateway needs of the logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from conveyor.v1 import log_pb2


class Logs(Protocol):
    """Stores lines."""

    async def append(self, namespace: str, lines: Sequence[log_pb2.LogLine], driver: str) -> list[log_pb2.LogAck]:
        """Store lines of one or several attempts; how far those of each are stored. Raises when it cannot."""
        ...

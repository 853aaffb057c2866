"""Named points at which a crash test may kill the process.

`CONVEYOR_FAILPOINTS` holds a comma separated list of `name=kill` (at the first hit) and `name=kill:N` (at the
N-th hit). Without it a failpoint is one comparison with a module constant.
"""

from __future__ import annotations

import os
import signal
import threading


def _parse(text: str) -> dict[str, int]:
    """Remaining hits by name; raises ValueError for anything that is not understood, rather than test nothing."""
    points: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, action = item.partition("=")
        verb, _, count = action.partition(":")
        hits = int(count or "1")
        if not name or verb != "kill" or hits < 1:
            raise ValueError(f"CONVEYOR_FAILPOINTS: {item!r} is not name=kill or name=kill:N")
        points[name] = hits
    return points


_remaining = _parse(os.environ.get("CONVEYOR_FAILPOINTS", ""))
_ARMED = bool(_remaining)
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL if `name` is armed and this is the hit it waits for."""
    if not _ARMED:
        return
    with _lock:
        if name not in _remaining:
            return
        _remaining[name] -= 1
        if _remaining[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

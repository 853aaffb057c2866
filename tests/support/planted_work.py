"""What drivers do that `conveyor driver verify` must find something wrong with. A fault has the name of its check."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_SHORT = 64 * 1024


class Done(NamedTuple):
    """How an attempt ended."""

    outcome: str
    message: str = ""
    data: Mapping[str, Any] = {}


async def work(spec: Mapping[str, Any], write: Callable[[str], None], fault: str) -> Done:
    """Does what the spec says, as docs/conformance.md has it. Cancelled, it says so unless it is to ignore that."""
    for line in spec.get("log", []):
        write(line[:_SHORT] if fault == "long-line" else line)
    end = asyncio.get_running_loop().time() + spec.get("seconds", 0)
    while (left := end - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            if fault != "cancels":
                return Done("CANCELLED")
    if "fail" in spec:
        return Done("SUCCEEDED" if fault == "fails" else "FAILED", spec["fail"])
    if fault == "succeeds" and not spec:
        return Done("FAILED", "there is nothing to do")
    data = spec.get("data", {})
    return Done("SUCCEEDED", data={key: str(value) for key, value in data.items()} if fault == "data" else data)


def on_sigterm(drain: Callable[[], None], fault: str) -> None:
    """Drain when told to, or end at once."""
    if fault != "drains":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drain)

"""The command `conveyor` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CONVEYOR = str(Path(sys.executable).parent / "conveyor")


@dataclass(frozen=True, slots=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


class Cli:
    """Runs commands before one server and namespace. Methods block, but briefly."""

    def __init__(self, address: str = "", namespace: str = "", **environment: str) -> None:
        self.environment: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CONVEYOR_")},
            "NO_COLOR": "1",
            # Many servers run at a time, and each would take the same port.
            "CONVEYOR_HTTP_LISTEN": "",
            **({"CONVEYOR_ADDRESS": address} if address else {}),
            **({"CONVEYOR_NAMESPACE": namespace} if namespace else {}),
            **environment,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [CONVEYOR, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> Done:
        """Run a command to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout=60)
        return Done(process.returncode, out, err)

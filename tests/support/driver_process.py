"""A test driver as a process of its own: it can be killed. Run as a program, it is that driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class DriverProcess:
    """`behaviour` and its arguments as in `tests.support.behaviour.KINDS`. Methods block, all but briefly."""

    def __init__(self, name: str, *behaviour: str, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.support.driver_process", name, *behaviour],
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stderr=sink,
            )

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait(10)

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, within: float = 60.0) -> int:
        """Its exit code."""
        return self._process.wait(within)


def main() -> None:
    """The driver."""
    from conveyor.sdk import Driver
    from tests.support.behaviour import KINDS

    name, kind, *arguments = sys.argv[1:]
    driver = Driver(name)
    driver.reconcile(KINDS[kind](*arguments))
    driver.run([])


if __name__ == "__main__":
    main()

"""The processes of the demo: started, watched over, and all ended with it."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

GUARD = Path(__file__).with_name("guard.py")


class DemoError(Exception):
    """The demo can't go on; the text says why."""


class Processes:
    """Each runs under a guard, hence ends when the demo does, however that happens."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = environment
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def log(self, name: str) -> Path:
        """The file with what a process writes."""
        return self._logs / f"{name}.log"

    def start(self, name: str, *command: str | Path) -> None:
        """Start one that lasts; what it writes goes into its log."""
        with self.log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, GUARD, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # Ctrl-C is for the demo, which then ends its processes in order.
                start_new_session=True,
            )

    def run(self, *command: str | Path) -> int:
        """Run one in the terminal to its end. DemoError when one of the others ends meanwhile."""
        process = subprocess.Popen(
            [sys.executable, GUARD, *command],
            stdin=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        try:
            return self.until(process.poll)
        finally:
            _let_go(process)
            process.wait()

    def until(self, condition: Callable[[], T | None], seconds: float = 3600) -> T:
        """Wait for a condition and return what it yields. DemoError when a process ends meanwhile."""
        give_up = time.monotonic() + seconds
        while (value := condition()) is None:
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise DemoError(f"{name} ended with exit status {process.returncode}:\n{self._last_words(name)}")
            if time.monotonic() > give_up:
                raise DemoError(f"waited {seconds:g} s in vain")
            time.sleep(0.05)
        return value

    def stop(self) -> None:
        """End all, the one that was started first, on which the others depend, last."""
        running = list(self._running.values())
        for together in (running[1:], running[:1]):
            for process in together:
                _let_go(process)
            for process in together:
                process.wait()
        self._running.clear()

    def _last_words(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in [*lines[-10:], f"({self.log(name)})"])


def _let_go(process: "subprocess.Popen[bytes]") -> None:
    """Let go of the guard's rope, so that it ends its command."""
    if process.stdin is not None:
        process.stdin.close()

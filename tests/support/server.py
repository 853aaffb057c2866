"""A real Conveyor server in a process of its own: started, stopped, killed, frozen, and started again."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tests.support.ports import free_port


class ServerFailed(Exception):
    """The server ended before it was ready; the text is what it wrote."""


class ConveyorServer:
    """`conveyor server …` as a child. All methods block: they are quick, and async tests call them in threads.

    `mode` is "dev" or "start"; `arguments` follow it. Its data directory, its port and the broker's port stay the same
    over restarts. `program` is the command that takes `server …`, by default the one that is installed.
    """

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str] = (),
        *,
        mode: str = "dev",
        environment: dict[str, str] | None = None,
        program: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.log = directory / "server.log"
        self.address = ""
        self._mode = mode
        self._arguments = list(arguments)
        self._environment = {} if environment is None else environment
        self._program = list(program) or [str(Path(sys.executable).parent / "conveyor")]
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, within: float = 60.0) -> ConveyorServer:
        """Start it and wait for its ready line. Raises ServerFailed."""
        self.spawn()
        self.wait_ready(within=within)
        return self

    def spawn(self) -> None:
        """Start it without waiting."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [*self._program, "server", self._mode]
        if self._mode == "dev":
            command += ["--data-dir", str(self.directory / "data")]
        command += ["--listen", self.address or f"127.0.0.1:{free_port()}", "--metrics-listen", "", *self._arguments]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    "CONVEYOR_LOG_FORMAT": "console",
                    "CONVEYOR_HTTP_LISTEN": "",
                    **self._environment,
                },
            )

    def wait_ready(self, *, within: float = 60.0) -> None:
        """Wait for the ready line, and learn the address from it. Raises ServerFailed."""
        assert self._process is not None
        assert self._process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, lines), daemon=True).start()
        deadline = time.monotonic() + within
        while True:
            try:
                line = lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                self.kill()
                raise ServerFailed(self.log.read_text())
            if line.startswith("ready: listening on "):
                self.address = line.removeprefix("ready: listening on ").split(",")[0].strip()
                return

    def stop(self, *, within: float = 30.0) -> int:
        """SIGTERM, and wait for the end; returns the exit code."""
        return self.signal_and_wait(signal.SIGTERM, within)

    def kill(self) -> int:
        """SIGKILL; returns the exit code."""
        return self.signal_and_wait(signal.SIGKILL, 10.0)

    def signal_and_wait(self, number: int, within: float) -> int:
        """Send a signal, and wait for the end; returns the exit code."""
        self.send(number)
        return self.wait(within)

    def send(self, number: int) -> None:
        """Send a signal to a process that lives."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, within: float = 30.0) -> int:
        """Wait for the end; returns the exit code."""
        assert self._process is not None
        code = self._process.wait(within)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def freeze(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    try:
        for line in stream:
            lines.put(line)
    except ValueError:
        pass  # closed by stop
    lines.put(None)

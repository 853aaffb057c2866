"""Real etcd servers for tests: found, started on ports that are free, and stopped."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.ports import free_port

TOOLS = Path(__file__).resolve().parents[2] / ".tools"
VERSIONS = ("3.4", "3.7")
_START_S = 60
_SERVING = '"msg":"serving client traffic'


def find(version: str) -> Path | None:
    """The etcd of a version, if it is here."""
    candidates = [TOOLS / f"etcd-{version}" / "etcd"]
    if on_path := shutil.which("etcd"):
        candidates.append(Path(on_path))
    for candidate in candidates:
        if candidate.exists() and f"etcd Version: {version}." in _version(candidate):
            return candidate
    return None


def binary(version: str) -> Path:
    """The etcd of a version. Without it the test is skipped, or fails in CI, where nothing may be missing."""
    if program := find(version):
        return program
    message = f"no etcd {version} is here: run scripts/fetch_etcd.py"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def _version(program: Path) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


def etcdctl() -> Path:
    """The etcdctl of etcd 3.4. Without it the test is skipped, or fails in CI, where nothing may be missing."""
    program = TOOLS / "etcd-3.4" / "etcdctl"
    if not program.exists():
        message = "no etcdctl 3.4 is here: run scripts/fetch_etcd.py"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return program


class Etcd:
    """One member in a process of its own. Methods block; a coroutine calls them by `asyncio.to_thread`."""

    def __init__(self, program: Path, directory: Path, arguments: Sequence[str] = (), scheme: str = "http") -> None:
        self._program = program
        self._directory = directory
        self._arguments = list(arguments)
        self._scheme = scheme
        self._token = secrets.token_hex(8)
        self._process: subprocess.Popen[str] | None = None
        self._log: deque[str] = deque(maxlen=200)
        self.address = f"127.0.0.1:{free_port()}"
        """`host:port`, known from the first start on and kept over restarts."""

    @property
    def url(self) -> str:
        """The client URL."""
        return f"{self._scheme}://{self.address}"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when the server serves clients, with the data of an earlier start."""
        assert self._process is None
        peer = "http://127.0.0.1:0"
        command = [
            *(self._program, "--data-dir", self._directory, "--logger", "zap", "--log-outputs", "stderr"),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}", "--initial-cluster-token", self._token),
            *self._arguments,
        ]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        serving = threading.Event()
        threading.Thread(target=self._follow, args=(self._process, serving), daemon=True).start()
        if not serving.wait(_START_S) or self._process.poll() is not None:
            self.kill()
            raise RuntimeError("etcd did not start:\n" + "".join(self._log))

    def _follow(self, process: subprocess.Popen[str], serving: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self._log.append(line)
                if _SERVING in line:
                    self.address = line.split('"address":"')[1].split('"')[0]
                    serving.set()
        # The end of the log is the end of the process.
        serving.set()

    def kill(self) -> None:
        """SIGKILL; `start` may follow."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; `start` may follow. A server that does not run is no error."""
        if self._process is not None:
            self.resume()
            self._end(signal.SIGTERM)

    def save(self, file: Path) -> None:
        """Write etcd's own snapshot to `file`."""
        self._control("--endpoints", self.address, "snapshot", "save", file)

    def restore(self, file: Path) -> None:
        """Put the stopped server back to a snapshot, as the cluster that it was; `start` may follow."""
        shutil.rmtree(self._directory)
        peer = "http://127.0.0.1:0"
        self._control(
            *("snapshot", "restore", file, "--data-dir", self._directory, "--initial-cluster", f"default={peer}"),
            *("--initial-advertise-peer-urls", peer, "--initial-cluster-token", self._token),
        )

    def _control(self, *arguments: str | Path) -> None:
        environment = {**os.environ, "ETCDCTL_API": "3"}
        subprocess.run([etcdctl(), *arguments], env=environment, check=True, capture_output=True)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nobody answers."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        try:
            self._process.wait(_START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

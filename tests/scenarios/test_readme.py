"""README.md says what is so: its tour is walked, and its links and targets are there."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

TREE = Path(__file__).resolve().parents[2]
README = (TREE / "README.md").read_text()
PATH = os.pathsep.join([str(Path(sys.executable).parent), str(TREE / ".tools" / "bin"), os.environ["PATH"]])
# What the README shows; here the server takes a free port.
ADDRESS = "127.0.0.1:7460"
PATIENCE = 60


class Command(NamedTuple):
    """A command of the tour and what it prints."""

    text: str
    output: list[str]

    @property
    def stays(self) -> bool:
        """Whether the reader leaves it running in a terminal of its own."""
        return self.text.endswith("# leave it running") or self.text.endswith("# leave them running")


def steps() -> Iterator[tuple[str, str] | Command]:
    """The files to save, by name, and the commands to type, in the order of the tour."""
    tour = README.partition("\n## The tour")[2].partition("\n## ")[0]
    for kind, name, body in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", tour, re.MULTILINE | re.DOTALL):
        if name:
            yield name, body
        elif kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                text, *output = part.splitlines()
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


def test_the_tour_goes_as_it_says(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVEYOR_")}
    environment |= {
        "PATH": PATH,
        "HOME": str(tmp_path),
        "CONVEYOR_LISTEN": "127.0.0.1:0",
        "CONVEYOR_METRICS_LISTEN": "",
        "CONVEYOR_HTTP_LISTEN": "",
    }
    folder = tmp_path / "tour"
    folder.mkdir()
    address, walked = ADDRESS, 0
    with ExitStack() as stack:
        here: Terminal | None = None
        for step in steps():
            if not isinstance(step, Command):
                (folder / step[0]).write_text(step[1])
                continue
            walked += 1
            text, expected = (part.replace(ADDRESS, address) for part in (step.text, "\n".join(step.output)))
            if text.startswith("grpcurl ") and shutil.which("grpcurl", path=PATH) is None:
                assert not os.environ.get("CI"), "no grpcurl: run scripts/fetch_grpcurl.py"
                pytest.skip("no grpcurl: run scripts/fetch_grpcurl.py; all before it was fine")
            if step.stays:
                other = stack.enter_context(terminal(folder, environment))
                # Its log goes to standard error.
                other.type(f"exec 2>>log; {text}")
                if step.output:
                    line = other.line()
                    address = line.rpartition(" ")[2]
                    environment["CONVEYOR_ADDRESS"] = address
                    assert line == step.output[0].replace(ADDRESS, address)
                continue
            here = here or stack.enter_context(terminal(folder, environment))
            output, status = here.run(text)
            assert matches(output, expected.splitlines()), f"$ {text}\n" + "\n".join(output)
            assert status == 0, f"$ {text} ended with {status}"
    assert walked > 15


def test_what_is_shown_is_compared() -> None:
    shown = ["run … started", "…", "done"]
    assert matches(["run 1 started", "done"], shown)
    assert matches(["run 1 started", "a", "", "done "], shown)
    assert not matches(["run 1 ended", "done"], shown)
    assert not matches(["run 1 started", "done", "and more"], shown)
    assert not matches(["run 1 started"], shown)


def test_links_lead_somewhere_and_all_pages_are_listed() -> None:
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README)}
    assert [link for link in sorted(links) if not (TREE / link).exists()] == []
    assert {f"docs/{page.name}" for page in (TREE / "docs").glob("*.md")} <= links


def test_the_targets_that_it_names_exist() -> None:
    makefile = (TREE / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert named >= {"demo", "test", "help"}
    assert [target for target in sorted(named) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []

"""The demo, run as a user runs it: on a small copy of this tree, so that its tests are done soon."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.support.server import ConveyorServer

TREE = Path(__file__).resolve().parents[2]
DEMO = TREE / "examples" / "demo"
# Enough of the client's tests to see that they run against the wheel.
CLIENT_TESTS = {"conftest.py", "test_config.py", "test_values.py"}
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A plain tree without .git, with all that the demo needs."""
    tree = tmp_path / "unpacked tree"
    leave = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    shutil.copytree(DEMO, tree / "examples" / "demo", ignore=leave)
    shutil.copytree(TREE / "clients" / "python", tree / "clients" / "python", ignore=leave)
    for path in (tree / "clients" / "python" / "tests").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in CLIENT_TESTS:
            path.unlink()
    (tree / "requirements").mkdir()
    shutil.copy(TREE / "requirements" / "client-test.txt", tree / "requirements")
    shutil.copy(TREE / ".gitignore", tree)
    return tree


class Demo:
    """The demo as a process, whose own processes can be told from all others."""

    def __init__(self, tree: Path, *arguments: str) -> None:
        self.mark = f"DEMO_MARK={uuid.uuid4()}"
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, tree / "examples" / "demo" / "run.py", *arguments],
            cwd=tree,
            env={
                **os.environ,
                **dict([self.mark.split("=")]),
                "CONVEYOR_ADDRESS": "192.0.2.1:1",
                "PYTHONPATH": "/nowhere",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def until(self, pattern: str) -> None:
        """Wait until it has written a line like this."""
        with self._more:
            seen = self._more.wait_for(lambda: self._matches(pattern) or not self._reader.is_alive(), 120)
        assert seen, self.output
        assert self._matches(pattern), self.output

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for its end; the exit status."""
        code = self._process.wait(200)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code

    def left(self, within: float = 5) -> list[str]:
        """The processes that it started, directly or not, and that live on."""
        # The shell that guards nats-server may leave a `sleep 1` behind, which ends by itself.
        give_up = time.monotonic() + within
        while (found := self.processes()) and time.monotonic() < give_up:
            time.sleep(0.05)
        return found

    def processes(self) -> list[str]:
        """The processes that it started, directly or not, and that live."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def _matches(self, pattern: str) -> bool:
        return re.search(pattern, self.output, re.MULTILINE) is not None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._more:
                self.lines.append(line)
                self._more.notify_all()
        with self._more:
            self._more.notify_all()


@pytest.fixture
def start(tree: Path) -> Iterator[Callable[..., Demo]]:
    """Starts the demo on the tree."""
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(tree, *arguments))
        return started[-1]

    yield start
    for demo in started:
        demo.signal(signal.SIGTERM)
        demo.end()


def as_printed(output: str, *words: str) -> list[str]:
    """The arguments of a command of `conveyor` that the demo printed to be typed."""
    found = re.search(rf"^  \S+/conveyor ({' '.join(words)} .+)$", output, re.MULTILINE)
    assert found, output
    return shlex.split(found[1])


@NEEDS_PROC
def test_a_plain_tree_becomes_an_installed_wheel_and_its_run_can_be_looked_at_again(
    tree: Path, start: Callable[..., Demo]
) -> None:
    demo = start()
    assert demo.end() == 0, demo.output
    assert demo.left() == []
    assert not (tree / ".git").exists()
    [wheel] = (tree / ".demo" / "index").iterdir()
    assert f"which is          {wheel.relative_to(tree)}" in demo.output
    assert re.search(r"tested +\d\d+ passed", demo.output)
    assert re.search(r"installed by pip +conveyor-client \d", demo.output)
    assert re.search(r"^ *\S+ +upload +SUCCEEDED", demo.output, re.MULTILINE)

    def conveyor(arguments: list[str]) -> str:
        command = [str(Path(sys.executable).with_name("conveyor")), *arguments]
        done = subprocess.run(
            command, cwd=tree, env={**os.environ, "CONVEYOR_ADDRESS": server.address}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    _, _, _, data = as_printed(demo.output, "server", "dev", "--data-dir")
    server = ConveyorServer(tree / ".demo", ["--data-dir", str(tree / data)])
    server.start()
    try:
        shown = conveyor(as_printed(demo.output, "run", "get"))
        assert "SUCCEEDED" in shown
        transports = {
            line.split()[1]
            for line in conveyor([*as_printed(demo.output, "run", "get"), "-o", "json"]).splitlines()
            if '"transport"' in line
        }
        assert transports == {'"GRPC",', '"JETSTREAM",'}
        logs = conveyor(as_printed(demo.output, "run", "logs"))
        assert all(f"[{step}] " in logs for step in ("clone", "compile", "test", "upload"))
    finally:
        server.stop()


@NEEDS_PROC
@pytest.mark.parametrize("step", ["clone", "compile", "test"])
def test_a_fault_stops_the_run_where_it_should(tree: Path, start: Callable[..., Demo], step: str) -> None:
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--no-verify", "--message", "Begin"]):
        subprocess.run([*git, *words], cwd=tree, check=True)
    demo = start("--break", step)
    assert demo.end() == 0, demo.output
    assert demo.left() == []
    assert re.search(rf"^ *\S+ +{step} +FAILED", demo.output, re.MULTILINE)
    assert f"As it should be: {step} failed, and the run is registered FAILED" in demo.output
    assert list((tree / ".demo" / "index").iterdir()) == []
    if step == "test":
        assert "assert 2 + 2 == 5" in demo.output
        assert "upload never started" in demo.output
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tree, check=True, capture_output=True, text=True)
    assert status.stdout == ""


@NEEDS_PROC
def test_what_fails_by_itself_fails_the_demo(tree: Path, start: Callable[..., Demo]) -> None:
    (tree / "requirements/client-test.txt").unlink()
    demo = start()
    assert demo.end() == 1
    assert "[test] ERROR: Could not open requirements file" in demo.output
    assert "error: the run is FAILED with" in demo.output
    assert demo.left() == []


@NEEDS_PROC
def test_a_driver_that_ends_ends_the_demo(tree: Path, start: Callable[..., Demo]) -> None:
    (tree / "examples/demo/drivers/compile.py").write_text("raise SystemExit('no compiler')\n")
    demo = start()
    assert demo.end() == 1
    assert "error: compile ended with exit status 1:\n  no compiler\n" in demo.output
    assert demo.left() == []


@NEEDS_PROC
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(start: Callable[..., Demo], number: signal.Signals) -> None:
    demo = start()
    demo.until(r"^ *\S+ +compile +RUNNING")
    assert len(demo.processes()) > 10
    demo.signal(number)
    assert demo.end() == 130
    assert demo.left() == []


@NEEDS_PROC
def test_a_killed_demo_leaves_no_process_and_the_next_one_succeeds(start: Callable[..., Demo]) -> None:
    demo = start()
    demo.until(r"^ *\S+ +compile +RUNNING")
    demo.signal(signal.SIGKILL)
    assert demo.end() == -signal.SIGKILL
    assert demo.left(within=30) == []
    again = start("--break", "clone")
    assert again.end() == 0, again.output


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, start: Callable[..., Demo]) -> None:
    (tmp_path / "work").mkdir()
    demo = start("--dir", str(tmp_path))
    assert demo.end() == 1
    assert "holds something else" in demo.output
    assert (tmp_path / "work").is_dir()


def test_two_demos_do_not_share_a_folder(start: Callable[..., Demo]) -> None:
    first = start()
    first.until("^ready: ")
    second = start()
    assert second.end() == 1
    assert "another demo runs in" in second.output


def put(url: str, content: bytes) -> int:
    try:
        with urlopen(Request(url, content, method="PUT"), timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def get(url: str) -> str:
    with urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_the_index_takes_wheels_and_lists_them(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("demo_index", DEMO / "index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Index(tmp_path / "wheels") as index:
        thread = threading.Thread(target=index.serve_forever, args=(0.01,))
        thread.start()
        try:
            wheel = f"{index.url}/packages/Some_app-1.0-py3-none-any.whl"
            assert put(wheel, b"one") == 201
            assert put(wheel, b"two") == 201
            assert get(wheel) == "two"
            assert 'href="/simple/some-app/"' in get(f"{index.url}/simple/")
            assert "Some_app-1.0-py3-none-any.whl#sha256=3fc4ccfe7458" in get(f"{index.url}/simple/some-app/")
            assert put(wheel, b"") == 400
            assert put(f"{index.url}/packages/../evil-1.0.whl", b"x") == 400
            assert put(f"{index.url}/packages/readme.txt", b"x") == 400
            index.read_only = True
            assert put(wheel, b"three") == 403
            assert [path.read_bytes() for path in (tmp_path / "wheels").iterdir()] == [b"two"]
        finally:
            index.shutdown()
            thread.join()

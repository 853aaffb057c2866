"""`conveyor driver verify` as a command: drivers that pass it, each for the part that it claims, and what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conveyor.verify.catalogue import NAMES
from tests.support.cli import CONVEYOR, Cli, Done
from tests.support.examples import COMMANDS
from tests.support.golang import build
from tests.support.tour import PATH, TREE
from tests.support.wait import until_sync

# The first build of a program in Go takes a minute, and many run at a time.
pytestmark = pytest.mark.timeout(600)

Line = list[str]
JETSTREAM = ["--transport", "jetstream"]


def verify(*words: str) -> Done:
    """The command, to its end."""
    environment = {**Cli().environment, "PATH": PATH, "PYTHONPATH": str(TREE)}
    done = subprocess.run(
        [CONVEYOR, "driver", "verify", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def python(folder: Path) -> Line:
    """The driver that the page shows."""
    page = (TREE / "docs" / "conformance.md").read_text()
    (shown,) = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    driver = folder / "demo.py"
    driver.write_text(shown)
    return [sys.executable, str(driver)]


def go(folder: Path) -> Line:
    """The test driver of clients/go."""
    return [str(build("./internal/testdriver") / "testdriver"), "demo", "verify"]


def example(name: str) -> Callable[[Path], Line]:
    """A driver of examples/drivers."""
    return lambda folder: COMMANDS[name]()


CLAIMS = {"bash": ["--slots", "1"], "jetstream": ["--slots", "1", *JETSTREAM]}
"""What an example does not claim is left out."""
DRIVERS: Mapping[str, tuple[Line, Callable[[Path], Line]]] = {
    "python": (["--driver", "demo", "-n", "verify"], python),
    "python-jetstream": (["--driver", "demo", "-n", "verify", *JETSTREAM], python),
    "go": (["--driver", "demo", "--slots", "3"], go),
    "go-jetstream": (["--driver", "demo", "--slots", "3", *JETSTREAM], go),
    **{f"examples/{name}": (["--driver", name, *CLAIMS.get(name, [])], example(name)) for name in COMMANDS},
}
"""Options and command of each."""


def verdicts(name: str, folder: Path) -> list[dict[str, Any]]:
    """What the kit says of a driver."""
    options, command = DRIVERS[name]
    done = verify("-o", "json", "--timeout", "30s", *options, "--", *command(folder))
    assert done.err == ""
    found: list[dict[str, Any]] = json.loads(done.out)
    assert done.code == int(any(each["verdict"] == "FAIL" for each in found))
    return found


@pytest.fixture(scope="module", autouse=True)
def verifications(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[list[dict[str, Any]]]]]:
    """All drivers that are asked for at the same time, and beside the other tests: most of it is waiting."""
    with ThreadPoolExecutor(max_workers=len(DRIVERS)) as pool:
        names = [each.callspec.params.get("name") for each in request.session.items if hasattr(each, "callspec")]
        yield {
            name: pool.submit(verdicts, name, tmp_path_factory.mktemp("driver")) for name in DRIVERS if name in names
        }
        pool.shutdown(cancel_futures=True)


def test_each_check_is_a_line_and_a_failed_one_the_exit_code() -> None:
    command = ["--", sys.executable, "-P", "-m", "tests.support.planted_grpc", "fails"]
    done = verify("--only", "fails,succeeds", *command)
    assert done.code == 1
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith("skipped ")] == [
        ["ok", "succeeds"],
        ["FAIL", "fails"],
    ]
    assert "ok      succeeds         an attempt with an empty spec was SUCCEEDED" in lines
    assert len(lines) == len(NAMES)
    done = verify("--only", "fails", "--only", "succeeds", "-o", "name", *command)
    assert (done.code, done.out) == (1, "fails\n")
    done = verify("--skip", ",".join(set(NAMES) - {"succeeds"}), "-o", "json", *command)
    assert done.code == 0
    assert [each["check"] for each in json.loads(done.out) if each["verdict"] == "ok"] == ["succeeds"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing argument"),
        (["--only", "everything", "--", "true"], "there is no check 'everything'; there are registers, heartbeats, "),
        (["--transport", "pigeon", "--", "true"], "'pigeon' is not one of 'grpc', 'jetstream'"),
        (["--slots", "0", "--", "true"], "0 is not in the range"),
        (["--timeout", "5", "--", "true"], "5 has no unit"),
        (["--only", "fails", "--skip", "fails,data", "--", "true"], "no check is left"),
        (["--skip", ",".join(NAMES), "--", "true"], "no check is left"),
        (["--log", "nowhere/log", "--", "true"], "cannot write nowhere/log: No such file"),
        (["--", f"{os.sep}nowhere{os.sep}driver"], f"cannot start {os.sep}nowhere{os.sep}driver: No such file"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_said(words: list[str], said: str) -> None:
    done = verify(*words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(how: signal.Signals, tmp_path: Path) -> None:
    temporary, started = tmp_path / "tmp", tmp_path / "started"
    temporary.mkdir()
    command = ["sh", "-c", f"touch {started}; sleep 600; true"]
    kit = subprocess.Popen(
        [CONVEYOR, "driver", "verify", *JETSTREAM, "--timeout", "10m", "--", *command],
        env={**Cli().environment, "TMPDIR": str(temporary)},
    )
    until_sync(started.exists, "the driver to start")
    kit.send_signal(how)
    assert kit.wait(60) == 130

    def left() -> list[str]:
        return [
            line
            for line in subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines()
            if str(tmp_path) in line
        ]

    until_sync(lambda: not left(), "the end of driver and broker")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", DRIVERS)
def test_drivers_keep_what_they_claim(name: str, verifications: Mapping[str, Future[list[dict[str, Any]]]]) -> None:
    found = verifications[name].result()
    assert [each["check"] for each in found] == list(NAMES)
    assert [each for each in found if each["verdict"] != "ok"] == []

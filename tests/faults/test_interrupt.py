"""The command line of the fault suite is interrupted in the middle of a round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import history
from tests.faults.__main__ import INTERRUPTED
from tests.faults.cluster import ROOT
from tests.faults.interrupt import mounts_below
from tests.support.wait import until_sync


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_round_that_is_interrupted(how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults", "--store", "sqlite", "--seconds", "60"]
    log = tmp_path / "log"
    with log.open("wb") as sink:
        # The terminal would send the signal to all of the group: here it comes to the harness alone.
        suite = subprocess.Popen(
            [*command, "--faults", "kill-,freeze-,full-disk"],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        until_sync(lambda: _struck(tmp_path) or suite.poll() is not None, "faults to strike")
        assert suite.poll() is None, log.read_text()
        assert _processes(tmp_path)
        suite.send_signal(how)
        assert suite.wait(60) == INTERRUPTED
    finally:
        suite.kill()
    assert "interrupted" in log.read_text()
    assert until_sync(lambda: not _processes(tmp_path), "all to be gone", within=10)
    assert mounts_below(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def _struck(directory: Path) -> bool:
    """Whether several faults are under way in a round whose processes all run."""
    found = list(directory.glob("faults-*/round-0/history"))
    return bool(found) and sum(event["kind"] == "strike" for event in history.read(found[0])) > 5


def _processes(directory: Path) -> list[str]:
    """The command lines that name the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(directory) in command:
            found.append(command)
    return found

"""`conveyor server dev --ephemeral`: nothing is left of it, at the latest when the next one starts."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.cli import Cli


@contextlib.contextmanager
def ephemeral(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """A server that has its data below `temporary`, once it is ready."""
    process = Cli(TMPDIR=str(temporary)).start(
        *("server", "dev", "--ephemeral", "--listen", "127.0.0.1:0", "--metrics-listen", "")
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready: ")
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def folders(temporary: Path) -> set[Path]:
    return set(temporary.glob("conveyor-ephemeral-*"))


def test_what_a_killed_one_left_goes_when_the_next_one_starts() -> None:
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        with ephemeral(temporary) as killed:
            killed.kill()
            killed.wait(10)
        (left,) = folders(temporary)
        with ephemeral(temporary) as first:
            (own,) = folders(temporary)
            assert own != left
            with ephemeral(temporary):
                assert len(folders(temporary)) == 2
                assert own in folders(temporary)
            assert first.poll() is None
        assert folders(temporary) == set()

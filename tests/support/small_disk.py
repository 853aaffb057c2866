"""A small disk of its own under a directory, which a test fills and makes free again."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

_FILLER = "filler"


@contextlib.contextmanager
def small_disk(directory: Path, mebibytes: int) -> Iterator[None]:
    """A file system of that size at `directory`. Raises PermissionError where that may not be made."""
    directory.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", directory], capture_output=True, text=True
    )
    if made.returncode:
        raise PermissionError(made.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(directory: Path) -> int:
    """Take all room that is left, to the last byte; returns how much that was."""
    written = 0
    with (directory / _FILLER).open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    written += file.write(b"\0" * size)
    return written


def clear(directory: Path) -> None:
    """Give the room back."""
    (directory / _FILLER).unlink(missing_ok=True)


def is_full(directory: Path) -> bool:
    """Whether not even one more page can be written."""
    probe = directory / "probe"
    try:
        probe.write_bytes(b"\0" * 4096)
    except OSError as error:
        return error.errno == errno.ENOSPC
    finally:
        probe.unlink(missing_ok=True)
    return False

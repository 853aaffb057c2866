"""A disk that is full: a small one of its own under a directory, filled and made free again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.faults.cluster import Cluster

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


class FullDisk:
    """The disk of SQLite or of the broker is full for a while. Strikes where a directory has a disk of its own."""

    name = "full-disk"
    component = "disk"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return "" if self._disks(cluster) else "no small disk: needs root and `small_disk`"

    def _disks(self, cluster: Cluster) -> list[Path]:
        places = [*(server.directory / "data" for server in cluster.servers), cluster.nats.store]
        return [place for place in places if os.path.ismount(place)]

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        disk, seconds = rng.choice(self._disks(cluster)), rng.choice([0.3, 1, 3])
        written = await asyncio.to_thread(fill, disk)
        full = await asyncio.to_thread(is_full, disk)
        try:
            await asyncio.sleep(seconds)
        finally:
            clear(disk)
        return f"{disk.name} was {'' if full else 'not '}full for {seconds} s by {written} bytes"


FAULTS = [FullDisk]

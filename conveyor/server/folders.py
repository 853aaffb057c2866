"""Where `conveyor server dev` keeps its data: a place of its own, or one that goes with the server."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "conveyor-ephemeral-"
_OWNER = "owner"


def default_data_dir() -> Path:
    """Where the data is when nothing else is said."""
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "conveyor"


@contextlib.contextmanager
def ephemeral_folder() -> Iterator[Path]:
    """An empty folder that is deleted at the end, or by the next server that starts so after a kill."""
    _delete_left()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    # It gets its name when it is locked: a folder whose owner can be locked by somebody else has none.
    unnamed = folder / f"{_OWNER}.new"
    owner = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(folder / _OWNER)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)


def _delete_left() -> None:
    """Delete the folders of servers that are gone. What cannot be deleted, such as another user's, is left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            owner = os.open(folder / _OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(owner)

"""Backups of the embedded store: a file written from a store in use or at rest, and a store made of such a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from conveyor.store import sqlite_file
from conveyor.store.port import Unavailable


class BackupError(Exception):
    """There is no backup, or no store was restored; the message says why, and nothing was changed."""


class Occupied(BackupError):
    """Something is there already that `replace` would replace."""


def back_up(directory: Path, target: Path, *, replace: bool = False) -> int:
    """Write the store in `directory`, which may be in use, to the file `target`; returns its revision.

    Everything committed before the call is in it, and each commit is in it as a whole or not at all. Raises
    BackupError, also when there is such a file and `replace` is not set.
    """
    path = directory / sqlite_file.FILE_NAME
    if not path.is_file():
        raise BackupError(f"there is no store in {directory}")
    if target.exists() and not replace:
        raise Occupied(f"{target} exists already")
    try:
        with contextlib.closing(sqlite_file.connect(path)) as connection:
            sqlite_file.check_format(connection, path)
            return copy(connection, target)
    except (OSError, sqlite3.Error, Unavailable) as error:
        raise BackupError(f"{directory} cannot be backed up to {target}: {error}") from error


def copy(connection: sqlite3.Connection, target: Path) -> int:
    """Write what one moment of the database holds to the file `target`, or over it; returns the revision.

    The file is there when it is complete, read once, and on the disk. Raises BackupError, OSError, sqlite3.Error.
    """
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        # Made before SQLite opens it, so that nobody else can read it at any time.
        partial.touch(mode=0o600, exist_ok=False)
        connection.execute("VACUUM INTO ?", (str(partial),))
        revision = check(partial)
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
        return revision
    finally:
        partial.unlink(missing_ok=True)


def restore(file: Path, directory: Path, mark: str, *, replace: bool = False) -> Path | None:
    """Make the store in `directory` what `file` holds, and put the key `mark` into it.

    The store that was there, which takes `replace`, is kept beside it: the path is returned. Raises BackupError when
    the file is not a whole backup that this version reads, or when a server has the directory open.
    """
    check(file)
    fresh = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}.partial")
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _owned(directory) as there:
            if there and not replace:
                raise Occupied(f"{directory} holds a store already")
            fresh.mkdir(mode=0o700)
            with _owned(fresh):
                _fill(fresh / sqlite_file.FILE_NAME, file, mark)
                return _exchange(fresh, directory, keep=there)
    except (OSError, sqlite3.Error, Unavailable) as error:
        raise BackupError(f"{file} cannot be restored to {directory}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check(file: Path) -> int:
    """Read all of a backup; returns its revision. Raises BackupError when it is none, damaged or too new."""
    if not file.is_file():
        raise BackupError(f"there is no file {file}")
    if (log := file.with_name(f"{file.name}-wal")).exists() and log.stat().st_size:
        raise BackupError(f"{file} is a store and no backup: its newest changes are in {log.name} still")
    try:
        with contextlib.closing(_read_only(file)) as connection:
            if not sqlite_file.check_format(connection, file):
                raise BackupError(f"{file} is empty")
            problems = [text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok"]
            if problems:
                raise BackupError(f"{file} is damaged: {problems[0]}")
            return sqlite_file.revision(connection)
    except Unavailable as error:
        raise BackupError(str(error)) from error
    except sqlite3.Error as error:
        raise BackupError(f"{file} is no backup, or damaged: {error}") from error


def _read_only(file: Path) -> sqlite3.Connection:
    """Leaves no files beside it, and needs no right to make any."""
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


@contextlib.contextmanager
def _owned(directory: Path) -> Iterator[bool]:
    """Own a store's directory, if there is one; says whether it holds anything. Raises Unavailable when in use."""
    if not directory.exists():
        yield False
        return
    there = any(path.name != sqlite_file.LOCK_NAME for path in directory.iterdir())
    descriptor = sqlite_file.lock(directory)
    try:
        yield there
    finally:
        os.close(descriptor)


def _fill(path: Path, file: Path, mark: str) -> None:
    shutil.copyfile(file, path)
    path.chmod(0o600)
    with contextlib.closing(sqlite_file.connect(path)) as connection:
        revision = sqlite_file.revision(connection) + 1
        sqlite_file.write(connection, [(mark, b"", revision, 0)], [], revision)
    _sync(path)
    _sync(path.parent)


def _exchange(fresh: Path, directory: Path, *, keep: bool) -> Path | None:
    """Put `fresh` in the place of `directory`; where that went, if it is to be kept."""
    kept = None
    if keep:
        kept = directory.with_name(f"{directory.name}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.replaced")
        directory.rename(kept)
    elif directory.exists():
        shutil.rmtree(directory)
    fresh.rename(directory)
    _sync(directory.parent)
    return kept


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

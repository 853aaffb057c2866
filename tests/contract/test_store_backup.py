"""Backups of the embedded store as files: whole or not there, and a restore that takes nothing else."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from conveyor.store import open_sqlite, sqlite_file
from conveyor.store.port import Put
from conveyor.store.sqlite_backup import BackupError, Occupied, back_up, restore


def filled(directory: Path, text: bytes = b"x") -> None:
    """A store with 50 keys."""

    async def fill() -> None:
        store = await open_sqlite(directory)
        for number in range(50):
            await store.commit(puts=[Put(f"k/{number}", text * 500)])
        await store.close()

    asyncio.run(fill())


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    filled(tmp_path / "first")
    back_up(tmp_path / "first", tmp_path / "backup")
    return tmp_path / "backup"


def values(directory: Path) -> set[bytes]:
    """What the keys of a store begin with."""

    async def read() -> set[bytes]:
        store = await open_sqlite(directory)
        found = {item.value[:1] for item in (await store.list("k/")).items}
        await store.close()
        return found

    return asyncio.run(read())


def beside(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


async def test_a_store_in_use_is_backed_up_and_restored(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "live")
    revision = await store.commit(puts=[Put("a", b"1")])
    assert await asyncio.to_thread(back_up, tmp_path / "live", tmp_path / "file") == revision
    await store.commit(puts=[Put("a", b"2")])
    epoch = store.epoch
    await store.close()
    assert await asyncio.to_thread(restore, tmp_path / "file", tmp_path / "new" / "store", "mark") is None
    restored = await open_sqlite(tmp_path / "new" / "store")
    found = await restored.get("a")
    assert found is not None
    assert (found.value, found.mod_revision) == (b"1", revision)
    mark = await restored.get("mark")
    assert mark is not None
    assert mark.mod_revision == revision + 1
    assert restored.epoch != epoch
    await restored.close()


def test_a_file_that_is_there_is_left_alone(tmp_path: Path, backup: Path) -> None:
    filled(tmp_path / "second", b"y")
    before = backup.read_bytes()
    with pytest.raises(Occupied, match="exists already"):
        back_up(tmp_path / "second", backup)
    assert backup.read_bytes() == before
    back_up(tmp_path / "second", backup, replace=True)
    assert backup.stat().st_mode & 0o777 == 0o600
    assert backup.read_bytes() != before


def test_a_backup_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="no store in"):
        back_up(tmp_path, tmp_path / "file")
    filled(tmp_path / "store")
    with pytest.raises(BackupError, match="cannot be backed up"):
        back_up(tmp_path / "store", tmp_path / "missing" / "file")
    path = tmp_path / "store" / sqlite_file.FILE_NAME
    damaged(path)
    with pytest.raises(BackupError):
        back_up(tmp_path / "store", tmp_path / "file")
    assert beside(tmp_path / "store") == {"store"}


def damaged(path: Path) -> None:
    """Overwrite a page in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(os.urandom(4096))


def test_a_store_that_is_there_is_kept(tmp_path: Path, backup: Path) -> None:
    filled(tmp_path / "store", b"y")
    with pytest.raises(Occupied, match="holds a store already"):
        restore(backup, tmp_path / "store", "mark")
    assert values(tmp_path / "store") == {b"y"}
    kept = restore(backup, tmp_path / "store", "mark", replace=True)
    assert kept is not None
    assert values(tmp_path / "store") == {b"x"}
    assert values(kept) == {b"y"}
    assert beside(backup) == {"backup", "first", "store", kept.name}


def test_a_store_in_use_is_not_replaced(tmp_path: Path, backup: Path) -> None:
    filled(tmp_path / "store", b"y")
    owner = sqlite_file.lock(tmp_path / "store")
    with pytest.raises(BackupError, match=f"in use .* {os.getpid()}"):
        restore(backup, tmp_path / "store", "mark", replace=True)
    os.close(owner)
    assert values(tmp_path / "store") == {b"y"}
    assert beside(backup) == {"backup", "first", "store"}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()


def live(path: Path) -> None:
    path.with_name(f"{path.name}-wal").write_bytes(b"log")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (damaged, "damaged"),
        (cut, "damaged"),
        (newer, "format 99"),
        (foreign, "not a Conveyor store"),
        (live, "newest changes"),
        (lambda path: path.write_text("no database at all " * 100), "no backup"),
        (lambda path: path.write_bytes(b""), "empty"),
        (Path.unlink, "no file"),
    ],
    ids=["damaged", "cut", "newer", "foreign", "live", "text", "empty", "missing"],
)
def test_what_is_no_whole_backup_is_refused(tmp_path: Path, backup: Path, spoil: object, why: str) -> None:
    filled(tmp_path / "store", b"y")
    assert callable(spoil)
    spoil(backup)
    with pytest.raises(BackupError, match=why):
        restore(backup, tmp_path / "store", "mark", replace=True)
    assert values(tmp_path / "store") == {b"y"}
    with pytest.raises(BackupError, match=why):
        restore(backup, tmp_path / "other", "mark")
    assert not (tmp_path / "other").exists()

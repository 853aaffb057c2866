"""What only the embedded driver has: a file with one owner, a bounded memory of its history, kills of its process."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from conveyor.store import SqliteStore, open_sqlite, sqlite_file
from conveyor.store.failpoints import _parse
from conveyor.store.port import Change, Changes, Conflict, Exhausted, Guard, Put, Reset, Unavailable
from tests.contract import store_writer

ROOT = Path(__file__).resolve().parents[2]


def start_writer(directory: Path, name: str, failpoints: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, store_writer.__file__, str(directory), name]
    environment = os.environ | {"CONVEYOR_FAILPOINTS": failpoints, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def read_acknowledged(process: subprocess.Popen[str], kill_after: int | None = None) -> dict[str, int]:
    """The stems that the process printed, killing it after so many if that is given."""
    acknowledged: dict[str, int] = {}
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            # The last line may be cut short.
            if line.endswith("\n"):
                stem, revision = line.split()
                acknowledged[stem] = int(revision)
            if kill_after is not None and len(acknowledged) >= kill_after:
                process.kill()
                kill_after = None
    assert process.wait() == -signal.SIGKILL
    return acknowledged


async def check_acknowledged(directory: Path, acknowledged: dict[str, int]) -> set[str]:
    """Everything acknowledged is there with its revision, and every commit is whole; returns all stems."""
    store = await open_sqlite(directory)
    listing = await store.list("")
    found = {item.key: item for item in listing.items}
    for stem, revision in acknowledged.items():
        for half in "ab":
            item = found[f"{stem}/{half}"]
            assert (item.value, item.mod_revision) == (stem.encode() * 20, revision)
    stems = {key.rpartition("/")[0] for key in found}
    assert len(found) == 2 * len(stems)
    assert listing.revision == max((item.mod_revision for item in found.values()), default=1)
    assert await store.commit(puts=[Put("after", b"")], deletes=[]) == listing.revision + 1
    await store.commit(deletes=["after"])
    await store.close()
    return stems


class TestKill:
    async def test_kills_at_any_moment_lose_nothing_acknowledged(self, tmp_path: Path) -> None:
        acknowledged: dict[str, int] = {}
        for round_, count in enumerate([1, 40, 333, 700]):
            process = start_writer(tmp_path, f"round-{round_}")
            acknowledged |= await asyncio.to_thread(read_acknowledged, process, count)
            store = await open_sqlite(tmp_path)
            found = {item.key: item.mod_revision for item in (await store.list("")).items}
            await store.close()
            for stem, revision in acknowledged.items():
                assert found[f"{stem}/a"] == found[f"{stem}/b"] == revision
        assert len(acknowledged) >= 1_074

    @pytest.mark.parametrize("hit", [1, 2, 9])
    async def test_before_the_commit_nothing_of_it_is_there(self, tmp_path: Path, hit: int) -> None:
        process = start_writer(tmp_path, "x", f"store.before_commit=kill:{hit}")
        acknowledged = await asyncio.to_thread(read_acknowledged, process)
        stems = await check_acknowledged(tmp_path, acknowledged)
        assert stems >= set(acknowledged)
        if hit == 1:
            assert not stems

    @pytest.mark.parametrize("hit", [1, 2, 9])
    async def test_after_the_commit_it_is_there_though_nobody_was_told(self, tmp_path: Path, hit: int) -> None:
        process = start_writer(tmp_path, "x", f"store.after_commit=kill:{hit}")
        acknowledged = await asyncio.to_thread(read_acknowledged, process)
        stems = await check_acknowledged(tmp_path, acknowledged)
        assert stems > set(acknowledged)

    @pytest.mark.parametrize("text", ["x", "x=stop", "x=kill:0", "=kill", "x=kill:y"])
    def test_a_failpoint_that_is_not_understood_is_an_error(self, text: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - the message is int()'s for some
            _parse(text)


class TestOwner:
    async def test_a_directory_has_one_store_at_a_time(self, tmp_path: Path) -> None:
        first = await open_sqlite(tmp_path)
        with pytest.raises(Unavailable, match=f"in use .* {os.getpid()}"):
            await open_sqlite(tmp_path)
        await first.commit(puts=[Put("a", b"1")])
        await first.close()
        second = await open_sqlite(tmp_path)
        assert await second.get("a") is not None
        await second.close()

    async def test_in_any_process(self, tmp_path: Path) -> None:
        process = start_writer(tmp_path, "x")
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        with pytest.raises(Unavailable, match=f"in use .* {process.pid}"):
            await open_sqlite(tmp_path)
        process.kill()
        await asyncio.to_thread(process.communicate)
        store = await open_sqlite(tmp_path)
        await store.close()

    async def test_a_file_that_is_not_a_store_is_refused(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / sqlite_file.FILE_NAME) as foreign:
            foreign.execute("CREATE TABLE t (x)")
        foreign.close()
        with pytest.raises(Unavailable, match="not a Conveyor store"):
            await open_sqlite(tmp_path)
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / sqlite_file.FILE_NAME).write_text("no database at all " * 100)
        with pytest.raises(Unavailable, match="cannot be opened"):
            await open_sqlite(tmp_path / "text")

    async def test_a_newer_format_is_refused(self, tmp_path: Path) -> None:
        await (await open_sqlite(tmp_path)).close()
        with sqlite3.connect(tmp_path / sqlite_file.FILE_NAME) as newer:
            newer.execute("PRAGMA user_version = 99")
        newer.close()
        with pytest.raises(Unavailable, match="format 99"):
            await open_sqlite(tmp_path)

    async def test_a_directory_that_cannot_be_made_is_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(Unavailable, match="cannot be used"):
            await open_sqlite(tmp_path / "file" / "data")

    def test_every_commit_is_synced(self, tmp_path: Path) -> None:
        connection = sqlite_file.connect(tmp_path / "x.db")
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        connection.close()


class TestHistory:
    @pytest.mark.parametrize("bounds", [{"history_changes": 10}, {"history_bytes": 5_000}])
    async def test_a_slow_watcher_gets_a_reset_and_goes_on(self, tmp_path: Path, bounds: dict[str, int]) -> None:
        store = await SqliteStore.open(tmp_path, **bounds)
        async with aclosing(store.watch("a/", 1)) as watch:
            first = await store.commit(puts=[Put("a/0", b"")])
            assert await anext(watch) == Changes(first, (await change_of(store, "a/0"),))
            last = first
            for number in range(30):
                last = await store.commit(puts=[Put(f"a/{number}", b"x" * 500)])
            assert await anext(watch) == Reset(last)
            later = await store.commit(puts=[Put("a/later", b"")])
            assert await anext(watch) == Changes(later, (await change_of(store, "a/later"),))
        # What is still in the window is served from it.
        async with aclosing(store.watch("a/", later - 5)) as watch:
            assert [(await anext(watch)).revision for _ in range(5)] == list(range(later - 4, later + 1))
        await store.close()

    async def test_one_commit_above_the_bound_is_still_delivered(self, tmp_path: Path) -> None:
        store = await SqliteStore.open(tmp_path, history_bytes=10)
        async with aclosing(store.watch("a/", 1)) as watch:
            revision = await store.commit(puts=[Put("a/0", b"x" * 1_000)])
            assert (await anext(watch)).revision == revision
        await store.close()


async def change_of(store: SqliteStore, key: str) -> Change:
    found = await store.get(key)
    assert found is not None
    return Change(key, found.value, None, found.mod_revision)


class TestLeases:
    async def test_they_outlive_a_reopen_and_then_end(self, tmp_path: Path) -> None:
        store = await open_sqlite(tmp_path)
        short, long = await store.lease(0.3), await store.lease(600)
        await store.commit(puts=[Put("a/short", b"1", short.id), Put("a/long", b"2", long.id)])
        await store.close()
        store = await open_sqlite(tmp_path)
        start = (await store.list("")).revision
        async with aclosing(store.watch("a/", start)) as watch:
            item = await anext(watch)
        assert isinstance(item, Changes)
        assert [(change.key, change.value, change.prior) for change in item.changes] == [("a/short", None, b"1")]
        await store.commit(puts=[Put("a/more", b"3", long.id)])
        await store.close()
        connection = sqlite3.connect(tmp_path / sqlite_file.FILE_NAME)
        assert connection.execute("SELECT id FROM lease").fetchall() == [(long.id,)]
        connection.close()


class TestRoom:
    async def test_full_is_exhausted_and_later_it_goes_on(self, tmp_path: Path) -> None:
        store = await open_sqlite(tmp_path, max_bytes=1 << 20)
        written: list[str] = []

        async def fill() -> None:
            for number in range(1_000):
                await store.commit([Guard(f"a/{number:03}", 0)], [Put(f"a/{number:03}", b"x" * 50_000)])
                written.append(f"a/{number:03}")

        with pytest.raises(Exhausted):
            await fill()
        assert [item.key for item in (await store.list("a/")).items] == written
        # One that has no room takes nobody else's along but that of its own batch, and says so truthfully.
        results = await asyncio.gather(
            *(store.commit([Guard(f"b/{number}", 0)], [Put(f"b/{number}", b"x" * 60_000)]) for number in range(5)),
            return_exceptions=True,
        )
        assert all(isinstance(result, Exhausted) for result in results)
        assert (await store.list("b/")).items == ()
        await store.commit(deletes=written)
        revision = await store.commit([Guard("a/000", 0)], [Put("a/000", b"again")])
        with pytest.raises(Conflict):
            await store.commit([Guard("a/000", 0)], [Put("a/000", b"again")])
        await store.close()
        store = await open_sqlite(tmp_path)
        assert [(item.key, item.mod_revision) for item in (await store.list("")).items] == [("a/000", revision)]
        await store.close()


class TestBackup:
    async def test_a_copy_made_under_load_is_a_whole_store(self, tmp_path: Path) -> None:
        store = await open_sqlite(tmp_path / "data")
        await store.commit(puts=[Put("a/left", b"0"), Put("a/right", b"0")])
        stop = asyncio.Event()

        async def churn() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                text = b"%d" % number
                await store.commit(puts=[Put("a/left", text), Put(f"b/{number}", b"x" * 900), Put("a/right", text)])

        churning = asyncio.ensure_future(churn())
        copies = [tmp_path / f"copy-{number}" for number in range(3)]
        for copy in copies:
            copy.mkdir()
            await store.backup(copy / sqlite_file.FILE_NAME)
            await store.backup(copy / sqlite_file.FILE_NAME)
        stop.set()
        await churning
        await store.close()
        for copy in copies:
            assert [path.name for path in copy.iterdir()] == [sqlite_file.FILE_NAME]
            store = await open_sqlite(copy)
            left, right = await store.get("a/left"), await store.get("a/right")
            listing = await store.list("")
            assert left is not None
            assert right is not None
            assert left.value == right.value
            assert len(listing.items) == 2 + int(left.value)
            assert listing.revision == left.mod_revision
            await store.close()

    async def test_a_backup_that_cannot_be_written_is_unavailable(self, tmp_path: Path) -> None:
        store = await open_sqlite(tmp_path / "data")
        with pytest.raises(Unavailable, match="cannot be written"):
            await store.backup(tmp_path / "missing" / "copy.db")
        await store.close()

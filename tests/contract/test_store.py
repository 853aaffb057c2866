"""What the store port promises, of every driver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from conveyor.store.port import (
    MAX_COMMIT_BYTES,
    MAX_OPERATIONS,
    Change,
    Changes,
    Conflict,
    Guard,
    KeyValue,
    LeaseLost,
    Listing,
    Put,
    Reset,
    Store,
    TooLarge,
    Unavailable,
)
from tests.support.stores import Backend

Watch = AsyncGenerator[Changes | Reset, None]


async def value(store: Store, key: str) -> bytes | None:
    found = await store.get(key)
    return None if found is None else found.value


async def next_changes(watch: Watch) -> Changes:
    item = await anext(watch)
    assert isinstance(item, Changes)
    return item


async def collect(watch: Watch, count: int) -> list[Change]:
    """The next `count` changes; checks that revisions grow and are whole."""
    changes: list[Change] = []
    last = 0
    while len(changes) < count:
        item = await next_changes(watch)
        assert item.revision > last
        assert {change.mod_revision for change in item.changes} == {item.revision}
        last = item.revision
        changes.extend(item.changes)
    assert len(changes) == count
    return changes


def keys(listing: Listing) -> list[str]:
    return [item.key for item in listing.items]


class TestCommit:
    async def test_put_is_read_back_with_the_revision_of_its_commit(self, store: Store, prefix: str) -> None:
        revision = await store.commit(puts=[Put(f"{prefix}a", b"1"), Put(f"{prefix}b", b"")])
        assert await store.get(f"{prefix}a") == KeyValue(f"{prefix}a", b"1", revision)
        assert await store.get(f"{prefix}b") == KeyValue(f"{prefix}b", b"", revision)
        assert await store.get(f"{prefix}c") is None

    async def test_revisions_grow(self, store: Store, prefix: str) -> None:
        first = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        second = await store.commit(puts=[Put(f"{prefix}b", b"1")])
        third = await store.commit(deletes=[f"{prefix}a"])
        assert 0 < first < second < third

    async def test_guards_compare_the_mod_revision(self, store: Store, prefix: str) -> None:
        key = f"{prefix}a"
        first = await store.commit([Guard(key, 0)], [Put(key, b"1")])
        second = await store.commit([Guard(key, first)], [Put(key, b"2")])
        assert second > first
        assert await value(store, key) == b"2"

    @pytest.mark.parametrize("expected", [0, 1])
    async def test_conflict_carries_what_is_there(self, store: Store, prefix: str, expected: int) -> None:
        key = f"{prefix}a"
        revision = await store.commit(puts=[Put(key, b"1")])
        with pytest.raises(Conflict) as caught:
            await store.commit([Guard(key, expected and revision - 1)], [Put(key, b"2")])
        assert caught.value.key == key
        assert caught.value.current == KeyValue(key, b"1", revision)
        assert await value(store, key) == b"1"

    async def test_conflict_on_a_missing_key_carries_none(self, store: Store, prefix: str) -> None:
        with pytest.raises(Conflict) as caught:
            await store.commit([Guard(f"{prefix}a", 7)], [Put(f"{prefix}b", b"1")])
        assert (caught.value.key, caught.value.current) == (f"{prefix}a", None)

    async def test_conflict_names_the_first_guard_that_failed(self, store: Store, prefix: str) -> None:
        good = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        guards = [Guard(f"{prefix}a", good), Guard(f"{prefix}b", 5), Guard(f"{prefix}c", 5)]
        with pytest.raises(Conflict) as caught:
            await store.commit(guards, [Put(f"{prefix}d", b"1")])
        assert caught.value.key == f"{prefix}b"

    async def test_all_or_nothing(self, store: Store, prefix: str) -> None:
        await store.commit(puts=[Put(f"{prefix}gone", b"1"), Put(f"{prefix}kept", b"1")])
        with pytest.raises(Conflict):
            await store.commit(
                [Guard(f"{prefix}kept", 0)], [Put(f"{prefix}new", b"2"), Put(f"{prefix}gone", b"2")], [f"{prefix}kept"]
            )
        assert await value(store, f"{prefix}new") is None
        assert await value(store, f"{prefix}gone") == b"1"
        assert await value(store, f"{prefix}kept") == b"1"

    async def test_a_deleted_key_counts_as_missing(self, store: Store, prefix: str) -> None:
        key = f"{prefix}a"
        await store.commit(puts=[Put(key, b"1")])
        await store.commit(deletes=[key])
        assert await store.get(key) is None
        await store.commit([Guard(key, 0)], [Put(key, b"2")])

    async def test_deleting_a_missing_key_is_no_error_and_no_change(self, store: Store, prefix: str) -> None:
        revision = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        assert await store.commit(deletes=[f"{prefix}b"]) == revision
        assert (await store.list(prefix)).revision == revision

    async def test_a_commit_of_guards_alone_only_compares(self, store: Store, prefix: str) -> None:
        revision = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        assert await store.commit([Guard(f"{prefix}a", revision)]) == revision
        with pytest.raises(Conflict):
            await store.commit([Guard(f"{prefix}a", revision + 1)])

    async def test_a_key_may_stand_once(self, store: Store, prefix: str) -> None:
        key = f"{prefix}a"
        with pytest.raises(ValueError, match="twice"):
            await store.commit(puts=[Put(key, b"1"), Put(key, b"2")])
        with pytest.raises(ValueError, match="twice"):
            await store.commit(puts=[Put(key, b"1")], deletes=[key])

    @pytest.mark.parametrize("key", ["", "a\0b"])
    async def test_keys_are_text_without_nul(self, store: Store, key: str) -> None:
        with pytest.raises(ValueError, match="NUL"):
            await store.commit(puts=[Put(key, b"1")])

    async def test_96_operations_pass_and_97_do_not(self, store: Store, prefix: str) -> None:
        def puts(count: int) -> Sequence[Put]:
            return [Put(f"{prefix}{index:03}", b"1") for index in range(count)]

        guards = [Guard(put.key, 0) for put in puts(MAX_OPERATIONS)]
        await store.commit(guards, puts(MAX_OPERATIONS))
        with pytest.raises(TooLarge):
            await store.commit(puts=puts(MAX_OPERATIONS + 1))
        with pytest.raises(TooLarge):
            await store.commit([*guards, Guard(f"{prefix}x", 0)], [Put(f"{prefix}a", b"1")])
        assert len((await store.list(prefix)).items) == MAX_OPERATIONS

    async def test_the_largest_commit_passes_and_one_byte_more_does_not(self, store: Store, prefix: str) -> None:
        key = f"{prefix}a"
        room = MAX_COMMIT_BYTES - len(key)
        await store.commit(puts=[Put(key, b"x" * room)])
        assert await value(store, key) == b"x" * room
        with pytest.raises(TooLarge):
            await store.commit(puts=[Put(key, b"y" * (room + 1))])
        assert await value(store, key) == b"x" * room

    async def test_binary_values_come_back_as_they_were(self, store: Store, prefix: str) -> None:
        content = bytes(range(256)) * 3
        await store.commit(puts=[Put(f"{prefix}a", content)])
        assert await value(store, f"{prefix}a") == content


class TestConcurrentCommits:
    async def test_one_conflict_does_not_fail_the_others(self, store: Store, prefix: str) -> None:
        await store.commit(puts=[Put(f"{prefix}taken", b"1")])
        commits = [
            store.commit([Guard(f"{prefix}{name}", 0)], [Put(f"{prefix}{name}", b"2")])
            for name in ["a", "taken", "b", "c"]
        ]
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert [isinstance(result, Conflict) for result in results] == [False, True, False, False]
        assert [item.value for item in (await store.list(prefix)).items] == [b"2", b"2", b"2", b"1"]

    async def test_of_many_creators_one_wins(self, store: Store, prefix: str) -> None:
        key = f"{prefix}a"
        commits = [store.commit([Guard(key, 0)], [Put(key, b"%d" % index)]) for index in range(100)]
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert [index for index, result in enumerate(results) if isinstance(result, int)] == [0]
        assert await value(store, key) == b"0"
        winner = results[0]
        for result in results[1:]:
            assert isinstance(result, Conflict)
            assert result.current == KeyValue(key, b"0", int(str(winner)))

    async def test_commits_on_one_key_keep_the_order_of_the_calls(self, store: Store, prefix: str) -> None:
        commits = []
        for index in range(300):
            commits.append(store.commit(puts=[Put(f"{prefix}{index % 3}", b"%d" % index)]))
            commits.append(store.commit(puts=[Put(f"{prefix}other/{index}", b"%d" % index)]))
        await asyncio.gather(*commits)
        assert [await value(store, f"{prefix}{index}") for index in range(3)] == [b"297", b"298", b"299"]

    async def test_a_guard_sees_the_write_before_it_and_not_the_one_after(self, store: Store, prefix: str) -> None:
        key = f"{prefix}a"
        revision = await store.commit(puts=[Put(key, b"1")])
        held, put, failed = await asyncio.gather(
            store.commit([Guard(key, revision)], [Put(f"{prefix}before", b"1")]),
            store.commit(puts=[Put(key, b"2")]),
            store.commit([Guard(key, revision)], [Put(f"{prefix}after", b"1")]),
            return_exceptions=True,
        )
        assert isinstance(held, int)
        assert isinstance(put, int)
        assert isinstance(failed, Conflict)
        assert failed.current == KeyValue(key, b"2", put)
        assert await value(store, f"{prefix}after") is None

    async def test_a_delete_and_a_put_of_one_key_keep_their_order(self, store: Store, prefix: str) -> None:
        key = f"{prefix}a"
        await store.commit(puts=[Put(key, b"0")])
        async with aclosing(store.watch(prefix, (await store.list(prefix)).revision)) as watch:
            _, revision, _ = await asyncio.gather(
                store.commit(deletes=[key]),
                store.commit([Guard(key, 0)], [Put(key, b"1")]),
                store.commit(deletes=[key]),
            )
            changes = await collect(watch, 3)
        assert [(change.value, change.prior) for change in changes] == [(None, b"0"), (b"1", None), (None, b"1")]
        assert changes[1].mod_revision == revision
        assert await store.get(key) is None

    async def test_many_commits_with_a_shared_guard(self, store: Store, prefix: str) -> None:
        shared = await store.commit(puts=[Put(f"{prefix}definition", b"1")])
        await asyncio.gather(
            *(
                store.commit([Guard(f"{prefix}definition", shared)], [Put(f"{prefix}r/{index:03}", b"1")])
                for index in range(200)
            )
        )
        assert len((await store.list(f"{prefix}r/")).items) == 200

    async def test_large_commits_side_by_side(self, store: Store, prefix: str) -> None:
        content = b"x" * (MAX_COMMIT_BYTES // 2)
        await asyncio.gather(*(store.commit(puts=[Put(f"{prefix}{index}", content)]) for index in range(6)))
        assert len((await store.list(prefix, keys_only=True)).items) == 6

    async def test_commits_with_the_most_operations_side_by_side(self, store: Store, prefix: str) -> None:
        commits = []
        for index in range(40):
            puts = [Put(f"{prefix}{index}/{number}", b"1") for number in range(MAX_OPERATIONS)]
            commits.append(store.commit([Guard(put.key, 0) for put in puts], puts))
        await asyncio.gather(*commits)
        assert len((await store.list(prefix, keys_only=True)).items) == 40 * MAX_OPERATIONS

    async def test_a_cancelled_caller_disturbs_nobody(self, store: Store, prefix: str) -> None:
        commits = [asyncio.ensure_future(store.commit(puts=[Put(f"{prefix}{index}", b"1")])) for index in range(20)]
        await asyncio.sleep(0)
        for commit in commits[::2]:
            commit.cancel()
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert all(isinstance(result, int) for result in results[1::2])
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
        await store.commit(puts=[Put(f"{prefix}after", b"1")])


class TestList:
    async def test_ascending_by_bytes(self, store: Store, prefix: str) -> None:
        names = ["z", "a", "é", "\U0001f600", "\uffff", "A", "a/b", "ab", "中"]
        await store.commit(puts=[Put(prefix + name, name.encode()) for name in names])
        listing = await store.list(prefix)
        assert keys(listing) == sorted((prefix + name for name in names), key=str.encode)
        assert [item.value.decode() for item in listing.items] == [
            item.key.removeprefix(prefix) for item in listing.items
        ]
        assert not listing.more

    async def test_a_prefix_does_not_match_its_neighbours(self, store: Store, prefix: str) -> None:
        names = ["build/1", "build/2", "build-image/1", "build0/1", "buil", "build", "build.x"]
        await store.commit(puts=[Put(prefix + name, b"") for name in names])
        assert keys(await store.list(f"{prefix}build/")) == [f"{prefix}build/1", f"{prefix}build/2"]

    @pytest.mark.parametrize("last", ["\ud7ff", "\U0010ffff", "~", "ÿ"])
    async def test_a_prefix_may_end_in_any_character(self, store: Store, prefix: str, last: str) -> None:
        inside = [f"{prefix}x{last}", f"{prefix}x{last}\U0010ffff", f"{prefix}x{last}a"]
        await store.commit(puts=[Put(key, b"") for key in [*inside, f"{prefix}x", f"{prefix}y", f"{prefix}w"]])
        assert keys(await store.list(f"{prefix}x{last}")) == sorted(inside, key=str.encode)

    async def test_pages(self, store: Store, prefix: str) -> None:
        await store.commit(puts=[Put(f"{prefix}{index:02}", b"%d" % index) for index in range(25)])
        found: list[str] = []
        after, sizes = "", []
        while True:
            page = await store.list(prefix, after, 10)
            found += keys(page)
            sizes.append((len(page.items), page.more))
            if not page.more:
                break
            after = found[-1]
        assert sizes == [(10, True), (10, True), (5, False)]
        assert found == [f"{prefix}{index:02}" for index in range(25)]

    async def test_a_page_that_ends_with_the_last_key_says_so(self, store: Store, prefix: str) -> None:
        await store.commit(puts=[Put(f"{prefix}{index}", b"") for index in range(4)])
        page = await store.list(prefix, f"{prefix}1", 2)
        assert (keys(page), page.more) == ([f"{prefix}2", f"{prefix}3"], False)
        assert keys(await store.list(prefix, f"{prefix}3", 2)) == []

    async def test_after_need_not_exist_nor_lie_below_the_prefix(self, store: Store, prefix: str) -> None:
        await store.commit(puts=[Put(f"{prefix}m/{index}", b"") for index in range(3)])
        assert len(keys(await store.list(f"{prefix}m/", f"{prefix}a"))) == 3
        assert keys(await store.list(f"{prefix}m/", f"{prefix}m/0x")) == [f"{prefix}m/1", f"{prefix}m/2"]
        assert keys(await store.list(f"{prefix}m/", f"{prefix}z")) == []

    async def test_keys_only_leaves_the_values_out(self, store: Store, prefix: str) -> None:
        revision = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        assert (await store.list(prefix, keys_only=True)).items == (KeyValue(f"{prefix}a", b"", revision),)

    async def test_ten_thousand_keys_in_one_listing(self, store: Store, prefix: str) -> None:
        names = [f"{prefix}{index:05}" for index in range(10_000)]
        shuffled = random.Random(1).sample(names, len(names))
        await asyncio.gather(
            *(
                store.commit(puts=[Put(key, key.encode() * 9) for key in shuffled[start : start + MAX_OPERATIONS]])
                for start in range(0, len(shuffled), MAX_OPERATIONS)
            )
        )
        listing = await store.list(prefix)
        assert keys(listing) == names
        assert all(item.value == item.key.encode() * 9 for item in listing.items)
        limited = await store.list(prefix, limit=9_999)
        assert (keys(limited), limited.more) == (names[:-1], True)

    async def test_large_values_in_one_listing(self, store: Store, prefix: str) -> None:
        content = b"x" * 1_000_000
        for index in range(8):
            await store.commit(puts=[Put(f"{prefix}{index}", content)])
        assert [len(item.value) for item in (await store.list(prefix)).items] == [1_000_000] * 8

    async def test_empty(self, store: Store, prefix: str) -> None:
        revision = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        assert await store.list(f"{prefix}none/") == Listing((), False, revision)


class TestRanges:
    async def test_each_prefix_gets_its_keys_in_order(self, store: Store, prefix: str) -> None:
        names = ["b/2", "b/1", "b-image/1", "b", "c", "a/1"]
        revision = await store.commit(puts=[Put(prefix + name, name.encode()) for name in names])
        found = await store.ranges([f"{prefix}b/", f"{prefix}none/", f"{prefix}c", f"{prefix}b/"])
        both = [KeyValue(f"{prefix}b/{n}", f"b/{n}".encode(), revision) for n in (1, 2)]
        assert [list(items) for items in found] == [both, [], [KeyValue(f"{prefix}c", b"c", revision)], both]

    async def test_all_are_as_of_one_revision(self, store: Store, prefix: str) -> None:
        """Each commit writes the same into both: a reader never sees them differ."""
        written = 0

        async def write() -> None:
            nonlocal written
            for number in range(200):
                await store.commit(puts=[Put(f"{prefix}a/x", b"%d" % number), Put(f"{prefix}z/x", b"%d" % number)])
                written += 1

        async def read() -> None:
            while written < 200:
                first, *others = await store.ranges(
                    [f"{prefix}a/", *[f"{prefix}none/{n}" for n in range(98)], f"{prefix}z/"]
                )
                assert [kv.value for kv in first] == [kv.value for kv in others[-1]]

        await asyncio.gather(write(), read(), read())

    async def test_nothing_is_asked_for(self, store: Store) -> None:
        assert list(await store.ranges([])) == []


class TestWatch:
    async def test_from_a_revision_on(self, store: Store, prefix: str) -> None:
        before = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        first = await store.commit(puts=[Put(f"{prefix}b", b"2")])
        async with aclosing(store.watch(prefix, before)) as watch:
            assert await next_changes(watch) == Changes(first, (Change(f"{prefix}b", b"2", None, first),))
            second = await store.commit(puts=[Put(f"{prefix}c", b"3")])
            assert await next_changes(watch) == Changes(second, (Change(f"{prefix}c", b"3", None, second),))

    async def test_a_commit_arrives_whole_and_in_order(self, store: Store, prefix: str) -> None:
        start = await store.commit(puts=[Put(f"{prefix}z", b"0")])
        revision = await store.commit(puts=[Put(f"{prefix}{name}", b"1") for name in "dbca"], deletes=[f"{prefix}z"])
        async with aclosing(store.watch(prefix, start)) as watch:
            item = await next_changes(watch)
        assert item.revision == revision
        assert [change.key.removeprefix(prefix) for change in item.changes] == ["d", "b", "c", "a", "z"]

    async def test_a_delete_carries_the_prior_value(self, store: Store, prefix: str) -> None:
        start = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        revision = await store.commit(deletes=[f"{prefix}a", f"{prefix}missing"])
        async with aclosing(store.watch(prefix, start)) as watch:
            assert await next_changes(watch) == Changes(revision, (Change(f"{prefix}a", None, b"1", revision),))

    async def test_only_below_the_prefix(self, store: Store, prefix: str) -> None:
        start = await store.commit(puts=[Put(f"{prefix}x", b"0")])
        await store.commit(puts=[Put(f"{prefix}build-image/1", b"1")])
        await store.commit(puts=[Put(f"{prefix}build/1", b"2"), Put(f"{prefix}other", b"2")])
        async with aclosing(store.watch(f"{prefix}build/", start)) as watch:
            item = await next_changes(watch)
        assert [change.key for change in item.changes] == [f"{prefix}build/1"]

    async def test_resuming_at_any_revision_loses_and_repeats_nothing(self, store: Store, prefix: str) -> None:
        start = await store.commit(puts=[Put(f"{prefix}start", b"")])
        # Gathered commits may share revisions, so the batches are what the resumes fall between.
        await asyncio.gather(
            *(
                store.commit(puts=[Put(f"{prefix}{index:03}/{part}", b"x" * 50) for part in range(3)])
                for index in range(200)
            )
        )
        async with aclosing(store.watch(prefix, start)) as watch:
            everything = await collect(watch, 600)
        assert len({change.key for change in everything}) == 600
        resumed: list[Change] = []
        position = start
        while len(resumed) < 600:
            async with aclosing(store.watch(prefix, position)) as watch:
                item = await next_changes(watch)
            resumed.extend(item.changes)
            position = item.revision
        assert resumed == everything

    async def test_large_histories_arrive_in_order(self, store: Store, prefix: str) -> None:
        start = await store.commit(puts=[Put(f"{prefix}start", b"")])
        content = b"x" * 300_000
        for index in range(16):
            await store.commit(
                puts=[Put(f"{prefix}{index:02}/{part}", content) for part in range(4 if index % 2 else 1)]
            )
        async with aclosing(store.watch(prefix, start)) as watch:
            first = await anext(watch)
            if isinstance(first, Reset):
                pytest.skip("the driver keeps less history than this")
            changes = [*first.changes, *(await collect(watch, 40 - len(first.changes)))]
        assert [change.key.removeprefix(prefix) for change in changes] == [
            f"{index:02}/{part}" for index in range(16) for part in range(4 if index % 2 else 1)
        ]

    async def test_two_watches_see_the_same(self, store: Store, prefix: str) -> None:
        start = await store.commit(puts=[Put(f"{prefix}start", b"")])
        async with aclosing(store.watch(prefix, start)) as one, aclosing(store.watch(prefix, start)) as two:
            gathered = asyncio.gather(collect(one, 50), collect(two, 50))
            await asyncio.gather(*(store.commit(puts=[Put(f"{prefix}{index}", b"")]) for index in range(50)))
            first, second = await gathered
        assert first == second

    async def test_a_future_position_gets_a_reset_at_once(self, store: Store, prefix: str) -> None:
        revision = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        async with aclosing(store.watch(prefix, revision + 1_000)) as watch:
            reset = await anext(watch)
            assert reset == Reset(revision)
            later = await store.commit(puts=[Put(f"{prefix}b", b"1")])
            assert (await next_changes(watch)).revision == later

    async def test_closing_ends_it_and_leaves_no_task(self, store: Store, prefix: str) -> None:
        before = asyncio.all_tasks()
        watch = store.watch(prefix, 0)
        reading = asyncio.ensure_future(collect(watch, 1_000_000))
        await store.commit(puts=[Put(f"{prefix}a", b"1")])
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await watch.aclose()
        for _ in range(1_000):
            if asyncio.all_tasks() <= before:
                break
            await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before


class TestLease:
    async def test_expiry_deletes_the_keys_and_tells(self, store: Store, prefix: str) -> None:
        lease = await store.lease(1)
        start = await store.commit(
            puts=[Put(f"{prefix}a", b"1", lease.id), Put(f"{prefix}b", b"2", lease.id), Put(f"{prefix}c", b"3")]
        )
        async with aclosing(store.watch(prefix, start)) as watch:
            changes = await collect(watch, 2)
        assert sorted((change.key, change.value, change.prior) for change in changes) == [
            (f"{prefix}a", None, b"1"),
            (f"{prefix}b", None, b"2"),
        ]
        assert keys(await store.list(prefix)) == [f"{prefix}c"]
        with pytest.raises(LeaseLost):
            await lease.refresh()
        with pytest.raises(LeaseLost):
            await store.commit(puts=[Put(f"{prefix}d", b"1", lease.id)])

    async def test_refresh_keeps_it(self, store: Store, prefix: str) -> None:
        kept, lost = await store.lease(2), await store.lease(2)
        start = await store.commit(puts=[Put(f"{prefix}kept", b"", kept.id), Put(f"{prefix}lost", b"", lost.id)])

        async def refresh() -> None:
            while True:
                await kept.refresh()
                await asyncio.sleep(0.1)

        refreshing = asyncio.ensure_future(refresh())
        async with aclosing(store.watch(prefix, start)) as watch:
            # The other lease, as long as this one, ends meanwhile.
            assert [change.key for change in await collect(watch, 1)] == [f"{prefix}lost"]
        refreshing.cancel()
        assert keys(await store.list(prefix)) == [f"{prefix}kept"]
        await kept.revoke()

    async def test_revoke_deletes_the_keys_at_once_and_again_is_no_error(self, store: Store, prefix: str) -> None:
        lease = await store.lease(60)
        start = await store.commit(puts=[Put(f"{prefix}a", b"1", lease.id)])
        async with aclosing(store.watch(prefix, start)) as watch:
            await lease.revoke()
            assert await store.get(f"{prefix}a") is None
            assert [(change.value, change.prior) for change in await collect(watch, 1)] == [(None, b"1")]
        await lease.revoke()
        with pytest.raises(LeaseLost):
            await lease.refresh()

    async def test_many_keys_of_one_lease(self, store: Store, prefix: str) -> None:
        lease = await store.lease(60)
        start = (await store.list(prefix)).revision
        await asyncio.gather(
            *(
                store.commit(puts=[Put(f"{prefix}{index}/{part}", b"", lease.id) for part in range(50)])
                for index in range(40)
            )
        )
        await lease.revoke()
        assert keys(await store.list(prefix)) == []
        async with aclosing(store.watch(prefix, start)) as watch:
            changes = await collect(watch, 4_000)
        assert sum(change.value is None for change in changes) == 2_000

    async def test_a_put_without_it_sets_the_key_free(self, store: Store, prefix: str) -> None:
        lease = await store.lease(60)
        await store.commit(puts=[Put(f"{prefix}a", b"1", lease.id)])
        await store.commit(puts=[Put(f"{prefix}a", b"2")])
        await lease.revoke()
        assert await value(store, f"{prefix}a") == b"2"

    async def test_a_lost_lease_fails_only_its_own_commit(self, store: Store, prefix: str) -> None:
        lease = await store.lease(60)
        await lease.revoke()
        results = await asyncio.gather(
            *(store.commit(puts=[Put(f"{prefix}{index}", b"", lease.id if index == 3 else 0)]) for index in range(6)),
            return_exceptions=True,
        )
        assert [isinstance(result, LeaseLost) for result in results] == [index == 3 for index in range(6)]
        assert len(keys(await store.list(prefix))) == 5


class TestOpenAndClose:
    async def test_reopening_keeps_everything(self, backend: Backend) -> None:
        prefix = backend.prefix
        store = await backend.open()
        await store.commit(puts=[Put(f"{prefix}{index}", b"%d" % index) for index in range(20)])
        last = await store.commit(puts=[Put(f"{prefix}5", b"again")], deletes=[f"{prefix}6"])
        listing = await store.list(prefix)
        await store.close()
        store = await backend.open()
        try:
            assert await store.list(prefix) == listing
            # Deleting the key with the highest revision must not let revisions come again.
            await store.commit([Guard(f"{prefix}5", last)], deletes=[f"{prefix}5"])
        finally:
            await store.close()
        store = await backend.open()
        try:
            assert await store.commit(puts=[Put(f"{prefix}new", b"")]) > last + 1
        finally:
            await store.close()

    async def test_a_watch_from_before_a_reopen_resets_or_resumes(self, backend: Backend) -> None:
        prefix = backend.prefix
        store = await backend.open()
        first = await store.commit(puts=[Put(f"{prefix}a", b"1")])
        second = await store.commit(puts=[Put(f"{prefix}b", b"1")])
        epoch = store.epoch
        await store.close()
        store = await backend.open()
        try:
            assert (store.epoch == epoch) is backend.history_survives
            async with aclosing(store.watch(prefix, first)) as watch:
                item = await anext(watch)
                if backend.history_survives:
                    assert isinstance(item, Changes)
                else:
                    assert item == Reset(second)
                third = await store.commit(puts=[Put(f"{prefix}c", b"1")])
                assert (await next_changes(watch)).revision == third
        finally:
            await store.close()

    async def test_closed_is_unavailable(self, backend: Backend) -> None:
        prefix = backend.prefix
        store = await backend.open()
        lease = await store.lease(60)
        watch = store.watch(prefix, (await store.list(prefix)).revision)
        reading = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        await store.close()
        await store.close()
        for call in (
            reading,
            store.get(f"{prefix}a"),
            store.list(prefix),
            store.commit(puts=[Put(f"{prefix}a", b"")]),
            store.lease(1),
            lease.refresh(),
            anext(store.watch(prefix, 0)),
        ):
            with pytest.raises(Unavailable):
                await call

    async def test_close_finishes_what_is_under_way(self, backend: Backend) -> None:
        prefix = backend.prefix
        store = await backend.open()
        commits = [asyncio.ensure_future(store.commit(puts=[Put(f"{prefix}{index}", b"")])) for index in range(500)]
        await asyncio.sleep(0)
        await store.close()
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert all(isinstance(result, int | Unavailable) for result in results)
        store = await backend.open()
        written = set(keys(await store.list(prefix)))
        await store.close()
        assert {f"{prefix}{index}" for index, result in enumerate(results) if isinstance(result, int)} == written

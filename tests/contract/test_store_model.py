"""Each driver against the simplest store there is: a dict."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conveyor.store.port import Changes, Conflict, Guard, Put, Store
from tests.support.stores import Backend

NAMES = ["a", "b/1", "b/2", "b-c/1", "ü", "\U0001f600"]


@dataclass(frozen=True)
class Commit:
    """Names, with what a guard expects: what is there (True) or something else (False)."""

    guards: tuple[tuple[str, bool], ...]
    puts: tuple[tuple[str, bytes], ...]
    deletes: tuple[str, ...]


@dataclass
class Model:
    """What the store should hold, and the changes that it should have told of."""

    values: dict[str, bytes] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    changes: list[tuple[str, bytes | None, bytes | None]] = field(default_factory=list)

    def apply(self, commit: Commit) -> bool:
        if any(not right for _, right in commit.guards):
            return False
        for name, value in commit.puts:
            self.values[name] = value
            self.changes.append((name, value, None))
        for name in commit.deletes:
            if name in self.values:
                self.changes.append((name, None, self.values.pop(name)))
        return True


names = st.sampled_from(NAMES)


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    written = draw(st.lists(names, unique=True, max_size=4))
    cut = draw(st.integers(0, len(written)))
    return Commit(
        tuple(draw(st.lists(st.tuples(names, st.sampled_from([True, True, True, False])), max_size=2))),
        tuple((name, draw(st.binary(max_size=20))) for name in written[:cut]),
        tuple(written[cut:]),
    )


places = count()


def test_any_history(backend: Backend) -> None:
    """One runner, and so one open store, for all examples: each has a place of its own."""
    with asyncio.Runner() as runner:
        store = runner.run(backend.open())

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(history=st.lists(commits(), min_size=1, max_size=12))
        def check(history: Sequence[Commit]) -> None:
            runner.run(replay(store, f"{backend.prefix}{next(places)}/", history))

        try:
            check()
        finally:
            runner.run(store.close())


async def replay(store: Store, place: str, history: Sequence[Commit]) -> None:
    model = Model()
    start = (await store.list(place)).revision
    last = start
    for commit in history:
        guards = [
            Guard(place + name, model.revisions.get(name, 0) if right else model.revisions.get(name, 0) + 10_000_000)
            for name, right in commit.guards
        ]
        changed = len(model.changes)
        expected = model.apply(commit)
        conflict: Conflict | None = None
        revision = 0
        try:
            revision = await store.commit(
                guards,
                [Put(place + name, value) for name, value in commit.puts],
                [place + name for name in commit.deletes],
            )
        except Conflict as error:
            conflict = error
        assert (conflict is None) is expected
        if conflict is not None:
            name = next(name for name, right in commit.guards if not right)
            assert conflict.key == place + name
            current = conflict.current
            found = None if current is None else (current.value, current.mod_revision)
            assert found == ((model.values[name], model.revisions[name]) if name in model.values else None)
            continue
        assert (revision > last) if len(model.changes) > changed else (revision == last)
        last = revision
        for name, _ in commit.puts:
            model.revisions[name] = revision
        for name in commit.deletes:
            model.revisions.pop(name, None)
    listing = await store.list(place)
    assert listing.revision == last
    assert [(item.key, item.value, item.mod_revision) for item in listing.items] == [
        (place + name, model.values[name], model.revisions[name]) for name in sorted(model.values, key=str.encode)
    ]
    told: list[tuple[str, bytes | None, bytes | None]] = []
    async with aclosing(store.watch(place, start)) as watch:
        while len(told) < len(model.changes):
            item = await anext(watch)
            assert isinstance(item, Changes)
            told.extend((change.key.removeprefix(place), change.value, change.prior) for change in item.changes)
    assert told == model.changes

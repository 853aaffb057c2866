"""The rule of group commit: what goes together, what waits, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.store.group import MAX_BATCH, Group, Pending
from conveyor.store.port import MAX_COMMIT_BYTES, Guard, Put, Unavailable

Shape = tuple[frozenset[str], frozenset[str]]
"""Keys guarded, keys written."""


class Server:
    """Takes batches, holds them until told, and checks that no two in flight disturb each other."""

    def __init__(self, max_in_flight: int = 4, patience: float = 60) -> None:
        self.group = Group(self.send, max_in_flight, patience)
        self.batches: list[Sequence[Pending]] = []
        self.in_flight: list[tuple[Sequence[Pending], asyncio.Event]] = []
        self.done: list[Pending] = []

    def submit(self, guarded: Sequence[str], written: Sequence[str], size: int = 10) -> Pending:
        loop = asyncio.get_running_loop()
        guards = [Guard(key, 0) for key in guarded]
        pending = Pending(loop.create_future(), guards, [Put(key, b"") for key in written], (), size, loop.time())
        self.group.submit(pending)
        return pending

    async def send(self, batch: Sequence[Pending]) -> None:
        self.batches.append(batch)
        gate = asyncio.Event()
        self.in_flight.append((batch, gate))
        alive = [pending for batch, _ in self.in_flight for pending in batch]
        for index, one in enumerate(alive):
            for other in alive[index + 1 :]:
                assert not one.written & (other.written | other.guarded)
                assert not one.guarded & other.written
        await gate.wait()
        self.done.extend(batch)
        for pending in batch:
            pending.succeed(1)

    def answer(self, index: int = 0) -> None:
        _, gate = self.in_flight.pop(index)
        gate.set()


async def settle() -> None:
    """Let everything run that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


class TestBatches:
    async def test_a_lone_commit_goes_out_at_once(self) -> None:
        server = Server()
        pending = server.submit([], ["a"])
        await settle()
        assert server.batches == [[pending]]
        server.answer()
        assert await pending.answer == 1

    async def test_what_is_submitted_together_goes_together(self) -> None:
        server = Server()
        together = [server.submit([], [f"k{index}"]) for index in range(5)]
        await settle()
        assert server.batches == [together]

    async def test_at_most_so_many_and_so_large(self) -> None:
        server = Server(max_in_flight=99)
        for index in range(MAX_BATCH + 1):
            server.submit([], [f"k{index}"])
        await settle()
        assert [len(batch) for batch in server.batches] == [MAX_BATCH, 1]
        third = MAX_COMMIT_BYTES // 3
        for index in range(4):
            server.submit([], [f"large{index}"], third)
        await settle()
        assert [len(batch) for batch in server.batches[2:]] == [3, 1]

    async def test_at_most_so_many_in_flight(self) -> None:
        server = Server(max_in_flight=2)
        for index in range(4):
            server.submit([], [f"k{index}"])
            await settle()
        assert [len(batch) for batch in server.batches] == [1, 1]
        server.answer()
        await settle()
        assert [len(batch) for batch in server.batches] == [1, 1, 2]

    @pytest.mark.parametrize(
        ("first", "second", "together"),
        [
            ((["a"], []), (["a"], []), True),
            ((["a"], ["b"]), (["a"], ["c"]), True),
            (([], ["a"]), ([], ["a"]), False),
            ((["a"], []), ([], ["a"]), False),
            (([], ["a"]), (["a"], []), False),
        ],
    )
    async def test_what_touches_a_written_key_waits(
        self, first: tuple[list[str], list[str]], second: tuple[list[str], list[str]], together: bool
    ) -> None:
        server = Server()
        server.submit(*first)
        server.submit(*second)
        free = server.submit([], ["z"])
        await settle()
        assert len(server.batches) == 1
        assert (len(server.batches[0]) == 3) is together
        assert server.batches[0][-1] is free
        server.answer()
        await settle()
        assert sum(map(len, server.batches)) == 3

    async def test_nothing_overtakes_what_waits_on_the_same_key(self) -> None:
        server = Server()
        first = server.submit([], ["a"])
        waiting = server.submit([], ["a", "b"])
        behind = server.submit(["b"], ["c"])
        last = server.submit([], ["c"])
        for expected in (first, waiting, behind, last):
            await settle()
            assert server.batches[-1] == [expected]
            server.answer()

    async def test_a_cancelled_one_is_not_sent(self) -> None:
        server = Server()
        kept, dropped = server.submit([], ["a"]), server.submit([], ["b"])
        dropped.answer.cancel()
        await settle()
        assert server.batches == [[kept]]


class TestFailures:
    async def test_a_bug_in_sending_answers_everybody(self) -> None:
        async def send(_: Sequence[Pending]) -> None:
            raise ZeroDivisionError

        server = Server()
        server.group = Group(send, 1, 60)
        commits = [server.submit([], [f"k{index}"]) for index in range(40)]
        for pending in commits:
            with pytest.raises(ZeroDivisionError):
                await pending.answer

    async def test_what_waited_too_long_was_not_sent(self) -> None:
        server = Server(max_in_flight=1, patience=-1)
        with pytest.raises(Unavailable, match="not sent"):
            await server.submit([], ["a"]).answer
        assert server.batches == []

    async def test_closing_fails_what_waits_and_awaits_what_is_in_flight(self) -> None:
        server = Server(max_in_flight=1)
        sent = server.submit([], ["a"])
        await settle()
        waiting = server.submit([], ["b"])
        closing = asyncio.ensure_future(server.group.close())
        await settle()
        with pytest.raises(Unavailable):
            await waiting.answer
        assert not closing.done()
        server.answer()
        await closing
        assert sent.answer.result() == 1
        with pytest.raises(Unavailable):
            server.submit([], ["c"])


keys = st.frozensets(st.sampled_from("abcdef"), max_size=3)


@settings(deadline=None)
@given(
    shapes=st.lists(st.tuples(keys, keys), min_size=1, max_size=60),
    bursts=st.lists(st.integers(0, 7), min_size=1, max_size=20),
    answers=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    in_flight=st.integers(1, 4),
)
def test_any_load_keeps_the_order_of_each_key(
    shapes: list[Shape], bursts: list[int], answers: list[int], in_flight: int
) -> None:
    async def run() -> None:
        server = Server(in_flight)
        submitted: list[Pending] = []
        step = 0
        while len(server.done) < len(shapes):
            for _ in range(bursts[step % len(bursts)] or (step % 2)):
                if len(submitted) < len(shapes):
                    guarded, written = shapes[len(submitted)]
                    submitted.append(server.submit(sorted(guarded), sorted(written)))
            await settle()
            if server.in_flight:
                server.answer(answers[step % len(answers)] % len(server.in_flight))
                await settle()
            step += 1
        place = {id(pending): number for number, pending in enumerate(server.done)}
        for index, one in enumerate(submitted):
            for other in submitted[index + 1 :]:
                if one.written & (other.written | other.guarded) or one.guarded & other.written:
                    assert place[id(one)] < place[id(other)]

    asyncio.run(run())

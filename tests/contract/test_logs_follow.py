"""Followers get every line once, in order, from the first one to the end of the run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conveyor.bus.ordered import OrderedReader
from conveyor.logs.errors import BadCursor
from conveyor.logs.store import LogStore
from conveyor.v1 import log_pb2
from tests.support.bus import other_client, started_bus, until
from tests.support.logs import RUN, append, line, lines, logs_on, read, seqs, started_logs, told
from tests.support.nats import NatsServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    running = NatsServer(tmp_path / "nats").start()
    yield running
    running.kill()


class Follower:
    """Follows in a task of its own."""

    def __init__(self, logs: LogStore, finished: asyncio.Event, **query: Any) -> None:
        self.found: list[log_pb2.LogLine] = []
        self._logs = logs
        self._finished = finished
        self._query = query
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for batch in self._logs.follow("default", RUN, self._finished, **self._query):
            self.found += batch


async def test_twenty_followers_that_begin_at_any_time_get_all_lines_once(server: NatsServer) -> None:
    finished = asyncio.Event()
    async with started_logs(server) as logs:
        followers: list[Follower] = []
        for n in range(1, 5001, 10):
            if n % 250 == 1:
                followers.append(Follower(logs, finished))
            await append(logs, *lines(n, n + 9))
        finished.set()
        await asyncio.gather(*(follower.task for follower in followers))
        assert len(followers) == 20
        assert all(seqs(follower.found) == list(range(1, 5001)) for follower in followers)


async def test_a_follower_sees_lines_and_the_end_when_they_come(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not when a request to the broker happens to end.
    monkeypatch.setattr("conveyor.bus.ordered._EXPIRES_S", 3600)
    finished = asyncio.Event()
    async with started_logs(server) as logs:
        follower = Follower(logs, finished)
        for n in range(1, 6):
            await append(logs, line(n, ".", partial=True))
            await until(lambda n=n: len(follower.found) == n)  # type: ignore[misc]
        assert not follower.task.done()
        finished.set()
        await follower.task


async def test_a_follower_of_a_finished_run_gets_its_lines_and_returns(server: NatsServer) -> None:
    finished = asyncio.Event()
    finished.set()
    async with started_logs(server) as logs:
        await append(logs, *lines(1, 1000))
        for query, expected in (({}, 1000), ({"tail": 7}, 7), ({"step": "other"}, 0)):
            follower = Follower(logs, finished, **query)
            await follower.task
            assert len(follower.found) == expected


async def test_tail_and_follow(server: NatsServer) -> None:
    finished = asyncio.Event()
    async with started_logs(server) as logs:
        await append(logs, *lines(1, 100))
        follower = Follower(logs, finished, tail=5)
        await until(lambda: len(follower.found) == 5)
        await append(logs, *lines(101, 103))
        finished.set()
        await follower.task
        assert seqs(follower.found) == list(range(96, 104))


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_restart_of_the_broker_costs_followers_no_line(server: NatsServer, how: str) -> None:
    finished = asyncio.Event()
    async with started_bus(server) as bus, logs_on(bus) as logs:
        followers = [Follower(logs, finished) for _ in range(3)]
        for n in range(1, 301, 10):
            await append(logs, *lines(n, n + 9))
            if n in (101, 201):
                await asyncio.to_thread(getattr(server, how))
                await until(lambda: not bus.available)
                await asyncio.to_thread(server.start)
        finished.set()
        await asyncio.gather(*(follower.task for follower in followers))
        assert all(told(follower.found) == list(range(1, 301)) for follower in followers)


async def test_a_run_that_ends_while_the_broker_is_away_is_still_read_to_its_end(server: NatsServer) -> None:
    finished = asyncio.Event()
    async with started_bus(server) as bus, logs_on(bus) as logs:
        await append(logs, *lines(1, 5))
        follower = Follower(logs, finished)
        await until(lambda: len(follower.found) == 5)
        await asyncio.to_thread(server.kill)
        await until(lambda: not bus.available)
        finished.set()
        assert not follower.task.done()
        await asyncio.to_thread(server.start)
        await follower.task
        assert seqs(follower.found) == [1, 2, 3, 4, 5]


async def test_a_deleted_stream_is_told_to_followers(server: NatsServer) -> None:
    finished = asyncio.Event()
    async with started_logs(server) as logs, other_client(server) as other:
        await append(logs, *lines(1, 5))
        follower = Follower(logs, finished)
        await until(lambda: len(follower.found) == 5)
        await other.call("STREAM.DELETE.logs")
        await append(logs, *lines(6, 7))
        await until(lambda: len(follower.found) == 8)
        finished.set()
        await follower.task
        assert [(line.seq, line.lost) for line in follower.found[5:]] == [(0, 1), (6, 0), (7, 0)]


async def test_a_readers_consumer_that_was_deleted_is_made_again(server: NatsServer) -> None:
    finished = asyncio.Event()
    async with started_logs(server) as logs, other_client(server) as other:
        await append(logs, *lines(1, 5))
        follower = Follower(logs, finished)
        await until(lambda: len(follower.found) == 5)
        async for consumer in other.consumers("logs"):
            await other.call(f"CONSUMER.DELETE.logs.{consumer['name']}")
        await append(logs, *lines(6, 9))
        finished.set()
        await follower.task
        assert told(follower.found) == list(range(1, 10))


async def test_followers_leave_nothing_behind(server: NatsServer) -> None:
    finished = asyncio.Event()
    async with started_logs(server) as logs, other_client(server) as other:
        await append(logs, *lines(1, 5))
        tasks = asyncio.all_tasks()
        followers = [Follower(logs, finished) for _ in range(20)]
        await until(lambda: all(len(follower.found) == 5 for follower in followers))
        for follower in followers[:10]:
            follower.task.cancel()
        finished.set()
        await asyncio.gather(*(follower.task for follower in followers), return_exceptions=True)
        await until(lambda: asyncio.all_tasks() == tasks)
        assert [consumer async for consumer in other.consumers("logs")] == []


async def test_a_cursor_goes_on_after_its_line(server: NatsServer) -> None:
    async with started_logs(server) as logs:
        for n in range(1, 101, 10):
            await append(logs, *lines(n, n + 9))
        await append(logs, line(101, "x" * 1_000_000))
        found = await read(logs)
        for n in (0, 9, 10, 55, len(found) - 3, len(found) - 1):
            rest = await read(logs, cursor=found[n].cursor)
            assert [line.cursor for line in rest] == [line.cursor for line in found[n + 1 :]]


async def test_a_gap_right_after_the_cursor_shows_again(server: NatsServer) -> None:
    async with started_logs(server) as logs:
        await append(logs, *lines(1, 3), line(7, lost=3))
        found = await read(logs)
        assert told(await read(logs, cursor=found[2].cursor)) == ["6 (lost 3)", 7]
        assert told(await read(logs, cursor=found[3].cursor)) == [7]


async def test_a_cursor_of_another_stream_is_told_and_everything_comes(server: NatsServer) -> None:
    async with started_logs(server) as logs, other_client(server) as other:
        await append(logs, *lines(1, 5))
        cursor = (await read(logs))[-1].cursor
        await other.call("STREAM.DELETE.logs")
        await append(logs, *lines(6, 7))
        found = await read(logs, cursor=cursor)
        assert found[0].lost
        assert seqs(found[-2:]) == [6, 7]


@pytest.mark.parametrize("cursor", ["x", "1-2", "abcdefgh-1-x", "abcdefgh-" + "9" * 30 + "-1", "abcdefgh-١-1"])
async def test_a_cursor_that_is_none_is_refused(server: NatsServer, cursor: str) -> None:
    async with started_logs(server) as logs:
        with pytest.raises(BadCursor):
            await read(logs, cursor=cursor)


async def test_a_message_larger_than_a_request_brings_is_read(server: NatsServer) -> None:
    async with started_logs(server) as logs, other_client(server) as other:
        await append(logs, line(1))
        await other.publish(f"logs.{RUN}", b"x" * (6 << 20))
        await append(logs, line(2))
        found = await read(logs)
        assert seqs([found[0], found[-1]]) == [1, 2]
        assert sum(len(line.text) for line in found[1:-1]) == 6 << 20


async def test_a_message_lost_on_the_way_to_a_reader_is_read_again(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the client drops what a slow reader does not take."""
    original = OrderedReader._read
    dropped = 0

    async def drop_some(self: OrderedReader, pull: Any) -> Any:
        nonlocal dropped
        if dropped < 3 and self._delivered % 5 == 4:
            dropped += 1
            await pull.get()
        return await original(self, pull)

    monkeypatch.setattr(OrderedReader, "_read", drop_some)
    async with started_logs(server) as logs:
        for n in range(1, 21):
            await append(logs, line(n))
        assert told(await read(logs)) == list(range(1, 21))
    assert dropped == 3

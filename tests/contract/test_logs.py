"""Lines are stored in order and once, or their loss is marked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyor.bus.loglines import StoredLine, encode_line, join
from conveyor.logs import store
from conveyor.logs.errors import LogsUnavailable
from conveyor.v1 import log_pb2
from tests.support.bus import other_client, started_bus, until
from tests.support.logs import RUN, append, line, lines, logs_on, read, seqs, started_logs, told
from tests.support.nats import NatsServer
from tests.support.vectors import vectors


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    running = NatsServer(tmp_path / "nats").start()
    yield running
    running.kill()


async def test_lines_come_back_as_they_went(server: NatsServer) -> None:
    given = line(1, "\x1b[31mred\x1b[0m \u2028 🚚", stream=log_pb2.LOG_STREAM_STDERR)
    given.time.FromJsonString("2026-11-25T10:00:00.123456789Z")
    async with started_logs(server) as logs:
        assert await append(logs, given) == {("s", 1): 2}
        (found,) = await read(logs)
    assert found.cursor
    found.ClearField("cursor")
    given.driver = "d"
    assert found == given


async def test_many_lines_are_few_messages(server: NatsServer) -> None:
    async with started_logs(server) as logs, other_client(server) as other:
        assert await append(logs, *lines(1, 3000)) == {("s", 1): 3001}
        assert seqs(await read(logs)) == list(range(1, 3001))
        stream = await other.stream("logs")
        assert stream
        assert stream["state"]["messages"] < 5


async def test_concurrent_appends_of_one_attempt_are_merged_in_the_order_of_the_calls(server: NatsServer) -> None:
    async with started_logs(server) as logs, other_client(server) as other:
        await asyncio.gather(*(append(logs, line(n)) for n in range(1, 1001)))
        assert seqs(await read(logs)) == list(range(1, 1001))
        stream = await other.stream("logs")
        assert stream
        assert stream["state"]["messages"] < 500


async def test_resent_lines_are_stored_once(server: NatsServer) -> None:
    async with started_logs(server) as logs:
        assert await append(logs, *lines(1, 10)) == {("s", 1): 11}
        assert await append(logs, *lines(1, 10)) == {("s", 1): 11}
        assert await append(logs, *lines(5, 12)) == {("s", 1): 13}
        assert seqs(await read(logs)) == list(range(1, 13))


async def test_what_comes_after_a_gap_is_not_stored_and_the_ack_says_what_is_wanted(server: NatsServer) -> None:
    async with started_logs(server) as logs:
        assert await append(logs, *lines(3, 5)) == {("s", 1): 1}
        assert await append(logs, *lines(1, 2), *lines(7, 9)) == {("s", 1): 3}
        assert await append(logs, *lines(3, 9)) == {("s", 1): 10}
        assert told(await read(logs)) == list(range(1, 10))


async def test_a_writer_that_cannot_fill_a_gap_says_so(server: NatsServer) -> None:
    async with started_logs(server) as logs:
        await append(logs, *lines(1, 2))
        assert await append(logs, line(6, lost=3)) == {("s", 1): 7}
        assert await append(logs, line(9, "", lost=3)) == {("s", 1): 10}
        assert await append(logs, line(10)) == {("s", 1): 11}
        found = await read(logs)
    assert told(found) == [1, 2, "5 (lost 3)", 6, "9 (lost 3)", 10]
    assert [line.text for line in found if line.lost] == ["", ""]


async def test_attempts_and_steps_have_numbers_of_their_own(server: NatsServer) -> None:
    async with started_logs(server) as logs:
        acks = await append(logs, *lines(1, 3), *lines(1, 2, attempt=2), *lines(1, 4, step="t"))
        assert acks == {("s", 1): 4, ("s", 2): 3, ("t", 1): 5}
        await append(logs, line(4))
        assert seqs(await read(logs, step="s", attempt=1)) == [1, 2, 3, 4]
        assert seqs(await read(logs, step="s", attempt=2)) == [1, 2]
        assert seqs(await read(logs, step="s")) == [1, 2, 3, 1, 2, 4]
        assert seqs(await read(logs, step="t")) == [1, 2, 3, 4]
        assert len(await read(logs)) == 10


async def test_lines_without_a_number_get_the_next_one(server: NatsServer) -> None:
    async with started_logs(server) as logs:
        assert await append(logs, line(0, "a"), line(0, "b")) == {("s", 1): 3}
        assert await append(logs, line(0, "c")) == {("s", 1): 4}
        assert [(line.seq, line.text) for line in await read(logs)] == [(1, "a"), (2, "b"), (3, "c")]


async def test_namespaces_and_run_ids_that_begin_alike_are_apart(server: NatsServer) -> None:
    async with started_logs(server) as logs:
        await append(logs, *lines(1, 3))
        await logs.append("team-a", lines(1, 2), "d")
        await logs.append("default", [log_pb2.LogLine(run=RUN + "0", step="s", attempt=1, seq=1)], "d")
        assert len(await read(logs)) == 3
        await logs.purge("default", RUN)
        assert await read(logs) == []
        assert [len(batch) async for batch in logs.read("team-a", RUN)] == [2]
        assert len(await read(logs, RUN + "0")) == 1
        # The numbers go on: a purge is no reason to begin again.
        assert await append(logs, line(4)) == {("s", 1): 5}
        assert told(await read(logs)) == ["3 (lost 3)", 4]


@pytest.mark.parametrize("size", [64 * 1024, 1024 * 1024, 5 * 1024 * 1024])
async def test_long_lines_are_split_and_whole(server: NatsServer, size: int) -> None:
    text = ("ü" * 1000 + "\x01") * (size // 2001)
    async with started_logs(server) as logs:
        assert await append(logs, line(1, text), line(2, "end")) == {("s", 1): 3}
        found = await read(logs)
    assert "".join(line.text for line in found[:-1]) == text
    assert all(len(line.text.encode()) <= 256 * 1024 for line in found)
    assert [line.partial for line in found[-2:]] == [False, False]
    assert all(line.partial for line in found[:-2])
    assert found[-1].text == "end"


async def test_another_process_goes_on_where_the_first_was(server: NatsServer) -> None:
    async with started_logs(server) as first:
        await append(first, *lines(1, 100))
        await append(first, *lines(1, 5, attempt=2))
        await append(first, *lines(101, 110))
    async with started_logs(server) as second, other_client(server) as other:
        readers: list[object] = []

        async def hear(message: object) -> None:
            readers.append(message)

        await other.session.subscribe("$JS.API.CONSUMER.CREATE.logs.>", hear)
        assert await append(second, *lines(90, 120), *lines(4, 8, attempt=2)) == {("s", 1): 121, ("s", 2): 9}
        assert await append(second, *lines(1, 2, attempt=3)) == {("s", 3): 3}
        # The last message says how far each attempt is, so nothing else was read.
        await other.call("INFO")
        assert not readers
        assert seqs(await read(second, step="s", attempt=1)) == list(range(1, 121))
        assert seqs(await read(second, step="s", attempt=2)) == list(range(1, 9))


async def test_two_replicas_that_write_to_the_same_attempt_store_each_line_once(server: NatsServer) -> None:
    async with started_logs(server) as first, started_logs(server) as second:
        for n in range(1, 101, 10):
            await asyncio.gather(append(first, *lines(n, n + 9)), append(second, *lines(n, n + 9)))
        async with other_client(server) as other:
            stream = await other.stream("logs")
        found = await read(first)
        assert seqs(found) == list(range(1, 101))
        assert stream
        assert stream["state"]["messages"] == 10


async def test_a_drivers_own_lines_count_and_its_repetitions_do_not_show(server: NatsServer) -> None:
    def body(first: int, last: int) -> bytes:
        return join([encode_line(StoredLine(one)) for one in lines(first, last)])

    async with started_logs(server) as logs, other_client(server) as other:
        for first, last in ((1, 5), (1, 5), (4, 8), (12, 13)):
            await other.publish(f"logs.{RUN}.s", body(first, last))
        assert told(await read(logs)) == [*range(1, 9), "11 (lost 3)", 12, 13]
        # A worker that takes the attempt over by gRPC goes on from there.
        assert await append(logs, *lines(10, 15)) == {("s", 1): 16}
        assert seqs(await read(logs))[-2:] == [14, 15]


async def test_lines_of_older_drivers_are_there_and_their_copies_are_not(server: NatsServer) -> None:
    async with started_logs(server) as logs, other_client(server) as other:
        recorded = vectors("js-publish", "logs.") + vectors("core-nats", "live.logs.")
        run = recorded[0]["body"]["runid"]
        for vector in recorded:
            await other.session.publish(vector["subject"], json.dumps(vector["body"]).encode())
        await other.call("INFO")
        expected = [v["body"]["message"] for v in vectors("js-publish", f"logs.{run}")]
        assert [line.text for line in await read(logs, run)] == expected
        # They name no step: the driver tells whose they are.
        assert await read(logs, run, step="build") == []
        assert [line.text for line in await read(logs, run, step="build", driver="d2")] == ["hello from d2"]


async def test_bytes_that_are_no_line_break_nothing(server: NatsServer) -> None:
    async with started_logs(server) as logs, other_client(server) as other:
        await append(logs, line(1))
        await other.publish(f"logs.{RUN}.s", b"\xff raw")
        await append(logs, line(2))
        assert [line.text for line in await read(logs)] == ["line 1", "\ufffd raw", "line 2"]


async def test_tail_gives_the_last_lines(server: NatsServer) -> None:
    async with started_logs(server) as logs:
        await append(logs, *lines(1, 100))
        assert seqs(await read(logs, tail=3)) == [98, 99, 100]
        assert len(await read(logs, tail=1000)) == 100
        assert await read(logs, "0193f3a0-0000-7000-8000-00000000ffff", tail=3) == []


async def test_without_the_broker_append_waits_and_then_says_so(server: NatsServer) -> None:
    async with started_bus(server) as bus, logs_on(bus) as logs:
        await append(logs, *lines(1, 3))
        await asyncio.to_thread(server.kill)
        await until(lambda: not bus.available)
        with pytest.raises(LogsUnavailable):
            await append(logs, *lines(4, 6), timeout=0.3)
        waiting = asyncio.create_task(append(logs, *lines(4, 8), timeout=60))
        await asyncio.to_thread(server.start)
        assert await waiting == {("s", 1): 9}
        assert told(await read(logs)) == list(range(1, 9))


async def test_lines_without_a_number_that_were_given_up_are_marked(server: NatsServer) -> None:
    async with started_bus(server) as bus, logs_on(bus) as logs:
        await append(logs, line(0))
        await asyncio.to_thread(server.kill)
        await until(lambda: not bus.available)
        with pytest.raises(LogsUnavailable):
            await append(logs, line(0), line(0), timeout=0.1)
        await asyncio.to_thread(server.start)
        await bus.ready(20)
        await append(logs, line(0))
        assert told(await read(logs)) == [1, "3 (lost 2)", 4]


async def test_lines_that_are_never_sent_again_are_marked(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MARK_AFTER_S", 0.0)
    async with started_bus(server) as bus, logs_on(bus) as logs:
        await append(logs, *lines(1, 3))
        await asyncio.to_thread(server.kill)
        await until(lambda: not bus.available)
        with pytest.raises(LogsUnavailable):
            await append(logs, *lines(4, 6), timeout=0.1)
        await asyncio.to_thread(server.start)
        await bus.ready(20)
        async with asyncio.timeout(20):
            while len(found := await read(logs)) < 4:
                pass
        assert told(found) == [1, 2, 3, "6 (lost 3)"]


async def test_reading_says_when_the_broker_is_away(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyor.logs.reader.AWAY_S", 0.2)
    async with started_bus(server) as bus, logs_on(bus) as logs:
        await asyncio.to_thread(server.kill)
        await until(lambda: not bus.available)
        with pytest.raises(LogsUnavailable):
            await read(logs)
        with pytest.raises(LogsUnavailable):
            await logs.purge("default", RUN)


async def test_a_stream_created_anew_is_written_to_and_the_loss_shows(server: NatsServer) -> None:
    async with started_bus(server) as bus, logs_on(bus) as logs, other_client(server) as other:
        await append(logs, *lines(1, 5))
        await other.call("STREAM.DELETE.logs")
        assert await append(logs, *lines(6, 8)) == {("s", 1): 9}
        assert told(await read(logs)) == ["5 (lost 5)", 6, 7, 8]


async def test_old_lines_that_the_stream_dropped_are_marked(server: NatsServer) -> None:
    async with started_logs(server) as logs, other_client(server) as other:
        for n in range(1, 11):
            await append(logs, line(n))
        found = await read(logs)
        await other.call("STREAM.PURGE.logs", {"keep": 4})
        assert told(await read(logs)) == ["6 (lost 6)", 7, 8, 9, 10]
        # From a cursor that is among what was dropped, too.
        after = await read(logs, cursor=found[2].cursor)
        assert after[0].lost
        assert seqs(after[1:]) == [7, 8, 9, 10]
        assert seqs(await read(logs, cursor=found[7].cursor)) == [9, 10]

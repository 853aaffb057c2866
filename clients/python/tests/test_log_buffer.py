"""Log lines between jobs and transport."""

import asyncio
import threading

from conveyor.sdk.log_buffer import LogBuffer
from conveyor.v1.log_pb2 import LogStream

KEY = ("run-1", "build", 1)


def buffer(bound=1 << 20):
    return LogBuffer(asyncio.get_running_loop(), lambda: None, bound)


def texts(lines):
    return [(line.seq, line.text) for line in lines]


async def test_lines_are_numbered_and_kept_until_acked():
    logs = buffer()
    log = logs.open(KEY)
    log.write("one\ntwo\r\nthree\n")
    log.write("")
    log.write("four", LogStream.LOG_STREAM_STDERR)
    taken = logs.take(1 << 20)
    assert texts(taken) == [(1, "one"), (2, "two"), (3, "three"), (4, ""), (5, "four")]
    assert taken[4].stream == LogStream.LOG_STREAM_STDERR
    assert not logs.take(1 << 20)
    logs.ack(KEY, 4)
    assert not logs.empty
    logs.rewind()
    assert texts(logs.take(1 << 20)) == [(4, ""), (5, "four")]
    logs.ack(KEY, 6)
    assert logs.empty


async def test_no_more_is_taken_than_fits():
    logs = buffer()
    log = logs.open(KEY)
    for _ in range(10):
        log.write("x" * 1000)
    first = logs.take(2500)
    assert 2 <= len(first) <= 3
    assert logs.sent == len(first)
    assert logs.written == 10
    assert len(first) + len(logs.take(1 << 20)) == 10


async def test_long_lines_are_split_between_characters():
    logs = buffer()
    logs.line_bytes = 10
    log = logs.open(KEY)
    log.write("ä" * 12)
    taken = logs.take(1 << 20)
    assert "".join(line.text for line in taken) == "ä" * 12
    assert [line.partial for line in taken] == [True, True, False]
    assert all(len(line.text.encode()) <= 10 for line in taken)


async def test_text_that_is_not_unicode_is_replaced():
    logs = buffer()
    logs.open(KEY).write("a\ud800b")
    assert texts(logs.take(1 << 20)) == [(1, "a?b")]


async def test_after_its_end_a_log_takes_nothing():
    logs = buffer()
    log = logs.open(KEY)
    log.write("one")
    log.close()
    log.write("two")
    assert texts(logs.take(1 << 20)) == [(1, "one")]


async def test_the_loop_never_waits_and_the_loss_is_marked():
    logs = buffer(bound=1000)
    log = logs.open(KEY)
    for _ in range(100):
        log.write("x" * 100)
    kept = logs.take(1 << 20)
    assert len(kept) < 100
    logs.ack(KEY, kept[-1].seq + 1)
    log.write("last")
    lost, last = logs.take(1 << 20)
    assert lost.text == f"[{100 - len(kept)} lines are left out here: they came faster than the server stores them]"
    assert last.text == "last"
    assert [lost.seq, last.seq] == [kept[-1].seq + 1, kept[-1].seq + 2]


async def test_a_thread_waits_until_there_is_room():
    logs = buffer(bound=1000)
    log = logs.open(KEY)

    def write():
        for number in range(100):
            log.write(f"{number} " + "x" * 100)

    writing = asyncio.create_task(asyncio.to_thread(write))
    seen = []
    while not writing.done() or logs.written > logs.sent:
        taken = logs.take(1 << 20)
        seen += taken
        if taken:
            logs.ack(KEY, taken[-1].seq + 1)
        await asyncio.sleep(0)
    assert [line.seq for line in seen] == list(range(1, 101))
    assert not any(line.text.startswith("[") for line in seen)


async def test_a_cancelled_job_waits_no_more():
    logs = buffer(bound=1000)
    log = logs.open(KEY)
    full = threading.Event()

    def write():
        for number in range(100):
            if number == 15:
                full.set()
            log.write("x" * 100)

    writing = asyncio.create_task(asyncio.to_thread(write))
    log.do_not_wait()
    await writing
    log.close()
    assert "lines are left out here" in logs.take(1 << 20)[-1].text


async def test_lines_of_several_attempts_keep_their_order():
    logs = buffer()
    first, second = logs.open(KEY), logs.open(("run-2", "build", 1))
    first.write("a")
    second.write("b")
    first.write("c")
    assert [line.text for line in logs.take(1 << 20)] == ["a", "b", "c"]
    logs.discard([KEY])
    logs.rewind()
    assert [line.text for line in logs.take(1 << 20)] == ["b"]


async def test_a_server_that_stores_nothing_is_asked_with_a_few_lines_until_it_does():
    logs = buffer()
    logs.patience = 0
    log = logs.open(KEY)
    for number in range(300):
        log.write(f"{number} " + "x" * 1000)
    assert len(logs.take(1 << 20)) == 300
    logs.check()
    assert logs.stalled
    probe = logs.take(1 << 20)
    assert 0 < len(probe) < 100
    assert probe[0].seq == 1
    assert not logs.take(1 << 20)
    logs.check()
    assert logs.take(1 << 20)[0].seq == 1
    logs.ack(KEY, probe[-1].seq + 1)
    assert not logs.stalled
    rest = logs.take(1 << 20)
    assert rest[-1].seq == 300
    logs.ack(KEY, 301)
    assert logs.empty
    logs.check()
    assert not logs.stalled


async def test_no_thread_waits_while_nothing_is_stored():
    logs = buffer(bound=1000)
    logs.patience = 0
    log = logs.open(KEY)

    def write():
        for _ in range(100):
            log.write("x" * 100)

    log.write("first")
    logs.take(1 << 20)
    writing = asyncio.create_task(asyncio.to_thread(write))
    logs.check()
    await writing
    log.close()
    logs.ack(KEY, 2)
    assert "lines are left out here" in logs.take(1 << 20)[-1].text

"""Log lines over a socket and a real broker: written by any program, read back whole, followed to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from conveyor.core import limits
from conveyor.v1 import log_pb2, run_service_pb2
from conveyor.v1 import log_service_pb2 as pb
from tests.support.api import Api, refused, served
from tests.support.logs import started_logs
from tests.support.nats import NatsServer, binary


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    binary()
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server
    server.stop()


@pytest_asyncio.fixture
async def api(tmp_path: Path, nats: NatsServer) -> AsyncIterator[Api]:
    async with started_logs(nats) as logs, served(tmp_path, logs=logs) as started:
        await started.setup()
        yield started


def line(run: str, seq: int, text: str, step: str = "s0", attempt: int = 1) -> log_pb2.LogLine:
    return log_pb2.LogLine(run=run, step=step, attempt=attempt, seq=seq, text=text, driver="forged", cursor="forged")


async def write(api: Api, *batches: list[log_pb2.LogLine]) -> list[log_pb2.LogAck]:
    requests = [pb.WriteLogsRequest(lines=batch) for batch in batches]
    return list((await api.logs.WriteLogs(iter(requests))).log_acks)


async def read(api: Api, run: str, **fields: object) -> list[log_pb2.LogLine]:
    request = pb.ReadLogsRequest(run=run, **fields)  # type: ignore[arg-type]
    return [each async for response in api.logs.ReadLogs(request) for each in response.lines]


async def test_what_is_written_is_read_back(api: Api) -> None:
    run = (await api.create()).run.id
    acks = await write(
        api,
        [line(run, 1, "one"), line(run, 2, "two")],
        [line(run, 2, "two"), line(run, 3, "three"), line(run, 1, "other", step="s1")],
    )
    assert sorted((ack.step, ack.attempt, ack.next_seq) for ack in acks) == [("s0", 1, 4), ("s1", 1, 2)]
    lines = await read(api, run)
    assert [(each.step, each.seq, each.text) for each in lines] == [
        ("s0", 1, "one"),
        ("s0", 2, "two"),
        ("s0", 3, "three"),
        ("s1", 1, "other"),
    ]
    # The driver is the step's, whatever the writer says.
    assert {each.driver for each in lines} == {"build", "test"}
    assert [each.text for each in await read(api, run, step="s1")] == ["other"]
    assert [each.text for each in await read(api, run, step="s0", attempt=2)] == []
    assert [each.text for each in await read(api, run, tail=2)] == ["three", "other"]
    assert [each.text for each in await read(api, run, cursor=lines[1].cursor)] == ["three", "other"]


async def test_what_cannot_be_written_or_read(api: Api) -> None:
    run = (await api.create()).run.id
    missing = ("NOT_FOUND", "NOT_FOUND")
    for wrong in (line(run, 1, "x", step="nope"), line("01890000-0000-7000-8000-000000000000", 1, "x")):
        assert (await refused(api.logs.WriteLogs(iter([pb.WriteLogsRequest(lines=[wrong])])))).kind == missing
    unnumbered = pb.WriteLogsRequest(lines=[line(run, 0, "x")])
    assert (await refused(api.logs.WriteLogs(iter([unnumbered])))).fields == ["lines[0].seq"]
    broken = await refused(api.logs.ReadLogs(pb.ReadLogsRequest(run=run, cursor="?")))
    assert broken.kind == ("INVALID_ARGUMENT", "INVALID_CURSOR")


async def test_a_long_line_comes_back_whole_in_marked_parts(api: Api) -> None:
    run = (await api.create()).run.id
    text = "é" * limits.LOG_LINE_BYTES
    await write(api, [line(run, 1, text), line(run, 2, "next")])
    lines = await read(api, run)
    parts = [each for each in lines if each.seq == 1]
    assert len(parts) > 1
    assert [each.partial for each in parts] == [True] * (len(parts) - 1) + [False]
    assert "".join(each.text for each in parts) == text
    assert lines[-1].text == "next"


async def test_followers_get_every_line_and_end_with_the_run(api: Api) -> None:
    run = (await api.create()).run.id
    await write(api, [line(run, seq, f"line {seq}") for seq in range(1, 51)])
    following = [asyncio.create_task(read(api, run, follow=True)) for _ in range(5)]
    await write(api, [line(run, seq, f"line {seq}") for seq in range(51, 101)])
    await api.cancelled(run)
    for follower in following:
        assert [each.seq for each in await follower] == list(range(1, 101))
    # A run that has ended is not followed, only read.
    assert len(await read(api, run, follow=True)) == 100


async def test_a_deleted_run_takes_its_lines_along(api: Api) -> None:
    run = (await api.create()).run.id
    await write(api, [line(run, 1, "x")])
    await api.cancelled(run)
    await api.runs.DeleteRun(run_service_pb2.DeleteRunRequest(id=run))
    assert (await refused(api.logs.ReadLogs(pb.ReadLogsRequest(run=run)))).kind == ("NOT_FOUND", "NOT_FOUND")

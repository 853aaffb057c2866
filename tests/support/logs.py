"""Lines, and a place for them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from conveyor.bus.nats import Bus
from conveyor.logs.store import LogStore
from conveyor.v1 import log_pb2
from tests.support.bus import started_bus
from tests.support.nats import NatsServer

RUN = "0193f3a0-0000-7000-8000-000000000001"


@contextlib.asynccontextmanager
async def logs_on(bus: Bus) -> AsyncGenerator[LogStore, None]:
    opened = LogStore(bus)
    try:
        yield opened
    finally:
        await opened.close()


@contextlib.asynccontextmanager
async def started_logs(server: NatsServer) -> AsyncGenerator[LogStore, None]:
    async with started_bus(server) as bus, logs_on(bus) as opened:
        yield opened


def line(seq: int, text: str | None = None, *, attempt: int = 1, step: str = "s", **fields: Any) -> log_pb2.LogLine:
    text = f"line {seq}" if text is None else text
    return log_pb2.LogLine(run=RUN, step=step, attempt=attempt, seq=seq, text=text, **fields)


def lines(first: int, last: int, **fields: Any) -> list[log_pb2.LogLine]:
    return [line(seq, **fields) for seq in range(first, last + 1)]


async def append(logs: LogStore, *given: log_pb2.LogLine, timeout: float = 20) -> dict[tuple[str, int], int]:
    acks = await logs.append("default", given, "d", timeout=timeout)
    assert {ack.run for ack in acks} <= {RUN}
    return {(ack.step, ack.attempt): ack.next_seq for ack in acks}


async def read(logs: LogStore, run: str = RUN, **query: Any) -> list[log_pb2.LogLine]:
    return [line async for batch in logs.read("default", run, **query) for line in batch]


def seqs(found: list[log_pb2.LogLine]) -> list[int]:
    return [line.seq for line in found]


def told(found: list[log_pb2.LogLine]) -> list[int | str]:
    """The numbers, with marks as text."""
    return [f"{line.seq} (lost {line.lost})" if line.lost else line.seq for line in found]

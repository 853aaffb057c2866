"""A connection to the broker that breaks in the middle of something."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from conveyor.bus.errors import BusUnavailable
from conveyor.bus.options import BusOptions
from conveyor.bus.session import Session
from tests.support.nats import NatsServer

uvloop = pytest.importorskip("uvloop")


async def _ignore(_: Any) -> None:
    """Nothing is heard."""


async def _use_a_closed_socket(url: str) -> None:
    """As a process that goes on after a stop, in which its broker has hung up."""
    before = asyncio.all_tasks()
    session = await Session.connect(BusOptions((url,)))
    subscriptions = [await session.subscribe("a.subject", _ignore) for _ in range(3)]
    session._client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
    await asyncio.sleep(0)
    assert not session.lost
    for unsubscribe in subscriptions:
        await unsubscribe()
        with contextlib.suppress(BusUnavailable):
            await session.publish("a.subject", b"")
        with contextlib.suppress(BusUnavailable):
            await session.subscribe("another.subject", _ignore)
    await session.close(flush=True)
    assert asyncio.all_tasks() == before


async def test_a_closed_socket_means_that_the_broker_is_away(tmp_path: Path) -> None:
    """Also while nobody has been told of it: the loop that servers use has an error of its own for that."""
    server = await asyncio.to_thread(NatsServer(tmp_path / "nats").start)
    try:
        await asyncio.to_thread(uvloop.run, _use_a_closed_socket(server.url))
    finally:
        await asyncio.to_thread(server.kill)

"""A client of the broker that is closed leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from nats.aio.client import Client

from conveyor.sdk.jetstream_close import closed
from tests.support.nats import NatsServer


async def _ignore(_: Exception) -> None:
    """It is told of the broken connection."""


async def test_a_client_that_is_reconnecting_leaves_nothing(tmp_path: Path) -> None:
    server = await asyncio.to_thread(NatsServer(tmp_path / "nats").start)
    try:
        before = asyncio.all_tasks()
        for _ in range(60):
            client = Client()
            await client.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0, error_cb=_ignore)
            client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
            # Wherever it is by then on its way back.
            await asyncio.sleep(random.uniform(0, 0.004))
            await closed(client)
            assert asyncio.all_tasks() <= before
    finally:
        await asyncio.to_thread(server.kill)

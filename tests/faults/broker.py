"""Somebody deletes what is on the broker: streams, consumers, messages, or all that it stored."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random

import nats
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from conveyor.bus.subjects import LOGS_STREAM, MESSAGES_STREAM, PIPELINE_STREAM
from tests.faults.cluster import Cluster


@contextlib.asynccontextmanager
async def administrator(cluster: Cluster) -> AsyncIterator[JetStreamContext]:
    """A connection of somebody who may do anything on the broker."""
    connection = await nats.connect(cluster.nats.url)
    try:
        yield connection.jetstream()
    finally:
        await connection.close()


async def _delete(jetstream: JetStreamContext, stream: str, rng: Random) -> str:
    await jetstream.delete_stream(stream)
    return f"deleted stream {stream}"


async def _purge(jetstream: JetStreamContext, stream: str, rng: Random) -> str:
    await jetstream.purge_stream(stream)
    return f"purged stream {stream}"


async def _delete_consumer(jetstream: JetStreamContext, stream: str, rng: Random) -> str:
    names = sorted(str(consumer.name) for consumer in await jetstream.consumers_info(stream))
    if not names:
        return f"no consumer on {stream}"
    name = rng.choice(names)
    await jetstream.delete_consumer(stream, name)
    return f"deleted consumer {name} of stream {stream}"


_Deed = Callable[[JetStreamContext, str, Random], Awaitable[str]]


@dataclass
class Meddling:
    """One deed of an administrator, on one stream."""

    name: str
    stream: str
    deed: _Deed
    component: str = "nats"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return ""

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        async with cluster.held(cluster.nats), administrator(cluster) as jetstream:
            try:
                return await self.deed(jetstream, self.stream, rng)
            except NotFoundError:
                return f"stream {self.stream} was not there"


class Wipe:
    """The broker dies, and comes back with nothing."""

    name = "wipe-nats"
    component = "nats"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return ""

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        async with cluster.held(cluster.nats):
            await cluster.kill(cluster.nats)
            await asyncio.to_thread(cluster.nats.wipe)
            await cluster.restart(cluster.nats)
        return "the broker lost all that it stored"


_STREAMS = (PIPELINE_STREAM, MESSAGES_STREAM, LOGS_STREAM)

FAULTS = [
    *(lambda stream=stream: Meddling(f"delete-stream-{stream}", stream, _delete) for stream in _STREAMS),
    *(lambda stream=stream: Meddling(f"purge-stream-{stream}", stream, _purge) for stream in _STREAMS),
    *(
        lambda stream=stream: Meddling(f"delete-consumer-{stream}", stream, _delete_consumer)
        for stream in (PIPELINE_STREAM, MESSAGES_STREAM)
    ),
    Wipe,
]

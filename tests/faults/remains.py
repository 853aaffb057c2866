"""What servers keep after everybody has gone, and what they call a mistake in their logs."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.error
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cluster import Cluster
from tests.support.metrics import scrape
from tests.support.server import ConveyorServer

_GAUGES = ("conveyor_workers", "conveyor_watchers", "conveyor_active_runs")
_SLACK_DESCRIPTORS = 6
_SLACK_THREADS = 12
_SLACK_BYTES = 96 << 20
_WITHIN = 20.0
"""Seconds: killed workers are lost after their TTL, and a dead connection takes its time too."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server process uses."""

    descriptors: int
    threads: int
    resident: int
    """Bytes."""


def usage(server: ConveyorServer) -> Usage:
    """What it uses now."""
    process = Path(f"/proc/{server.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Usage(
        descriptors=sum(1 for _ in (process / "fd").iterdir()),
        threads=int(status["Threads"]),
        resident=int(status["VmRSS"].split()[0]) << 10,
    )


async def left_over(cluster: Cluster, fresh: Usage) -> dict[str, str]:
    """What is more than in a server that has just started, once that does not become less any more."""
    give_up = time.monotonic() + _WITHIN
    while True:
        found: dict[str, str] = {}
        for server in cluster.servers:
            more = await asyncio.to_thread(_more, server, fresh)
            found |= {f"{what} of {cluster.name_of(server)}": told for what, told in more.items()}
        if not found or time.monotonic() > give_up:
            return found
        await asyncio.sleep(0.2)


def _more(server: ConveyorServer, fresh: Usage) -> dict[str, str]:
    now, found = usage(server), {}
    for what, slack in (("descriptors", _SLACK_DESCRIPTORS), ("threads", _SLACK_THREADS), ("resident", _SLACK_BYTES)):
        before, after = getattr(fresh, what), getattr(now, what)
        if after > before + slack:
            found[what] = f"{before}, now {after}"
    try:
        samples = scrape(server)
    except urllib.error.URLError as error:
        return {**found, "metrics": str(error)}
    return found | {gauge: f"0, now {samples[gauge]:g}" for gauge in _GAUGES if samples[gauge]}


_MISTAKE = re.compile(r"\[(error|critical) *\]|was never retrieved")
# A disk that a fault has filled is no mistake of the server's; nats-py tells of each connection that ends badly.
_EXPECTED = ("could not write", "[nats.aio.client]")


def mistakes(cluster: Cluster) -> list[str]:
    """Lines that a server wrote at level error or above: whatever faults do, there is a plan for it."""
    found = list(cluster.failures)
    for server in cluster.servers:
        lines = server.log.read_text().splitlines() if server.log.exists() else []
        bad = [line for line in lines if _MISTAKE.search(line) and not any(each in line for each in _EXPECTED)]
        found += [f"{cluster.name_of(server)}: {line[:400]}" for line in bad]
    return found

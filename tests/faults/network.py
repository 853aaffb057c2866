"""Connections that lose answers, hold what passes, or are cut: by the proxies between all processes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from tests.faults.cluster import LEASE_TTL, SESSION_TTL, Cluster
from tests.support.tcp_proxy import TcpProxy


def _proxies(cluster: Cluster, between: str) -> list[TcpProxy]:
    """Those on one way; there is one for each server where the server is who is reached."""
    if between in ("clients", "drivers"):
        return [cluster.proxies[f"{between}-{number}"] for number in range(len(cluster.servers))]
    return [cluster.proxies[between]] if between in cluster.proxies else []


@dataclass
class _Between:
    """A fault of connections. `between` is store, broker, drivers or clients: the ways to etcd, NATS and servers."""

    between: str
    component = "network"
    kind = ""

    @property
    def name(self) -> str:
        """As --faults knows it."""
        return f"{self.kind}-{self.between}"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return "" if _proxies(cluster, self.between) else "no etcd"


@dataclass
class LoseAnswer(_Between):
    """What is asked arrives and takes effect; what is answered meanwhile is lost, and the connections break."""

    kind = "lose-answer"

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        proxy, seconds = rng.choice(_proxies(cluster, self.between)), rng.choice([0.05, 0.2, 0.5])
        before = proxy.held
        proxy.hold_answers()
        try:
            await asyncio.sleep(seconds)
        finally:
            proxy.cut()
        return f"lost {proxy.held - before} answers of {seconds} s"


@dataclass
class HalfOpen(_Between):
    """Connections stay open and nothing passes any more, either way, until they break."""

    kind = "half-open"

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        proxy = rng.choice(_proxies(cluster, self.between))
        seconds = rng.choice([0.5, LEASE_TTL + 0.5, SESSION_TTL + 1.0])
        proxy.freeze()
        try:
            await asyncio.sleep(seconds)
        finally:
            proxy.cut()
        return f"nothing passed for {seconds} s"


@dataclass
class HoldAnswers(_Between):
    """One direction only: answers arrive late, and none is lost."""

    kind = "hold-answers"

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        proxy = rng.choice(_proxies(cluster, self.between))
        seconds = rng.choice([0.3, LEASE_TTL + 0.5, SESSION_TTL + 1.0])
        proxy.hold_answers()
        try:
            await asyncio.sleep(seconds)
        finally:
            proxy.let_pass()
        return f"answers were late by up to {seconds} s"


@dataclass
class Cut(_Between):
    """All connections are reset, and for a moment no new ones come about."""

    kind = "cut"

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        proxy, seconds = rng.choice(_proxies(cluster, self.between)), rng.choice([0, 0.3, 2.0])
        proxy.refuse()
        try:
            proxy.cut()
            await asyncio.sleep(seconds)
        finally:
            proxy.refuse(False)
        return f"cut, away for {seconds} s"


@dataclass
class Partition:
    """All that goes one way between a driver and its servers is lost; what goes the other way arrives."""

    name: str
    component: str = "network"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return "" if cluster.network is not None else "no network of a driver's own: needs root, ip and tc"

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        assert cluster.network is not None
        seconds = rng.choice([0.5, SESSION_TTL + 1.0, SESSION_TTL + 4.0])
        lose = cluster.network.lose_ours if self.name == "partition-to-driver" else cluster.network.lose_theirs
        await asyncio.to_thread(lose)
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(cluster.network.heal)
        return f"nothing arrived for {seconds} s"


_WAYS = ("store", "broker", "drivers", "clients")

FAULTS = [
    *(lambda way=way: LoseAnswer(way) for way in _WAYS),
    *(lambda way=way: HalfOpen(way) for way in _WAYS),
    *(lambda way=way: HoldAnswers(way) for way in _WAYS),
    *(lambda way=way: Cut(way) for way in _WAYS),
    lambda: Partition("partition-to-driver"),
    lambda: Partition("partition-from-driver"),
]

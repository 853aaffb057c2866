"""Processes that are killed, stopped and continued, and servers that die at a failpoint."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from tests.faults.cluster import LEASE_TTL, SESSION_TTL, Cluster, Process


def processes(cluster: Cluster, component: str) -> list[Process]:
    """The processes of a component."""
    if component == "server":
        return [*cluster.servers]
    if component == "etcd":
        return [cluster.etcd] if cluster.etcd is not None else []
    if component == "nats":
        return [cluster.nats]
    transport = component.removesuffix("-driver")
    return [unit for unit in cluster.drivers if unit.transport == transport]


def _unfit(cluster: Cluster, component: str) -> str:
    return "" if processes(cluster, component) else f"no {component}"


@dataclass
class Kill:
    """SIGKILL, and a new start after a moment."""

    component: str

    @property
    def name(self) -> str:
        """As --faults knows it."""
        return f"kill-{self.component}"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return _unfit(cluster, self.component)

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        process = rng.choice(processes(cluster, self.component))
        away = rng.choice([0, 0, 0, 0.3, 1.5])
        async with cluster.held(process):
            await cluster.kill(process)
            await asyncio.sleep(away)
            await cluster.restart(process)
        return f"killed {cluster.name_of(process)}, away for {away} s"


@dataclass
class Freeze:
    """SIGSTOP, and SIGCONT after less or more than what others take for its death."""

    component: str

    @property
    def name(self) -> str:
        """As --faults knows it."""
        return f"freeze-{self.component}"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return _unfit(cluster, self.component)

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        process = rng.choice(processes(cluster, self.component))
        seconds = rng.choice([0.3, LEASE_TTL / 2, LEASE_TTL + 0.5, SESSION_TTL + 1.0])
        async with cluster.held(process):
            await cluster.freeze(process)
            try:
                await asyncio.sleep(seconds)
            finally:
                await cluster.thaw(process)
        return f"froze {cluster.name_of(process)} for {seconds} s"


@dataclass
class Leave:
    """SIGTERM, and a new start: a server lets calls end, a driver what runs."""

    component: str

    @property
    def name(self) -> str:
        """As --faults knows it."""
        return f"restart-{self.component}"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return _unfit(cluster, self.component)

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        process = rng.choice(processes(cluster, self.component))
        async with cluster.held(process):
            code = await asyncio.to_thread(process.stop)
            await cluster.restart(process)
        return f"restarted {cluster.name_of(process)}" + (f" after exit code {code}" if code else "")


FAILPOINTS = (
    "store.before_commit",
    "store.after_commit",
    "engine.before_commit",
    "engine.after_commit",
    "engine.before_publish",
    "engine.after_publish",
    "engine.before_inbox_ack",
    "gateway.before_ack",
    "gateway.before_loss",
    "gateway.after_loss",
)


class Failpoint:
    """A server that dies at a failpoint, or, when it does not come there in time, wherever it is."""

    component = "server"

    def __init__(self, point: str) -> None:
        self._point = point
        self.name = f"failpoint-{point}"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return ""

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        number = rng.randrange(len(cluster.servers))
        hits = rng.choice([1, 1, 2, 3, 5, 10, 30])
        patience = rng.choice([0.8, 1.5, 3])
        if self._point.endswith("_loss"):
            # A worker that died a moment ago is lost after its TTL, and there are few of them.
            hits, patience = 1, SESSION_TTL + 2.0
        server, environment = cluster.servers[number], cluster.environments[number]
        async with cluster.held(server):
            environment["CONVEYOR_FAILPOINTS"] = f"{self._point}=kill:{hits}"
            await cluster.kill(server)
            try:
                # Not until it is ready: some points are on the way there.
                await asyncio.to_thread(server.spawn)
                waited = 0.0
                while server.running and waited < patience:
                    await asyncio.sleep(0.02)
                    waited += 0.02
            finally:
                environment["CONVEYOR_FAILPOINTS"] = ""
            came = "died at" if not server.running else "did not come to"
            await cluster.restart(server)
        return f"server-{number} {came} hit {hits} of {self._point}"


_COMPONENTS = ("server", "etcd", "nats", "grpc-driver", "jetstream-driver")

FAULTS = [
    *(lambda component=component: Kill(component) for component in _COMPONENTS),
    *(lambda component=component: Freeze(component) for component in _COMPONENTS),
    *(lambda component=component: Leave(component) for component in _COMPONENTS),
    *(lambda point=point: Failpoint(point) for point in FAILPOINTS),
]

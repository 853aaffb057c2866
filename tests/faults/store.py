"""etcd under hard conditions: history compacted away under a server that is stopped, and the quota reached."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from random import Random

from tests.faults.cluster import Cluster
from tests.support.etcd import etcdctl

_JUNK = "/junk/"

QUOTA = ("--quota-backend-bytes", str(48 << 20))
"""More than a round stores, and soon filled."""


def control(cluster: Cluster, *arguments: str, stdin: bytes = b"") -> str:
    """What etcdctl says. Raises CalledProcessError, with what it complained of."""
    assert cluster.etcd is not None
    command: list[str | Path] = [etcdctl(), "--endpoints", cluster.etcd.address, *arguments]
    environment = {**os.environ, "ETCDCTL_API": "3"}
    return subprocess.run(command, env=environment, input=stdin, check=True, capture_output=True).stdout.decode()


def compact(cluster: Cluster) -> int:
    """Compact all history up to now; returns the revision."""
    [member] = json.loads(control(cluster, "endpoint", "status", "--write-out", "json"))
    revision = int(member["Status"]["header"]["revision"])
    control(cluster, "compaction", str(revision))
    return revision


def fill(cluster: Cluster) -> int:
    """Write until etcd refuses more, as a neighbour on the same etcd would; returns how many MiB that took."""
    for number in range(4096):
        try:
            control(cluster, "put", f"{_JUNK}{number}", stdin=os.urandom(512 << 10).hex().encode())
        except subprocess.CalledProcessError as error:
            if b"database space exceeded" not in error.stderr:
                raise
            return number
    raise AssertionError("etcd has no quota")


def clear(cluster: Cluster) -> None:
    """Make room again, as etcd's manual says."""
    control(cluster, "del", "--prefix", _JUNK)
    compact(cluster)
    control(cluster, "defrag")
    control(cluster, "alarm", "disarm")


class CompactUnderStopped:
    """A server is stopped, loses its connections, and finds when it goes on that what it missed is gone."""

    name = "compact-etcd"
    component = "etcd"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        if cluster.etcd is None:
            return "no etcd"
        return "" if len(cluster.servers) > 1 else "nobody writes while the only server is stopped"

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        assert cluster.etcd is not None
        number = rng.randrange(len(cluster.servers))
        server = cluster.servers[number]
        async with cluster.held(server), cluster.held(cluster.etcd):
            await cluster.freeze(server)
            try:
                cluster.proxies["store"].cut()
                await asyncio.sleep(rng.choice([0.5, 1.5]))
                revision = await asyncio.to_thread(compact, cluster)
            finally:
                await cluster.thaw(server)
        return f"compacted up to {revision} under server-{number}"


class ReachQuota:
    """Somebody fills etcd up to its quota, and makes room again after a while."""

    name = "quota-etcd"
    component = "etcd"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        if cluster.etcd is None:
            return "no etcd"
        return "" if set(QUOTA) <= set(cluster.layout.etcd_arguments) else "the quota is too high to be reached"

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        assert cluster.etcd is not None
        seconds = rng.choice([0.3, 1, 3])
        async with cluster.held(cluster.etcd):
            try:
                mebibytes = await asyncio.to_thread(fill, cluster)
                await asyncio.sleep(seconds)
            finally:
                await asyncio.to_thread(clear, cluster)
        return f"{mebibytes} MiB were left, and none for {seconds} s"


FAULTS = [CompactUnderStopped, ReachQuota]

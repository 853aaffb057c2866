"""A disk that is full for a while: that of SQLite, or of the broker."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import Random

from tests.faults.cluster import Cluster, Process
from tests.support.small_disk import clear, fill, is_full


class FullDisk:
    """The disk of SQLite or of the broker is full for a while. Strikes where a directory has a disk of its own."""

    name = "full-disk"
    component = "disk"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return "" if _disks(cluster) else "no small disk: needs root, and a layout with small disks"

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        (disk, process), seconds = rng.choice(_disks(cluster)), rng.choice([0.3, 1, 3])
        async with cluster.held(process):
            written = await asyncio.to_thread(fill, disk)
            full = await asyncio.to_thread(is_full, disk)
            try:
                await asyncio.sleep(seconds)
            finally:
                await asyncio.to_thread(clear, disk)
            if process is cluster.nats:
                # One that failed to write goes on only after a restart.
                await cluster.restart(process)
        return f"{cluster.name_of(process)}'s was {'' if full else 'not '}full for {seconds} s by {written} bytes"


def _disks(cluster: Cluster) -> list[tuple[Path, Process]]:
    places: list[tuple[Path, Process]] = [(server.directory / "data", server) for server in cluster.servers]
    return [
        (place, process) for place, process in [*places, (cluster.nats.store, cluster.nats)] if os.path.ismount(place)
    ]


FAULTS = [FullDisk]

"""The servers' clock steps, and steps back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.faults.cluster import Cluster

HOUR = 3600.0


def set_clock(file: Path, seconds: float) -> None:
    """Have the servers' clock be ahead by so much; whoever reads meanwhile reads the former or the latter."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:g}")
    new.replace(file)


@dataclass
class StepClock:
    """Every server's clock is ahead or behind for a while; a server may be restarted meanwhile."""

    name: str
    seconds: float
    component: str = "clock"

    def unfit(self, cluster: Cluster) -> str:
        """See Fault."""
        return "" if cluster.clock is not None else "no clock that can be stepped"

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """See Fault."""
        assert cluster.clock is not None
        lasting = rng.choice([0.3, 1, 3])
        set_clock(cluster.clock, self.seconds)
        try:
            await asyncio.sleep(lasting)
        finally:
            set_clock(cluster.clock, 0)
        return f"{self.seconds:+g} s for {lasting} s"


FAULTS = [
    lambda: StepClock("clock-ahead", HOUR),
    lambda: StepClock("clock-behind", -HOUR),
]

"""What a fault is, and all that there are, by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from random import Random
from typing import Protocol

from tests.faults.cluster import Cluster


class Fault(Protocol):
    """One kind of trouble. An instance serves one round, and strikes as often as it is told."""

    name: str
    """For --faults and for the tally, e.g. kill-server."""
    component: str
    """What it strikes: server, etcd, nats, grpc-driver, jetstream-driver, network, disk or clock."""

    def unfit(self, cluster: Cluster) -> str:
        """Why it can't strike here: "needs root", "no etcd". Empty when it can."""
        ...

    async def strike(self, cluster: Cluster, rng: Random) -> str:
        """Do it, and heal it before the return, within about 10 s; returns one line for the history.

        Whatever it does at random comes from `rng`. Faults of other components may strike at the same time: who kills
        or stops a process holds it meanwhile (`Cluster.held`).
        """
        ...


_MODULES = ("kills", "network", "disk", "broker", "store", "clock")


def faults(names: Sequence[str] = ()) -> dict[str, Fault]:
    """One of each, by name. Each module lists its own in `FAULTS`: classes, or other callables, without arguments.

    `names`: only those that are named so or begin so.
    """
    found: dict[str, Fault] = {}
    for name in _MODULES:
        if find_spec(f"tests.faults.{name}") is None:
            continue
        for make in import_module(f"tests.faults.{name}").FAULTS:
            fault: Fault = make()
            assert fault.name not in found, f"two faults are named {fault.name}"
            if not names or fault.name.startswith(tuple(names)):
                found[fault.name] = fault
    return found

"""One round: everything random comes from its seed; how the processes are scheduled does not."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from conveyor.sdk import ApiError, Client
from conveyor.v1.run_pb2 import RunState
from tests.faults import history
from tests.faults.check import check
from tests.faults.cluster import Cluster, DriverUnit, Layout
from tests.faults.fault import Fault, faults
from tests.faults.history import History, Recorder, Violation
from tests.faults.kills import processes
from tests.faults.locks import claims_left
from tests.faults.remains import left_over, mistakes, usage
from tests.faults.selectors import LABELS
from tests.faults.workload import NAMESPACE, Workload, plan, stored
from tests.support.wait import until

_UNITS = (
    ("alpha-0", "alpha", "grpc", "app"),
    ("alpha-1", "alpha", "grpc", "app"),
    ("beta-0", "beta", "grpc", ""),
    ("gamma-0", "gamma", "jetstream", "app"),
    ("gamma-1", "gamma", "jetstream", "app"),
    ("delta-0", "delta", "grpc", ""),
    ("delta-1", "delta", "jetstream", ""),
)
"""Worker, driver, transport, and the definition whose broadcasts it wants. Delta takes part both ways."""
_APART = "alpha-1"
"""The worker with a network of its own, if there is one."""
_SLOTS = 8
_WEIGHTS = {"kill": 3}
"""How often faults of this kind strike for each other one of the same component."""
_UNFINISHED = [RunState.RUN_STATE_PENDING, RunState.RUN_STATE_RUNNING, RunState.RUN_STATE_CANCELLING]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a round is."""

    seed: int
    layout: Layout = field(default_factory=Layout)
    seconds: float = 15.0
    faults: tuple[str, ...] = ()
    """Names of faults, or how they begin, e.g. `kill-`. Empty: all that fit."""
    timed: bool = True
    """Whether all that JetStream drivers do has a timeout; needless as long as neither they nor the broker die."""
    resources: int = 4
    """How many resources runs are of."""
    rate: float = 15.0
    """What clients do, in calls per second."""
    patience: float = 90.0
    """Seconds within which every run has ended once faults end: the grace of a run that timed out alone is 30 s."""


@dataclass
class Outcome:
    """What a round came to."""

    settings: Settings
    history: History
    violations: list[Violation]
    strikes: Counter[tuple[str, str]]
    """How often each fault struck, by component and name."""


def play(settings: Settings, directory: Path) -> Outcome:
    """Play a round in a directory that is not there yet, and check it."""
    events = directory / "history"
    events.mkdir(parents=True)
    strikes: Counter[tuple[str, str]] = Counter()
    seen = asyncio.run(_play(settings, directory / "cluster", events, strikes))
    seen.events = history.read(events)
    return Outcome(settings, seen, check(seen), strikes)


async def _play(settings: Settings, directory: Path, events: Path, strikes: Counter[tuple[str, str]]) -> History:
    recorder = Recorder(events / "harness.jsonl", "harness")
    rng = Random(f"{settings.seed}/workload")
    planned = plan(rng, _timed(settings), settings.seconds, rate=settings.rate, resources=settings.resources)
    async with Cluster(directory, settings.layout) as cluster:
        fresh = await asyncio.to_thread(usage, cluster.servers[0])
        workload = Workload(planned, cluster.addresses, recorder)
        try:
            await workload.prepare()
            for unit in _units(cluster, events):
                await cluster.drive(unit)
            await _strike_during(workload.run(), settings, cluster, recorder, strikes)
            recorder.note("faults-ended")
            seen = await _collected(workload, cluster, settings.patience)
        finally:
            await workload.close()
            recorder.close()
        for number, unit in enumerate(cluster.drivers):
            await asyncio.to_thread(unit.stop if number % 2 else unit.kill)
        seen.left = {**await claims_left(cluster.addresses, NAMESPACE), **await left_over(cluster, fresh)}
        seen.mistakes = mistakes(cluster)
        return seen


def _timed(settings: Settings) -> dict[str, bool]:
    """Whether what a driver has to do needs a timeout: what a killed one leaves behind on JetStream ends by that."""
    jetstream = {driver for _, driver, transport, _ in _UNITS if transport == "jetstream"}
    return {driver: driver in jetstream and settings.timed for _, driver, *_ in _UNITS}


def choose(names: Sequence[str], cluster: Cluster) -> dict[str, list[Fault]]:
    """The faults of each component that are wanted and can strike here."""
    found: dict[str, list[Fault]] = {}
    for fault in faults(names).values():
        if not fault.unfit(cluster):
            found.setdefault(fault.component, []).append(fault)
    return found


def _units(cluster: Cluster, events: Path) -> list[DriverUnit]:
    units = []
    for name, driver, transport, definition in _UNITS:
        file = events / f"{name}.jsonl"
        command = [sys.executable, "-m", "tests.faults.driver", driver, name, str(file), definition]
        unit = DriverUnit(name, driver, transport, command, cluster.directory / f"{name}.log")
        unit.environment = {
            "CONVEYOR_NAMESPACE": NAMESPACE,
            "CONVEYOR_SLOTS": str(_SLOTS),
            "CONVEYOR_TRANSPORT": transport,
            "CONVEYOR_WORKER_LABELS": ",".join(f"{key}={value}" for key, value in LABELS.get(name, {}).items()),
            "CONVEYOR_ADDRESS": cluster.driver_addresses,
            "CONVEYOR_NATS": cluster.nats.url,
        }
        if name == _APART and cluster.network is not None:
            unit.live_in(cluster.network)
            unit.environment |= {"CONVEYOR_ADDRESS": cluster.apart_addresses, "CONVEYOR_NO_PROXY": "1"}
        units.append(unit)
    return units


async def _strike_during(
    work: Coroutine[Any, Any, None],
    settings: Settings,
    cluster: Cluster,
    recorder: Recorder,
    strikes: Counter[tuple[str, str]],
) -> None:
    """Let faults strike while clients work: at most two of one component at a time, each on a process of its own."""
    ending = asyncio.Event()
    asyncio.get_running_loop().call_later(settings.seconds, ending.set)

    async def lane(component: str, number: int, mine: Sequence[Fault]) -> None:
        rng = Random(f"{settings.seed}/{component}/{number}")
        # Once at least, also where a busy machine lets a short round be over before anything could strike.
        struck = False
        while not (struck and ending.is_set()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), rng.uniform(0.1, 1.2))
                if struck:
                    return
            struck = True
            fault = rng.choices(mine, [_WEIGHTS.get(fault.name.partition("-")[0], 1) for fault in mine])[0]
            own = Random(rng.random())
            recorder.note("strike", fault=fault.name, component=component)
            told = await fault.strike(cluster, own)
            recorder.note("healed", fault=fault.name, component=component, told=told)
            strikes[component, fault.name] += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(work)
        for component, mine in choose(settings.faults, cluster).items():
            for number in range(max(1, min(2, len(processes(cluster, component))))):
                group.create_task(lane(component, number, mine))


async def _collected(workload: Workload, cluster: Cluster, patience: float) -> History:
    """Wait until everything has ended, and read what is stored."""
    seen = History([])
    async with Client(cluster.addresses, namespace=NAMESPACE) as client:
        seen.unfinished = await _unfinished(client, patience)
        for run in await stored(client):
            seen.runs[run.id] = run
            seen.logs[run.id] = [line async for line in client.logs.read(run.id, give_up_after=patience)]
        with contextlib.suppress(AssertionError):
            await until(lambda: _caught_up(workload, seen), "watchers to see the end", within=20)
    return seen


async def _unfinished(client: Client, patience: float) -> list[str]:
    """What has not ended within the bound. Raises what the servers say when they do not even answer by then."""
    give_up = time.monotonic() + patience
    while True:
        over = time.monotonic() > give_up
        try:
            found = [run.id async for run in client.runs.list(states=_UNFINISHED)]
            if not found or over:
                return found
        except ApiError:
            if over:
                raise
        await asyncio.sleep(0.1)


def _caught_up(workload: Workload, seen: History) -> bool:
    """Whether watchers of all runs know the end of all that they ever saw."""
    etags = {run.id: run.etag for run in seen.runs.values() if run.id not in seen.unfinished}
    return all(etags.get(run, etag) == etag for known in workload.seen.values() for run, etag in known.items())

"""The hunt for deliberate bugs: rounds with one of them in the servers, until the checks find it.

python -m tests.faults.hunt [BUG …] [--seeds N] [--jobs N]
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.cluster import Layout
from tests.faults.planted import PLANTED, Plant
from tests.faults.report import failure
from tests.faults.round import Settings, play

_PATIENCE = 45.0
"""Seconds for runs to end that a bug may not let end; those of a round without it have twice as long."""


@dataclass(frozen=True, slots=True)
class Hunt:
    """What became of a hunt."""

    plant: Plant
    rounds: int
    """Played until it was found, or in vain."""
    noticed: Counter[int]
    """How many violations of which invariant the last round had."""
    control: Counter[int]
    """The same of the same round without the bug."""

    @property
    def found(self) -> bool:
        """Whether an invariant noticed it that is to notice it, and none the round without it."""
        return bool(self.plant.invariants & self.noticed.keys()) and not self.control

    def __str__(self) -> str:
        verdict = "found" if self.found else "NOT FOUND"
        told = f"after {self.rounds} rounds ({_listed(self.noticed)}; without it {_listed(self.control)})"
        return f"{self.plant.name}: {verdict} {told}: {self.plant.breaks}"


def _listed(noticed: Counter[int]) -> str:
    return ", ".join(f"{times} of {number}" for number, times in sorted(noticed.items())) or "nothing"


def _settings(plant: Plant, seed: int, seconds: float) -> Settings:
    layout = Layout(plant.store, plant.servers, plant=plant.name, server_arguments=plant.arguments)
    return Settings(seed, layout, seconds, plant.faults, plant.timed, resources=plant.resources, rate=plant.rate)


def _innocent(settings: Settings) -> Settings:
    return replace(settings, layout=replace(settings.layout, plant=""))


class Hunter:
    """Hunts deliberate bugs, in rounds of so many seconds below a directory."""

    def __init__(self, directory: Path, seconds: float = 6.0) -> None:
        self._directory = directory
        self._seconds = seconds
        self._controls: dict[Settings, Counter[int]] = {}

    def hunt(self, plant: Plant, seeds: int) -> Hunt:
        """Play up to so many rounds with the bug, and the one that finds it without."""
        noticed: Counter[int] = Counter()
        for seed in range(1, seeds + 1):
            settings = _settings(plant, seed, self._seconds)
            noticed = self._play(replace(settings, patience=_PATIENCE))
            if plant.invariants & noticed.keys():
                return Hunt(plant, seed, noticed, self._control(settings))
        return Hunt(plant, seeds, noticed, Counter())

    def _control(self, settings: Settings) -> Counter[int]:
        innocent = _innocent(settings)
        if innocent not in self._controls:
            self._controls[innocent] = self._play(innocent)
        return self._controls[innocent]

    def _play(self, settings: Settings) -> Counter[int]:
        directory = Path(tempfile.mkdtemp(prefix="round-", dir=self._directory)) / "round"
        outcome = play(settings, directory)
        if outcome.violations and not settings.layout.plant:
            print(failure(outcome), f"all of it: {directory}", sep="\n", flush=True)
        else:
            shutil.rmtree(directory.parent)
        return Counter(violation.invariant for violation in outcome.violations)


def _alike(names: Sequence[str]) -> list[list[str]]:
    """Those together whose rounds without them are the same ones."""
    groups: dict[Settings, list[str]] = defaultdict(list)
    for name in names:
        groups[_innocent(_settings(PLANTED[name], 1, 0))].append(name)
    return sorted(groups.values(), key=len, reverse=True)


def _hunt(names: list[str], seeds: int, directory: Path) -> int:
    """Hunt these, and say what became of it; returns how many were not found."""
    logging.getLogger("conveyor.sdk").setLevel(logging.ERROR)
    hunter = Hunter(directory)
    missed = 0
    for name in names:
        result = hunter.hunt(PLANTED[name], seeds)
        print(result, flush=True)
        missed += not result.found
    return missed


def main() -> int:
    """Hunt those that are named, or all; 1 when one was not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hunt", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PLANTED, []], metavar="BUG")
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="rounds for each at most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="rounds at the same time")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="faults-"))
    # A round waits more than it works, and each has an event loop of its own.
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        hunts = [pool.submit(_hunt, names, given.seeds, directory) for names in _alike(given.names or [*PLANTED])]
        return 1 if sum(hunt.result() for hunt in hunts) else 0


if __name__ == "__main__":
    sys.exit(main())

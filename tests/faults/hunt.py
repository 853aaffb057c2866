"""The hunt for deliberate bugs: rounds with one of them in the servers, until the checks find it.

python -m tests.faults.hunt [BUG …] [--seeds N]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cluster import Layout
from tests.faults.planted import PLANTED, Plant
from tests.faults.round import Settings, play


@dataclass(frozen=True, slots=True)
class Hunt:
    """What became of a hunt."""

    plant: Plant
    rounds: int
    """Played until it was found, or in vain."""
    noticed: Counter[int]
    """How many violations of which invariant the last round had."""

    @property
    def found(self) -> bool:
        """Whether an invariant noticed it that is to notice it."""
        return bool(self.plant.invariants & self.noticed.keys())

    def __str__(self) -> str:
        verdict = "found" if self.found else "NOT FOUND"
        noticed = ", ".join(f"{times} of {number}" for number, times in sorted(self.noticed.items()))
        return f"{self.plant.name}: {verdict} after {self.rounds} rounds ({noticed or 'nothing'}): {self.plant.breaks}"


def hunt(plant: Plant, directory: Path, seeds: int, seconds: float = 6.0) -> Hunt:
    """Play up to so many rounds, in directories below the given one."""
    noticed: Counter[int] = Counter()
    for seed in range(1, seeds + 1):
        layout = Layout(plant.store, plant.servers, plant=plant.name)
        round_ = directory / f"{plant.name}-{seed}"
        outcome = play(Settings(seed, layout, seconds, plant.faults), round_)
        noticed = Counter(violation.invariant for violation in outcome.violations)
        shutil.rmtree(round_)
        result = Hunt(plant, seed, noticed)
        if result.found:
            return result
    return Hunt(plant, seeds, noticed)


def main() -> int:
    """Hunt those that are named, or all; 1 when one was not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hunt", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PLANTED, []], metavar="BUG")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="rounds for each at most")
    given = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        for name in given.names or PLANTED:
            result = hunt(PLANTED[name], Path(directory), given.seeds)
            print(result, flush=True)
            missed += not result.found
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

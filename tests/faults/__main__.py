"""The fault suite's command line: rounds of faults, by seed. See docs/faults.md."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.faults.cluster import Layout
from tests.faults.fault import faults
from tests.faults.interrupt import Interruption, clean_up
from tests.faults.report import failure, summary
from tests.faults.round import Settings, play
from tests.faults.store import QUOTA
from tests.faults.tally import Tally

INTERRUPTED = 130
"""The exit code after SIGINT or SIGTERM."""


def main() -> int:
    """Play the rounds; 1 when an invariant was violated or a round broke off."""
    given = _arguments()
    logging.getLogger("conveyor.sdk").setLevel(logging.ERROR)
    interruption = Interruption()
    interruption.listen()
    place = Path(tempfile.mkdtemp(prefix="faults-", dir=given.keep))
    bad = 0
    try:
        for number, settings in enumerate(_rounds(given)):
            directory = place / f"round-{number}"
            holds = _holds(settings, directory, given.tally, interruption)
            bad += not holds
            if holds and given.keep is None:
                shutil.rmtree(directory)
    except BaseException:
        # However a round ends that is taken down: with KeyboardInterrupt, or with what that led to.
        if not interruption.asked:
            raise
        clean_up(place)
        print("interrupted", flush=True)
    if given.keep is None and (interruption.asked or not bad):
        shutil.rmtree(place)
    if interruption.asked:
        return INTERRUPTED
    return 1 if bad else 0


def _holds(settings: Settings, directory: Path, tally: Path | None, interruption: Interruption) -> bool:
    """Play a round and tell of it; whether nothing was violated."""
    try:
        outcome = play(settings, directory)
    except Exception:
        if interruption.asked:
            raise
        print(f"seed {settings.seed} on {settings.layout.store} broke off: {directory}", flush=True)
        traceback.print_exc()
        return False
    print(summary(outcome), flush=True)
    if tally is not None:
        Tally(tally).add(outcome)
    if outcome.violations:
        print(failure(outcome), f"all of it: {directory}", sep="\n", flush=True)
    return not outcome.violations


def _rounds(given: argparse.Namespace) -> Iterator[Settings]:
    names = tuple(filter(None, given.faults.split(",")))
    wanted = faults(names)
    components = {fault.component for fault in wanted.values()}
    for seed in range(given.seed, given.seed + given.seeds):
        for store in ("sqlite", "etcd") if given.store == "both" else (given.store,):
            servers = given.servers or 1 + seed % 3
            layout = Layout(
                store,
                servers if store == "etcd" else 1,
                plant=given.plant,
                stepping_clock="clock" in components,
                small_disks="disk" in components,
                apart=any(name.startswith("partition-") for name in wanted),
                etcd_arguments=QUOTA if "quota-etcd" in wanted else (),
            )
            yield Settings(seed, layout, given.seconds, names)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--store", choices=["sqlite", "etcd", "both"], default="both")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="so many rounds on each store")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="the seed of the first one")
    parser.add_argument("--faults", default="", metavar="A,B", help="only these; kill- means all that begin so")
    parser.add_argument("--servers", type=int, default=0, metavar="K", help="on etcd; without, 1 to 3 by the seed")
    parser.add_argument("--plant", default="", metavar="BUG", help="a deliberate bug in the servers")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long clients work")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all rounds there, not only those that failed")
    parser.add_argument("--tally", type=Path, metavar="FILE", help="add the strikes to this JSON file")
    given = parser.parse_args()
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    return given


if __name__ == "__main__":
    sys.exit(main())

"""`make bench`: measure everything, or with --only some of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import latency, locks, recovery, throughput
from bench.report import HEADER, Figure, line, write_json

BENCHMARKS: dict[str, Callable[[float], Iterator[Figure]]] = {
    "cli": latency.command_line,
    "handoff": latency.handoff,
    "grpc_sqlite": lambda seconds: throughput.runs_per_s("sqlite", "grpc", seconds),
    "grpc_etcd": lambda seconds: throughput.runs_per_s("etcd", "grpc", seconds),
    "jetstream": lambda seconds: throughput.runs_per_s("sqlite", "jetstream", seconds),
    "go": lambda seconds: throughput.runs_per_s("sqlite", "grpc", seconds, "go"),
    "go_jetstream": lambda seconds: throughput.runs_per_s("sqlite", "jetstream", seconds, "go"),
    "expressions": throughput.expressions,
    "matrix_sqlite": lambda seconds: throughput.matrix("sqlite"),
    "matrix_etcd": lambda seconds: throughput.matrix("etcd"),
    "step_cost": throughput.step_cost,
    "memory": throughput.memory,
    "recovery_sqlite": lambda seconds: recovery.recovery("sqlite"),
    "recovery_etcd": lambda seconds: recovery.recovery("etcd"),
    "idle_sqlite": lambda seconds: recovery.idle_cost("sqlite", seconds),
    "idle_etcd": lambda seconds: recovery.idle_cost("etcd", seconds),
    "locks_sqlite": lambda seconds: locks.locks("sqlite", seconds),
    "locks_etcd": lambda seconds: locks.locks("etcd", seconds),
}


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--only", metavar="NAME,…", help=f"some of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each steady state; default 20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one object per line")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    print(HEADER)
    figures: list[Figure] = []
    for name in names:
        for figure in BENCHMARKS[name](arguments.seconds):
            figures.append(figure)
            print(line(figure), flush=True)
    if arguments.json is not None:
        write_json(arguments.json, figures)


if __name__ == "__main__":
    sys.exit(main())

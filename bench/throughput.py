"""Runs per second, cost per step, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import floors, rig
from bench.report import Figure
from conveyor.v1 import pipeline_pb2
from tests.support import golang

CONCURRENCY = 96
WARMUP_S = 3.0


def load(address: str, pipeline: str, *, concurrency: int, seconds: float = 0.0, runs: int = 0) -> dict[str, Any]:
    """Put load on a server from another process; returns what it counted."""
    numbers = [str(concurrency), str(WARMUP_S if not runs else 0.0), str(seconds), str(runs)]
    command = [sys.executable, "-m", "bench.load", address, pipeline, *numbers]
    result: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def runs_per_s(store: str, transport: str, seconds: float, language: str = "python") -> Iterator[Figure]:
    """Three-step runs per second in a steady state. `language` is that of the drivers."""
    if language == "go" and golang.find() is None:
        print("runs_per_s_go: SKIPPED, there is no Go that is new enough for clients/go", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder, rig.server(Path(folder), store) as server:
        rig.apply(server.address, rig.three_steps())
        with rig.drivers(server, ("a", "b", "c"), transport, language):
            load(server.address, "three", concurrency=CONCURRENCY, runs=2 * CONCURRENCY)
            result = load(server.address, "three", concurrency=CONCURRENCY, seconds=seconds)
    rate = result["runs"] / result["seconds"]
    if language == "go":
        name = "runs_per_s_go" if transport == "grpc" else f"runs_per_s_go_{transport}"
        yield Figure.of(name, rate, "runs/s")
    elif transport == "jetstream":
        yield Figure.of("runs_per_s_jetstream", rate, "runs/s", floors.jetstream_publishes_per_s())
    else:
        yield Figure.of(f"runs_per_s_grpc_{store}", rate, "runs/s", floors.commits_per_s(store) / 4)
        if store == "sqlite":
            yield Figure.of("start_run_p50_ms", result["start_p50_ms"], "ms")


def expressions(seconds: float) -> Iterator[Figure]:
    """Runs per second with a condition and expressions in each step, against the same without, in turns."""
    rounds = 10  # short ones, so that both have the same of what else the machine does
    counted = {"three": 0, "expressions": 0}
    taken = dict.fromkeys(counted, 0.0)
    used = dict.fromkeys(counted, 0.0)
    with tempfile.TemporaryDirectory() as folder, rig.server(Path(folder)) as server:
        for pipeline in (rig.three_steps(), rig.three_steps_with_expressions()):
            rig.apply(server.address, pipeline)
        with rig.drivers(server, ("a", "b", "c")):
            for name in counted:
                load(server.address, name, concurrency=CONCURRENCY, runs=2 * CONCURRENCY)
            for _ in range(rounds):
                for name in counted:
                    before = rig.cpu_seconds(server.pid)
                    result = load(server.address, name, concurrency=CONCURRENCY, runs=int(seconds * 20))
                    used[name] += rig.cpu_seconds(server.pid) - before
                    counted[name] += result["runs"]
                    taken[name] += result["seconds"]
    rates = {name: counted[name] / taken[name] for name in counted}
    yield Figure.of("runs_per_s_expressions", rates["expressions"], "runs/s", rates["three"])
    yield Figure.of("run_cpu_plain_ms", used["three"] / counted["three"] * 1e3, "ms")
    yield Figure.of("run_cpu_expressions_ms", used["expressions"] / counted["expressions"] * 1e3, "ms")


def step_cost(seconds: float) -> Iterator[Figure]:
    """CPU of the server per step in runs of 1,000 steps, against runs of 3."""
    steps = 1000
    chain = pipeline_pb2.Pipeline(
        name="chain", steps=[pipeline_pb2.Step(id=f"s{i}", driver="abc"[i % 3]) for i in range(steps)]
    )
    width = 10
    layers = pipeline_pb2.Pipeline(name="layers", order=pipeline_pb2.ORDER_GRAPH)
    for i in range(steps):
        needs = [f"s{j}" for j in range((i // width - 1) * width, i // width * width)] if i >= width else []
        layers.steps.add(id=f"s{i}", driver="abc"[i % 3], needs=needs)
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, rig.server(Path(folder)) as server:
        for pipeline in (rig.three_steps(), chain, layers):
            rig.apply(server.address, pipeline)
        with rig.drivers(server, ("a", "b", "c")):
            load(server.address, "three", concurrency=8, runs=200)
            # As many runs at a time as keep as many steps under way: batches of the same size, to compare the same.
            for name, each, runs, concurrency in (
                ("three", 3, 2000, 8),
                ("chain", steps, 16, 8),
                ("layers", steps, 8, 1),
            ):
                before = rig.cpu_seconds(server.pid)
                load(server.address, name, concurrency=concurrency, runs=runs)
                costs[name] = (rig.cpu_seconds(server.pid) - before) / (runs * each)
    worse = max(costs["chain"], costs["layers"])
    yield Figure.of("step_cost_ratio_1000", worse / costs["three"], "")
    for name, cost in costs.items():
        yield Figure.of(f"step_cpu_{name}_us", cost * 1e6, "us")


def matrix(store: str) -> Iterator[Figure]:
    """Seconds from the start to the end of a run of 256 instances, on one driver with 64 slots; the middle of seven."""
    with tempfile.TemporaryDirectory() as folder, rig.server(Path(folder), store) as server:
        rig.apply(server.address, rig.matrix_of(256))
        with rig.drivers(server, ("a",)):
            load(server.address, "matrix", concurrency=1, runs=1)
            before = rig.cpu_seconds(server.pid)
            taken = sorted(load(server.address, "matrix", concurrency=1, runs=1)["seconds"] for _ in range(7))
            used = (rig.cpu_seconds(server.pid) - before) / 7
    suffix = "" if store == "sqlite" else f"_{store}"
    yield Figure.of(f"matrix_256_s{suffix}", taken[3], "s")
    yield Figure.of(f"matrix_256_cpu_s{suffix}", used, "s")


def memory(seconds: float) -> Iterator[Figure]:
    """Resident memory of a server: idle and empty, and with 10,000 finished runs."""
    with tempfile.TemporaryDirectory() as folder, rig.server(Path(folder)) as server:
        rig.apply(server.address, rig.three_steps())
        yield Figure.of("server_rss_idle_mib", rig.rss_mib(server.pid), "MiB")
        with rig.drivers(server, ("a", "b", "c")):
            load(server.address, "three", concurrency=CONCURRENCY, runs=10_000)
        yield Figure.of("server_rss_10k_runs_mib", rig.rss_mib(server.pid), "MiB")

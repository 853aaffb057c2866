"""The floor under everything that commits: what the bare store does, on SQLite and on etcd.

Prints `name value unit` a line. A commit is like a step of a run: a guard on the head, the head, the step and one key
more, 500 bytes each, in keys that grow with time.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

from conveyor.store import open_etcd, open_sqlite
from conveyor.store.port import Guard, Put, Store
from tests.support.etcd import VERSIONS, Etcd, find

VALUE = b"x" * 500
STEPS = 3
_runs = count()


async def run_once(store: Store) -> list[float]:
    """One run of as many steps; returns the seconds that each commit took."""
    run = f"{time.time_ns() // 1_000_000:012x}{next(_runs):020x}"
    head, revision, taken = f"/runs/default/{run}/head", 0, []
    for step in range(STEPS):
        third = f"/specs/default/{run}" if step == 0 else f"/index/default/{run}"
        puts = [Put(head, VALUE), Put(f"/runs/default/{run}/steps/{step}", VALUE), Put(third, VALUE)]
        start = time.perf_counter()
        revision = await store.commit([Guard(head, revision)], puts)
        taken.append(time.perf_counter() - start)
    return taken


async def latency(store: Store, runs: int) -> list[float]:
    """Sorted seconds of commits made one after another."""
    return sorted([taken for _ in range(runs) for taken in await run_once(store)])


async def throughput(store: Store, committers: int, seconds: float) -> float:
    """Commits per second of concurrent committers."""
    commits = 0
    end = time.perf_counter() + seconds

    async def commit() -> None:
        nonlocal commits
        while time.perf_counter() < end:
            made = len(await run_once(store))
            commits += made

    start = time.perf_counter()
    await asyncio.gather(*(commit() for _ in range(committers)))
    return commits / (time.perf_counter() - start)


async def measure(name: str, store: Store, seconds: float) -> None:
    """Prints what one store does."""
    await latency(store, 50)
    taken = await latency(store, 500)
    print(f"store.{name}.commit.p50 {taken[len(taken) // 2] * 1e3:.3f} ms")
    print(f"store.{name}.commit.p99 {taken[len(taken) * 99 // 100] * 1e3:.3f} ms")
    for committers in (8, 64, 256):
        print(f"store.{name}.commits.{committers} {await throughput(store, committers, seconds):.0f} commits/s")


@asynccontextmanager
async def stores(folder: Path) -> AsyncIterator[dict[str, Store]]:
    """Fresh stores of each kind that can be had here."""
    async with AsyncExitStack() as stack:
        opened: dict[str, Store] = {"sqlite": await open_sqlite(folder / "sqlite")}
        for version in VERSIONS:
            if program := find(version):
                server = Etcd(program, folder / version)
                stack.callback(server.stop)
                server.start()
                opened[f"etcd-{version}"] = await open_etcd([server.url])
        for store in opened.values():
            stack.push_async_callback(store.close)
        yield opened


async def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each throughput")
    parser.add_argument("--folder", help="where the data goes; a temporary folder if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        async with stores(Path(folder)) as opened:
            for name, store in opened.items():
                await measure(name, store, arguments.seconds)


if __name__ == "__main__":
    asyncio.run(main())

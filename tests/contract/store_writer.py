"""A process that a crash test kills: commits to an SQLite store and prints each key that was acknowledged."""

from __future__ import annotations

import asyncio
import sys

from conveyor.store import open_sqlite
from conveyor.store.port import Guard, Put

WRITERS = 16


async def main(directory: str, name: str) -> None:
    store = await open_sqlite(directory)

    async def write(writer: int) -> None:
        number = 0
        while True:
            stem = f"{name}/{writer}/{number}"
            # Two keys: whether commits are whole is seen too.
            puts = [Put(f"{stem}/{half}", stem.encode() * 20) for half in "ab"]
            revision = await store.commit([Guard(put.key, 0) for put in puts], puts)
            print(stem, revision, flush=True)
            number += 1

    await asyncio.gather(*map(write, range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

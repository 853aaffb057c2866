"""`conveyor lock`: who holds locks, and who waits for them."""

from collections.abc import Sequence
from datetime import datetime
from typing import cast

import click
from google.protobuf.message import Message

from conveyor.cli.failures import CliError
from conveyor.cli.options import command, settings
from conveyor.cli.output import Row, block, print_object, print_objects, table
from conveyor.cli.session import run
from conveyor.cli.waiting import holder
from conveyor.sdk import Client
from conveyor.v1.run_pb2 import LockHolder
from conveyor.v1.run_service_pb2 import HeldLock

_LOCKS = ("KEY", "HELD BY", "WAITING")
_CLAIMS = ("PLACE", "RUN", "STEP")
_PAGE = 1000


@command("list")
def list_locks() -> None:
    """List the locks that runs and steps hold or wait for."""
    options = settings()

    async def work(client: Client) -> Sequence[Message]:
        return [lock async for lock in client.runs.locks(page_size=_PAGE)]

    print_objects(options, run(options, work), _LOCKS, _row, "locks")


@command("get")
@click.argument("key", metavar="KEY")
def get_lock(key: str) -> None:
    """Show who holds a lock, and who waits for it, first come first."""
    options = settings()

    async def work(client: Client) -> list[HeldLock]:
        return [lock async for lock in client.runs.locks(key)]

    found = run(options, work)
    if not found:
        raise CliError(f"nobody holds a lock {key}")
    print_object(options, found[0], lambda _: _described(found[0]))


def _row(message: Message, _: datetime) -> Row:
    lock = cast(HeldLock, message)
    more = len(lock.holders) - 1
    held = holder(lock.holders[0]) + (f" and {more} more" if more > 0 else "") if lock.holders else ""
    return lock.key, held, str(lock.waiting_count)


def _described(lock: HeldLock) -> str:
    head = block(
        [("Lock", lock.key), ("Holders", str(len(lock.holders))), ("Waiting", str(lock.waiting_count))],
    )
    rows = [("holds", *_claim(each)) for each in lock.holders]
    rows += [(str(place), *_claim(each)) for place, each in enumerate(lock.waiting, 1)]
    more = lock.waiting_count - len(lock.waiting)
    return f"{head}\n\n{table(_CLAIMS, rows)}" + (f"\n… and {more} more" if more > 0 else "")


def _claim(each: LockHolder) -> tuple[str, str]:
    return each.run, each.step

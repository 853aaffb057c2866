"""Lists of locks: in the order of their keys, bounded in bytes."""

from __future__ import annotations

from conveyor.api.paging import PageRequest
from conveyor.core import limits
from conveyor.state.locks import Lock, Locks, holder
from conveyor.v1 import run_service_pb2

WAITING_NAMED = 100


async def list_locks(
    locks: Locks, namespace: str, key: str, page: PageRequest
) -> tuple[list[run_service_pb2.HeldLock], str]:
    """The page, and the key to go on after ("" at the end). With a `key` only that lock."""
    if key:
        lock = await locks.read(namespace, key)
        return [_shown(key, lock)] if lock.claims else [], ""
    listed, more = await locks.page(namespace, page.after, page.size)
    found: list[run_service_pb2.HeldLock] = []
    size = 0
    for each, lock in listed:
        shown = _shown(each, lock)
        size += shown.ByteSize()
        if found and size > limits.PAGE_BYTES:
            return found, found[-1].key
        found.append(shown)
    return found, found[-1].key if more else ""


def _shown(key: str, lock: Lock) -> run_service_pb2.HeldLock:
    waiting = lock.claims[lock.holding :][:WAITING_NAMED]
    return run_service_pb2.HeldLock(
        key=key,
        holders=map(holder, lock.holders),
        waiting=map(holder, waiting),
        waiting_count=lock.waiting,
    )

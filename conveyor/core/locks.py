"""Locks: who of those that want a key has it.

A claim is made by a run or by one of its steps, in the commit that lets it wait, and given up in the commit that ends
it. The order of all claims on a key is that of these commits. In it, a claim holds the lock when fewer claims stand
before it than the least limit of all up to itself says. Both only change in its favour: those before it go, and take
their limits along. So who was seen to hold a lock holds it until it gives it up itself, and needs no guard for that.
"""

from __future__ import annotations

from collections.abc import Iterable

from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

RUN = -1
"""In place of a step's index: the claim of the run as a whole."""


def holding(limits: Iterable[int]) -> int:
    """How many of the claims with these limits, in their order, hold the lock: always the first ones."""
    least, count = 0, 0
    for limit in limits:
        least = min(least, limit) if count else limit
        if count >= least:
            break
        count += 1
    return count


def never_comes(key: str, limit: int, held: Iterable[storage_pb2.LockClaim]) -> bool:
    """Whether a claim would wait for claims that are given up only after it: of the runs that it is within."""
    limits = [claim.limit for claim in held if claim.key == key]
    return bool(limits) and len(limits) >= min(limit, *limits)


def run_waits_for_lock(head: storage_pb2.RunHead) -> bool:
    """Whether the run has not started because others hold its lock."""
    return head.state == run_pb2.RUN_STATE_PENDING and head.reason == run_pb2.RUN_REASON_WAITING_FOR_LOCK


def waits_for_lock(record: storage_pb2.StepRecord) -> bool:
    """Whether a step that is queued must get its lock first."""
    return bool(record.lock.key) and not record.lock.held


def waiting_message(key: str) -> str:
    """What is said of a run or step meanwhile."""
    return f"waits for lock {key}"

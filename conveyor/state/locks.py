"""Locks: the claims that runs and steps make on them, one key of the store for each.

A claim is put in the commit that lets its owner wait, and deleted in the commit that ends it; nothing guards it, so
any number of them come and go without hindering each other. It is written once, so its revision is its place: first
come, first served. Who holds the lock follows from that; see `conveyor.core.locks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog
from google.protobuf.message import DecodeError

from conveyor.core.locks import RUN, holding, run_waits_for_lock
from conveyor.core.model import TERMINAL_STEP, Decision, RunState
from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Guard, KeyValue, Put, Store
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.state")

_PER_READ = 1000
_LAST = "\x7f"


@dataclass(frozen=True, slots=True)
class Claimant:
    """A run (`step` is empty then), or one of its steps."""

    run: str
    step: str


def open_claims(state: RunState) -> list[int]:
    """The steps of a run that hold a lock or wait for one, and RUN if the run does."""
    head = state.head
    found = [RUN] if run_waits_for_lock(head) or (head.lock.held and not state.terminal) else []
    for index, record in enumerate(state.steps):
        if record is not None and record.lock.key and record.state not in TERMINAL_STEP:
            found.append(index)
    return found


def claim_of(state: RunState, index: int) -> storage_pb2.LockClaim:
    """What a step, or the run as a whole (`core.locks.RUN`), has to do with a lock."""
    if index == RUN:
        return state.head.lock
    record = state.steps[index]
    return record.lock if record is not None else storage_pb2.LockClaim()


def claim_key(state: RunState, index: int) -> str:
    """Where that claim is stored."""
    head, step = state.head, "" if index == RUN else state.plan.steps[index].id
    return keys.claim(head.namespace, claim_of(state, index).key, head.id, step)


def claim_put(state: RunState, index: int) -> Put:
    """The claim as it is stored."""
    entry = storage_pb2.LockEntry(limit=claim_of(state, index).limit)
    return Put(claim_key(state, index), entry.SerializeToString())


def joined(decision: Decision) -> list[Put]:
    """The claims that a decision makes."""
    return [claim_put(decision.state, index) for index in decision.joins]


def left(decision: Decision) -> list[str]:
    """The keys of the claims that a decision gives up."""
    return [claim_key(decision.state, index) for index in decision.leaves]


class Lock:
    """All claims on a lock, as they were at one moment; first come first."""

    def __init__(self, items: Sequence[KeyValue]) -> None:
        # Those of one commit, or of one batch of commits, have one revision.
        self.claims = sorted(items, key=lambda kv: (kv.mod_revision, kv.key))
        # Only those that hold it, and the first that does not, are looked into: thousands may wait.
        self.holding = holding(_limit(kv) for kv in self.claims)

    @property
    def holders(self) -> list[KeyValue]:
        """The claims that hold the lock."""
        return self.claims[: self.holding]

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        return len(self.claims) - self.holding

    def ahead(self, claim: str) -> int:
        """How many wait and go before the claim with this key; -1 when it is not there, or holds the lock."""
        place = next((i for i, kv in enumerate(self.claims) if kv.key == claim), -1)
        return place - self.holding if place >= self.holding else -1


def _limit(kv: KeyValue) -> int:
    try:
        return storage_pb2.LockEntry.FromString(kv.value).limit
    except DecodeError as error:
        log.error("record_not_readable", key=kv.key, error=str(error))
        return 1


def _is_claim(kv: KeyValue) -> bool:
    """Whether a key below LOCKS is one of ours, and not something that somebody has put there by hand."""
    try:
        keys.parse_claim(kv.key)
    except ValueError:
        log.error("record_not_readable", key=kv.key)
        return False
    return True


def claimant(kv: KeyValue) -> Claimant:
    """Whose claim it is."""
    _, _, run, step = keys.parse_claim(kv.key)
    return Claimant(run, step)


def holder(kv: KeyValue) -> run_pb2.LockHolder:
    """The same as the API says it."""
    owner = claimant(kv)
    return run_pb2.LockHolder(run=owner.run, step=owner.step)


class Locks:
    """Reads and mends locks. Raises the store's errors."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, namespace: str, key: str) -> Lock:
        """The lock as it is stored now."""
        prefix = keys.locks(namespace, key)
        return Lock([kv for kv in (await self._store.list(prefix)).items if kv.key.count("/", len(prefix)) == 1])

    async def page(self, namespace: str, after: str, limit: int) -> tuple[list[tuple[str, Lock]], bool]:
        """Claimed locks of a namespace, in the order of their keys, after one key (""), and whether more follow."""
        found: list[tuple[str, list[KeyValue]]] = []
        prefix = keys.locks(namespace)
        start = keys.locks(namespace, after) + _LAST if after else ""
        while True:
            listing = await self._store.list(prefix, start, _PER_READ)
            for kv in filter(_is_claim, listing.items):
                key = keys.parse_claim(kv.key)[1]
                if not found or found[-1][0] != key:
                    if len(found) == limit:
                        return [(each, Lock(items)) for each, items in found], True
                    found.append((key, []))
                found[-1][1].append(kv)
            if not listing.more:
                return [(each, Lock(items)) for each, items in found], False
            start = listing.items[-1].key

    async def claims(self) -> Iterator[KeyValue]:
        """All claims of all namespaces, without their values."""
        return filter(_is_claim, (await self._store.list(keys.LOCKS, keys_only=True)).items)

    async def is_active(self, namespace: str, run: str) -> bool:
        """Whether a run is under way."""
        return await self._store.get(keys.active(namespace, run)) is not None

    async def remove(self, claim: KeyValue) -> None:
        """Delete a claim whose owner is gone. Raises Conflict when it was given up meanwhile."""
        await self._store.commit([Guard(claim.key, claim.mod_revision)], deletes=[claim.key])

    async def join_again(self, state: RunState, revision: int, index: int) -> None:
        """Store a claim that is missing, at the end. Raises Conflict when it is there, or its run has changed."""
        put, head = claim_put(state, index), state.head
        await self._store.commit([Guard(put.key, 0), Guard(keys.head(head.namespace, head.id), revision)], [put])

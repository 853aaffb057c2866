"""Runs within runs: who called a run, and whether its caller still waits for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from conveyor.core import errors, limits
from conveyor.core.locks import never_comes
from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Store

_KNOWN = 256
_LEAST_TURNS = 16


class Withdrawn(Exception):
    """The step does not wait for this run any more."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The step that a run is made for, and the id that the run is to have.

    `within` are the runs that the new one is in, the nearest first; `claims` those on locks that they and their steps
    on the way have; `descendants` is how many runs are stored within the outermost one.
    """

    child: str
    step: str
    within: Sequence[storage_pb2.RunHead]
    claims: Sequence[storage_pb2.LockClaim] = ()
    descendants: int = 0

    @property
    def run(self) -> str:
        """The run of the step."""
        return self.within[0].id

    @property
    def depth(self) -> int:
        """How many runs the new one is within."""
        return self.within[0].depth + 1

    @property
    def root(self) -> str:
        """The outermost run."""
        return self.within[0].root_run or self.run

    def check_size(self, pipeline: str) -> None:
        """Raises errors.Unfit when the run would be within too many others, or one of too many within one."""
        if self.depth > limits.RUN_DEPTH:
            way = " > ".join([*(head.pipeline for head in reversed(self.within)), pipeline])
            raise errors.Unfit(f"it would be within {self.depth} other runs; at most {limits.RUN_DEPTH}: {way}")

        # Those right within a run are as many as its steps have attempts.
        if self.depth > 1 and self.descendants >= limits.RUN_DESCENDANTS:
            raise errors.Unfit(f"there are {self.descendants} runs within run {self.root} already")

    def check_lane(self, runs: Sequence[str]) -> None:
        """Raises errors.Unfit when the run would wait for one that waits for it, or replace it."""
        found = next((head for head in self.within if head.id in set(runs)), None)
        if found is not None:
            raise errors.Unfit(
                f"runs of {found.definition} {found.resource} on pipeline {found.pipeline} go one after the other, and "
                f"run {found.id}, which this one would be within, is such a run: each would wait for the other"
            )

    def check_lock(self, lock: storage_pb2.LockClaim) -> None:
        """Raises errors.Unfit when the run would wait for a lock that is held until it has ended."""
        if lock.key and never_comes(lock.key, lock.limit, self.claims):
            raise errors.Unfit(
                f"it would wait for lock {lock.key}, which is held by a run or step that waits for it in its turn"
            )


class Descendants:
    """How many runs are stored within outermost runs.

    They are not counted for each new one, but the less often the farther they are from too many: the number may be
    off by some dozens.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()
        """By namespace and run how many there were, and for how many more times that is good enough."""

    async def count(self, namespace: str, root: str) -> int:
        """The number, up to the limit. Raises the store's errors."""
        key = (namespace, root)
        count, turns = self._known.get(key, (0, 0))
        if turns:
            self._known[key] = count, turns - 1
            return count
        # Those that come while it is counted do not count, too.
        self._known[key] = count, _LEAST_TURNS
        listing = await self._store.list(
            keys.index_within(namespace, root), limit=limits.RUN_DESCENDANTS, keys_only=True
        )
        count = len(listing.items)
        self._known[key] = count, max(_LEAST_TURNS, (limits.RUN_DESCENDANTS - count) // 8)
        self._known.move_to_end(key)
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return count

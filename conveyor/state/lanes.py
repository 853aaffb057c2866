"""Lanes: the runs that one resource has on one pipeline one after the other.

A run whose pipeline says QUEUE or REPLACE is in its lane from the commit that creates it to the commit that ends it.
The first in the lane is the one that may run. The order is that of the commits: run ids come from clocks, which differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from google.protobuf.message import DecodeError

from conveyor.core import errors, limits
from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Guard, Put, Store
from conveyor.v1 import pipeline_pb2

log = structlog.get_logger("conveyor.state")

_POLICIES = frozenset({pipeline_pb2.CONCURRENCY_POLICY_QUEUE, pipeline_pb2.CONCURRENCY_POLICY_REPLACE})


def has_lane(pipeline: pipeline_pb2.Pipeline) -> bool:
    """Whether runs with this snapshot go one after the other."""
    return pipeline.concurrency.policy in _POLICIES


def lane_key(head: storage_pb2.RunHead) -> str:
    """Where the lane of a run is stored."""
    return keys.lane(head.namespace, head.pipeline, head.definition, head.resource)


@dataclass(frozen=True, slots=True)
class Change:
    """What a lane adds to a commit."""

    guard: Guard
    puts: Sequence[Put] = ()
    deletes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane as it is stored; nothing stored is a lane without runs."""

    key: str
    entries: Sequence[storage_pb2.LaneEntry]
    revision: int

    def with_run(self, run: str, *, replaces: bool) -> Change:
        """The lane with a run at its end. Raises errors.TooManyWaitingRuns."""
        if len(self.entries) > limits.WAITING_RUNS:
            raise errors.TooManyWaitingRuns(
                f"{limits.WAITING_RUNS} runs of this resource wait for their turn on this pipeline already; "
                "wait until some have ended, or cancel them"
            )
        return self._change([*self.entries, storage_pb2.LaneEntry(run=run, replaces=replaces)])

    def without(self, run: str) -> Change | None:
        """The lane without a run; None when it is not in it."""
        left = [entry for entry in self.entries if entry.run != run]
        return self._change(left) if len(left) < len(self.entries) else None

    def runs(self) -> list[str]:
        """The runs in the lane, in their order."""
        return [entry.run for entry in self.entries]

    def position(self, run: str) -> int:
        """How many runs go before this one; -1 when it is not in the lane."""
        return next((index for index, entry in enumerate(self.entries) if entry.run == run), -1)

    def replaced(self) -> tuple[list[str], str]:
        """The runs that a later one wants cancelled, first in the lane first, and that later one."""
        last = max((index for index, entry in enumerate(self.entries) if entry.replaces), default=0)
        return [entry.run for entry in self.entries[:last]], self.entries[last].run if last else ""

    def _change(self, entries: Sequence[storage_pb2.LaneEntry]) -> Change:
        guard = Guard(self.key, self.revision)
        if not entries:
            return Change(guard, deletes=[self.key])
        return Change(guard, [Put(self.key, storage_pb2.LaneRecord(entries=entries).SerializeToString())])


class Lanes:
    """Reads lanes. Raises the store's errors."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, key: str) -> Lane:
        """The lane as it is stored now."""
        kv = await self._store.get(key)
        if kv is None:
            return Lane(key, (), 0)
        try:
            entries = storage_pb2.LaneRecord.FromString(kv.value).entries
        except DecodeError as error:
            # Those that wait in it join it again when the sweep finds them.
            log.error("record_not_readable", key=kv.key, error=str(error))
            return Lane(key, (), kv.mod_revision)
        return Lane(key, entries, kv.mod_revision)

    async def has_ended(self, namespace: str, run: str) -> bool:
        """Whether a run of a lane is not under way any more, however that came."""
        return await self._store.get(keys.active(namespace, run)) is None

    async def store(self, change: Change) -> None:
        """Store a lane by itself. Raises Conflict when somebody has changed it."""
        await self._store.commit([change.guard], change.puts, change.deletes)

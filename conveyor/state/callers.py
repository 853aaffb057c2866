"""Runs within runs: who called a run, and whether its caller still waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conveyor.core import errors, limits
from conveyor.storage.v1 import storage_pb2


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
        held = [claim for claim in self.claims if lock.key and claim.key == lock.key]
        if held and len(held) >= min(claim.limit for claim in (*held, lock)):
            raise errors.Unfit(
                f"it would wait for lock {lock.key}, which is held by a run or step that waits for it in its turn"
            )

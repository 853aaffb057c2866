"""Whose turn it is in a lane: the first run is started, and those that a newer one replaces are cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from conveyor.core import errors
from conveyor.core.events import CancelRequested, RunCreated
from conveyor.core.model import Decision, waits_for_runs
from conveyor.core.plan import SECOND
from conveyor.state.lanes import Change, Lane, Lanes, has_lane, lane_key
from conveyor.state.runs import StoredRun, Unreadable
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Conflict, StoreError
from conveyor.v1 import run_pb2

if TYPE_CHECKING:
    from conveyor.engine.loop import Engine

log = structlog.get_logger("conveyor.engine")

REPLACED_GRACE = 30 * SECOND
"""How long the workers of a run that is replaced have to confirm that they stopped."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


class LaneKeeper:
    """Looks at lanes when a run has joined or left one, and when a run is found that waits.

    All that it does derives from what is stored and changes nothing when done twice, so any replica may do it.
    """

    def __init__(self, engine: Engine, lanes: Lanes) -> None:
        self._engine = engine
        self._lanes = lanes
        self._asked: dict[str, set[str]] = {}
        """The lanes that are being looked at, and the runs for whose sake they must be looked at once more."""

    async def leave(self, run: StoredRun, decision: Decision) -> Change | None:
        """What the end of a run adds to its commit. Raises the store's errors."""
        if not decision.ended or not has_lane(run.spec.pipeline):
            return None
        lane = await self._lanes.read(lane_key(run.head))
        return lane.without(run.head.id)

    def look_soon(self, head: storage_pb2.RunHead) -> None:
        """Look at the lane of this run, which joined it, left it, or waits in it."""
        key = lane_key(head)
        if key in self._asked:
            self._asked[key].add(head.id)
            return
        self._asked[key] = {head.id}
        self._engine.spawn(self._look(head.namespace, key))

    async def _look(self, namespace: str, key: str) -> None:
        pause = _FIRST_PAUSE
        try:
            while runs := self._asked[key]:
                self._asked[key] = set()
                try:
                    changed = await self._see_to(namespace, await self._lanes.read(key), runs)
                except Conflict:
                    changed = True
                except StoreError as error:
                    log.debug("lane_not_seen_to", lane=key, error=str(error))
                    await asyncio.sleep(pause)
                    pause, changed = min(pause * 2, _LONGEST_PAUSE), True
                if changed:
                    self._asked[key] |= runs
        finally:
            del self._asked[key]

    async def _see_to(self, namespace: str, lane: Lane, runs: set[str]) -> bool:
        """Do what is to be done; returns whether the lane was changed instead, so that it must be read again."""
        # Those of one process join again in the order in which it made them: ids grow with the time.
        for run in sorted(runs.difference(lane.runs())):
            if await self._waits(namespace, run):
                # Somebody has deleted the lane, or its record could not be read.
                await self._lanes.store(lane.with_run(run, replaces=False))
                return True
        if not lane.entries:
            return False
        first = lane.entries[0].run
        if await self._lanes.has_ended(namespace, first):
            # Its own end takes a run out. This one was put aside as unreadable, or deleted by hand.
            change = lane.without(first)
            assert change is not None
            await self._lanes.store(change)
            return True
        replaced, by = lane.replaced()
        cancel = CancelRequested(f"run {by} replaced it", REPLACED_GRACE, reason=run_pb2.RUN_REASON_REPLACED)
        # Those that wait go before the first one, so that none of them gets its turn when that one ends.
        for run in reversed(replaced):
            await self._tell(namespace, run, cancel)
        if not replaced:
            await self._tell(namespace, first, RunCreated(turn=True))
        return False

    async def _waits(self, namespace: str, run: str) -> bool:
        try:
            head, _ = await self._engine.runs.head(namespace, run)
        except errors.NotFound:
            return False
        return waits_for_runs(head)

    async def _tell(self, namespace: str, run: str, event: CancelRequested | RunCreated) -> None:
        try:
            await self._engine.handle(namespace, run, event)
        except errors.NotFound:
            log.debug("lane_run_gone", run_id=run)
        except Unreadable as error:
            log.debug("lane_run_unreadable", run_id=run, error=error.message)

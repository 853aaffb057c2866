"""Has schedules start their runs when they are due: a heap of times in the replica that leads."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from contextlib import aclosing

import structlog

from conveyor.core import errors
from conveyor.core.events import CancelRequested
from conveyor.engine.lanes import REPLACED_GRACE
from conveyor.engine.loop import Engine
from conveyor.engine.presence import Presence
from conveyor.schedules.due import Due
from conveyor.state import keys
from conveyor.state.runs import Unreadable
from conveyor.state.schedules import Found, Overtaken, Schedules, allows_more
from conveyor.store.failpoints import failpoint
from conveyor.store.port import Conflict, Reset, Store, StoreError, TooLarge
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.engine")

Name = tuple[str, str]
"""Namespace and name of a schedule."""

_LONGEST_SLEEP = 1.0
_RETRY_AFTER = 1_000_000
_FAULT_AFTER = 60_000_000
_AT_ONCE = 32
_SPARE = 64

_AGAIN = (Overtaken, Conflict, errors.Contention)
_AWAY = (StoreError, errors.Away, errors.StoreExhausted)


class Scheduler:
    """Looks at a schedule when it is due, and when it has changed.

    All that it does derives from what is stored and is guarded by it, so two that believe to lead do no harm, nor does
    one that dies at any point.
    """

    def __init__(self, engine: Engine, schedules: Schedules, store: Store, presence: Presence) -> None:
        self._engine = engine
        self._schedules = schedules
        self._store = store
        self._presence = presence
        self._times: dict[Name, int] = {}
        self._heap: list[tuple[int, Name]] = []
        self._known: dict[Name, int] = {}
        """The revisions of the records that were looked at last."""
        self._asked: dict[Name, bool] = {}
        """The schedules that are being looked at, and whether they must be looked at once more."""
        self._looks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._earlier = asyncio.Event()

    def __len__(self) -> int:
        return len(self._times)

    async def run(self) -> None:
        """Start runs for ever, whenever this replica leads."""
        while True:
            if self._presence.leading_for >= 0:
                try:
                    await self._lead()
                except StoreError as error:
                    log.debug("schedules_interrupted", error=str(error))
            await asyncio.sleep(_LONGEST_SLEEP)

    async def _lead(self) -> None:
        """Read all schedules, then see to them as long as this replica leads and no change was missed."""
        follower = asyncio.create_task(self._follow(await self._load()))
        try:
            while self._presence.leading_for >= 0 and not follower.done():
                self._earlier.clear()
                for name in self._due():
                    self._look_soon(name)
                wait = _LONGEST_SLEEP
                if self._heap:
                    wait = min(wait, max(0.0, (self._heap[0][0] - self._engine.now()) / 1e6))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._earlier.wait()
            if follower.done():
                await follower
        finally:
            follower.cancel()
            for look in self._looks:
                look.cancel()
            await asyncio.gather(follower, *self._looks, return_exceptions=True)
            # One that was cancelled before it began has taken nothing out.
            self._asked.clear()

    async def _load(self) -> int:
        """Read all schedules; returns the revision since which changes are to be followed."""
        found, revision = await self._schedules.all()
        self._times.clear()
        self._known.clear()
        self._heap.clear()
        now = self._engine.now()
        times = await asyncio.to_thread(lambda: [_time(each, now) for each in found])
        for each, time in zip(found, times, strict=True):
            self._set((each.namespace, each.name), time)
        return revision

    async def _follow(self, revision: int) -> None:
        """Look at each schedule whose record changes; ends when changes were missed."""
        async with aclosing(self._store.watch(keys.SCHEDULE_STATUS, revision)) as items:
            async for item in items:
                if isinstance(item, Reset):
                    return
                for change in item.changes:
                    namespace, _, name = change.key.removeprefix(keys.SCHEDULE_STATUS).partition("/")
                    # What this replica has written itself comes back too.
                    if change.mod_revision > self._known.get((namespace, name), 0):
                        self._look_soon((namespace, name))

    # When

    def _set(self, name: Name, time: int) -> None:
        """Have a look at the schedule at that time; 0: at none."""
        if not time:
            self._times.pop(name, None)
            return
        if self._times.get(name) == time:
            return
        self._times[name] = time
        if len(self._heap) > 2 * len(self._times) + _SPARE:
            # Most of it is of times that have been set anew since.
            self._heap = sorted((time, name) for name, time in self._times.items())
        else:
            heapq.heappush(self._heap, (time, name))
        if self._heap[0] == (time, name):
            self._earlier.set()

    def _due(self) -> list[Name]:
        found: list[Name] = []
        now = self._engine.now()
        while self._heap and self._heap[0][0] <= now:
            time, name = heapq.heappop(self._heap)
            # What has been set anew since is further back in the heap.
            if self._times.get(name) == time:
                del self._times[name]
                found.append(name)
        return found

    # What

    def _look_soon(self, name: Name) -> None:
        if name in self._asked:
            self._asked[name] = True
            return
        self._asked[name] = False
        task = asyncio.create_task(self._look(name))
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _look(self, name: Name) -> None:
        try:
            while True:
                self._asked[name] = False
                async with self._turns:
                    self._set(name, await self._see_to(name))
                if not self._asked[name]:
                    return
        finally:
            self._asked.pop(name, None)

    async def _see_to(self, name: Name) -> int:
        """Do what is to be done; returns when to look again."""
        try:
            while True:
                found = await self._schedules.read(*name)
                if found is None:
                    self._known.pop(name, None)
                    return 0
                self._known[name] = found.record_revision
                with contextlib.suppress(*_AGAIN):
                    if not await self._act(found):
                        return await asyncio.to_thread(found.next, self._engine.now())
        except _AWAY as error:
            log.debug("schedule_not_seen_to", namespace=name[0], schedule=name[1], error=str(error))
            return self._engine.now() + _RETRY_AFTER
        except Exception as error:  # one that cannot be dealt with must not stop the others
            log.error("schedule_failed", namespace=name[0], schedule=name[1], exc_info=error)
            return self._engine.now() + _FAULT_AFTER

    async def _act(self, found: Found) -> bool:
        """Take one step; returns whether there may be more to do."""
        if found.record.replaced:
            await self._cancel_replaced(found)
            return True
        if found.schedule.paused:
            return False
        due = await asyncio.to_thread(found.due, self._engine.now())
        if due is None:
            return False
        if not due.time:
            await self._schedules.pass_over(found, due)
            if due.missed:
                log.info("schedule_missed", namespace=found.namespace, schedule=found.name, times=due.missed)
            else:
                log.warning("schedule_ahead_of_clock", namespace=found.namespace, schedule=found.name)
            return True
        active = await self._schedules.unfinished(found.namespace, found.record)
        if active and not allows_more(found.schedule):
            await self._schedules.pass_over(found, due, skipped=True)
            log.info("schedule_skipped", namespace=found.namespace, schedule=found.name, run_id=active[-1])
            return True
        await self._start(found, due, active)
        return True

    async def _start(self, found: Found, due: Due, active: list[str]) -> None:
        failpoint("schedules.before_fire")
        try:
            run = await self._schedules.fire(found, due, active)
        except (*_AGAIN, errors.Away, errors.StoreExhausted):
            raise
        except (errors.DomainError, TooLarge) as error:
            text = _why(error)
            log.warning("schedule_refused", namespace=found.namespace, schedule=found.name, error=text)
            await self._schedules.pass_over(found, due, error=text)
        else:
            failpoint("schedules.after_fire")
            log.debug("schedule_fired", namespace=found.namespace, schedule=found.name, run_id=run.id)

    async def _cancel_replaced(self, found: Found) -> None:
        """Cancel the runs that the last one replaces; once more does no harm."""
        message = f"run {found.record.runs[-1]} replaced it"
        cancel = CancelRequested(message, REPLACED_GRACE, reason=run_pb2.RUN_REASON_REPLACED)
        for run in found.record.replaced:
            with contextlib.suppress(errors.NotFound, Unreadable):
                await self._engine.handle(found.namespace, run, cancel)
        await self._schedules.replaced(found)


def _time(found: Found, now: int) -> int:
    """When to look at a schedule first: now, if that can't be said."""
    if found.is_odd(now):
        return now
    try:
        return found.next(now)
    except ValueError:
        return now


def _why(error: errors.DomainError | TooLarge) -> str:
    """Why a run was refused, for people."""
    if isinstance(error, errors.DomainError) and error.violations:
        return "; ".join(f"{each.field}: {each.description}" for each in error.violations[:5])
    return error.message if isinstance(error, errors.DomainError) else str(error)

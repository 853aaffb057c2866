"""Who holds a lock: those whose claims come first are told so, and go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import structlog

from conveyor.core import errors
from conveyor.core.events import LockGranted
from conveyor.core.locks import RUN
from conveyor.core.model import Decision, RunState
from conveyor.state import keys
from conveyor.state.locks import Claimant, Lock, Locks, claim_key, claim_of, claimant, open_claims
from conveyor.state.runs import StoredRun, Unreadable
from conveyor.store.port import Conflict, KeyValue, StoreError

if TYPE_CHECKING:
    from conveyor.engine.loop import Engine

log = structlog.get_logger("conveyor.engine")

LockId = tuple[str, str]
"""Namespace and key."""

OTHERS_FIRST = 2.0
"""Seconds that another replica has to see to a lock itself."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_REST = 9
"""How many times longer than a look is the time until the next one, as long as nobody gives the lock up."""

_LONGEST_REST = 1.0
_AT_ONCE = 32
_LOCKS_KNOWN = 4096


class LockKeeper:
    """Looks at locks when somebody has claimed one or given it up, and when a run with a claim is found.

    All that it does derives from what is stored and changes nothing when done twice, so any replica may do it. Those
    that wait are nowhere in memory: a look reads the lock, and only who holds it is dealt with.
    """

    def __init__(self, engine: Engine, locks: Locks) -> None:
        self._engine = engine
        self._locks = locks
        self._asked: dict[LockId, set[Claimant]] = {}
        """The locks that must be looked at, and whose claims must be among those found."""
        self._looking: dict[LockId, asyncio.Event] = {}
        """Those that are being looked at; the event has the next look come at once."""
        self._later: dict[LockId, asyncio.TimerHandle] = {}
        self._told: OrderedDict[LockId, set[str]] = OrderedDict()
        """The claims on a lock whose owners are known to know that they hold it."""

    def follow(self, run: StoredRun, decision: Decision) -> None:
        """Look at the locks that were claimed or given up by a decision, which is stored."""
        for index in decision.joins:
            self._look_soon((run.head.namespace, claim_of(run.state, index).key))
        for index in decision.leaves:
            self._look_soon((run.head.namespace, claim_of(run.state, index).key), hurry=True)

    def resume(self, run: StoredRun) -> None:
        """Look at all locks on which a run has claims, and that these are there."""
        for index in open_claims(run.state):
            step = "" if index == RUN else run.state.plan.steps[index].id
            lock = run.head.namespace, claim_of(run.state, index).key
            self._look_soon(lock, (Claimant(run.head.id, step),))

    def elsewhere(self, namespace: str, key: str) -> None:
        """Look at a lock that another replica's commit has to do with, in case that one dies before it does."""
        lock = (namespace, key)
        if lock not in self._later:
            self._later[lock] = asyncio.get_running_loop().call_later(OTHERS_FIRST, self._now, lock)

    def _now(self, lock: LockId) -> None:
        del self._later[lock]
        self._look_soon(lock, hurry=True)

    def close(self) -> None:
        """Look at nothing later on."""
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()

    async def clear(self) -> None:
        """Take out claims of runs that are not under way: deleted by hand, or put aside. Raises the store's errors."""
        claims = list(await self._locks.claims())
        if not claims:
            return
        # Read later than the claims: a run that began meanwhile has none of these, one that ended took its own along.
        active = set(await self._engine.runs.active())
        for claim in claims:
            namespace, key, run, _ = keys.parse_claim(claim.key)
            if (namespace, run) not in active:
                await self._remove((namespace, key), claim)

    def _look_soon(self, lock: LockId, claimants: Iterable[Claimant] = (), *, hurry: bool = False) -> None:
        self._asked.setdefault(lock, set()).update(claimants)
        urgent = self._looking.get(lock)
        if urgent is None:
            urgent = self._looking[lock] = asyncio.Event()
            self._engine.spawn(self._look(lock, urgent))
        if hurry:
            urgent.set()

    async def _look(self, lock: LockId, urgent: asyncio.Event) -> None:
        pause, time = _FIRST_PAUSE, asyncio.get_running_loop().time
        try:
            while (claimants := self._asked.pop(lock, None)) is not None:
                began = time()
                urgent.clear()
                try:
                    found = await self._see_to(lock, claimants)
                except Conflict:
                    found = None
                except StoreError as error:
                    log.debug("lock_not_seen_to", namespace=lock[0], lock=lock[1], error=str(error))
                    await asyncio.sleep(pause)
                    pause, found = min(pause * 2, _LONGEST_PAUSE), None
                if found is None:
                    self._asked.setdefault(lock, set()).update(claimants)
                elif lock in self._asked and found.waiting:
                    # Who comes now waits anyway. Many may come at once, and each look costs more than the one before.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(urgent.wait(), min(_REST * (time() - began), _LONGEST_REST))
        finally:
            del self._looking[lock]

    async def _see_to(self, lock: LockId, claimants: set[Claimant]) -> Lock | None:
        """Do what is to be done; the lock as it is then, or None when it must be read again."""
        found = await self._locks.read(*lock)
        if claimants:
            missing = claimants.difference(claimant(kv) for kv in found.claims)
            if missing and await self._join_again(lock, missing):
                return None
        told = self._known_to_hold(lock, found.holders)
        fresh = [kv for kv in found.holders if kv.key not in told]
        left = True
        for start in range(0, len(fresh), _AT_ONCE):
            some = fresh[start : start + _AT_ONCE]
            ends = await asyncio.gather(*(self._tell(lock, kv) for kv in some))
            told.update(kv.key for kv, holds in zip(some, ends, strict=True) if holds)
            left = left and None not in ends
        return found if left else None

    def _known_to_hold(self, lock: LockId, holders: Sequence[KeyValue]) -> set[str]:
        told = self._told.pop(lock, set()).intersection(kv.key for kv in holders)
        if holders:
            self._told[lock] = told
            if len(self._told) > _LOCKS_KNOWN:
                self._told.popitem(last=False)
        return told

    async def _tell(self, lock: LockId, claim: KeyValue) -> bool | None:
        """Have the owner of a claim go on; whether it knows then that it holds the lock. None: the claim is gone."""
        namespace, _ = lock
        owner = claimant(claim)
        try:
            index = await self._index(namespace, owner)
            decision = await self._engine.handle(namespace, owner.run, LockGranted(index))
            state = decision.state
        except (errors.NotFound, KeyError):
            pass  # The run is gone, or has no such step.
        except Unreadable as error:
            log.debug("lock_owner_unreadable", run_id=owner.run, error=error.message)
            return False  # It is put aside by the sweep, with its claims.
        else:
            if decision.dirty:
                self._engine.metrics.lock_granted(state.head.update_time - _since(state, index))
            if index in open_claims(state) and claim_key(state, index) == claim.key:
                return claim_of(state, index).held
        await self._remove(lock, claim)
        return None

    async def _index(self, namespace: str, owner: Claimant) -> int:
        """The index of its step, or RUN. Raises KeyError when there is no such step."""
        run = await self._engine.run(namespace, owner.run)
        if owner.step and owner.step not in run.state.plan.index:
            # What is in hand may be from before the step's matrix was expanded.
            run = await self._engine.runs.load(namespace, owner.run)
        return _index(run.state, owner.step)

    async def _remove(self, lock: LockId, claim: KeyValue) -> None:
        """Take out a claim that nobody is going to give up, and look who comes next."""
        with contextlib.suppress(Conflict):
            await self._locks.remove(claim)
            log.warning("lock_claim_removed", namespace=lock[0], lock=lock[1], claim=claim.key)
        self._look_soon(lock, hurry=True)

    async def _join_again(self, lock: LockId, missing: Iterable[Claimant]) -> bool:
        """Store the claims of those that still have them, those that hold the lock first; whether there are any.

        Somebody has deleted them by hand.
        """
        found: list[tuple[bool, int, str, StoredRun, int]] = []
        for owner in missing:
            try:
                run = await self._engine.runs.load(lock[0], owner.run)
                index = _index(run.state, owner.step)
            except (errors.NotFound, Unreadable, KeyError):
                continue
            if index in open_claims(run.state) and claim_of(run.state, index).key == lock[1]:
                held = claim_of(run.state, index).held
                found.append((not held, _since(run.state, index), f"{owner.run}/{owner.step}", run, index))
        for *_, run, index in sorted(found, key=lambda each: each[:3]):
            await self._locks.join_again(run.state, run.revision, index)
        return bool(found)


def _index(state: RunState, step: str) -> int:
    """The index of a step, or RUN. Raises KeyError."""
    return state.plan.index[step] if step else RUN


def _since(state: RunState, index: int) -> int:
    """When it began to want its lock; of a run, which may have waited for its turn first, when it was created."""
    if index == RUN:
        return state.head.create_time
    record = state.steps[index]
    return record.queue_time if record is not None else 0

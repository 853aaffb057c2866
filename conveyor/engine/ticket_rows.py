"""Steps that wait for a JetStream consumer."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from conveyor.core import errors
from conveyor.core.events import Waiting
from conveyor.engine.loop import Engine
from conveyor.engine.ticket_takers import NOBODY, Found
from conveyor.engine.workers import DriverKey, Waiter
from conveyor.v1 import run_pb2

Find = Callable[[str, str, str], Found]


@dataclass(slots=True)
class _Row:
    """Those that wait for one driver, by the definition of their resources, and what these were told last."""

    waiters: dict[str, dict[Waiter, None]] = field(default_factory=dict)
    told: dict[str, Found] = field(default_factory=dict)


class TicketRows:
    """Claims waiting steps once a consumer takes tickets for them, and tells them why they go on waiting."""

    def __init__(self, engine: Engine, find: Find) -> None:
        """`find` says which consumer would get a ticket now, and counts those that are in `claiming` as given."""
        self._engine = engine
        self._find = find
        self._rows: dict[DriverKey, _Row] = {}
        self.claiming: Counter[DriverKey] = Counter()
        """How many claims are being stored, by driver."""

    @property
    def drivers(self) -> list[DriverKey]:
        """Those for which a step waits."""
        return list(self._rows)

    def wait(self, waiter: Waiter) -> None:
        """Put a step into the row of its driver, once."""
        key, definition = (waiter.namespace, waiter.driver), waiter.definition
        row = self._rows.setdefault(key, _Row())
        waiters = row.waiters.setdefault(definition, {})
        known, told = waiter in waiters, row.told.get(definition)
        waiters[waiter] = None
        self.serve(key)
        if not known and told is not None and waiter in waiters and row.told.get(definition) == told:
            self._engine.spawn(self._explain(waiter, told))

    def leave(self, waiter: Waiter) -> None:
        """The step waits no more."""
        key = (waiter.namespace, waiter.driver)
        row = self._rows.get(key)
        if row is not None and waiter in (waiters := row.waiters.get(waiter.definition, {})):
            del waiters[waiter]
            self._tidy(key, row, waiter.definition)

    def clear(self, key: DriverKey) -> None:
        """None of the driver's steps waits for a consumer any more."""
        self._rows.pop(key, None)

    def _tidy(self, key: DriverKey, row: _Row, definition: str) -> None:
        if not row.waiters[definition]:
            del row.waiters[definition]
            row.told.pop(definition, None)
            if not row.waiters and self._rows.get(key) is row:
                del self._rows[key]

    def serve(self, key: DriverKey) -> None:
        """Claim as many of the driver's steps as there is room for, and tell the others what is new.

        Costs as much as it changes: it is called for each ticket that makes room.
        """
        row = self._rows.get(key)
        if row is None:
            return
        namespace, driver = key
        for definition, waiters in list(row.waiters.items()):
            while waiters:
                found = self._find(namespace, driver, definition)
                if not found.consumer:
                    self._tell(row, definition, found)
                    break
                waiter = next(iter(waiters))
                del waiters[waiter]
                self.claiming[key] += 1
                self._engine.spawn(self._claim(key, waiter, found.consumer))
            self._tidy(key, row, definition)

    async def _claim(self, key: DriverKey, waiter: Waiter, consumer: str) -> None:
        try:
            with contextlib.suppress(errors.NotFound):
                await self._engine.claim_ticket(waiter, consumer)
        finally:
            self.claiming[key] -= 1
            if not self.claiming[key]:
                del self.claiming[key]
            self.serve(key)  # In case that it left room after all.

    def _tell(self, row: _Row, definition: str, found: Found) -> None:
        before = row.told.get(definition)
        if found == before or (before is None and found == NOBODY):
            return
        row.told[definition] = found
        for waiter in row.waiters[definition]:
            self._engine.spawn(self._explain(waiter, found))

    async def _explain(self, waiter: Waiter, found: Found) -> None:
        reason = found.reason or run_pb2.STEP_REASON_NO_WORKER
        message = found.message or f"no worker of driver {waiter.driver} is connected"
        with contextlib.suppress(errors.NotFound):
            await self._engine.handle(waiter.namespace, waiter.run, Waiting(waiter.index, reason, message))

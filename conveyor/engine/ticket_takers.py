"""Who takes tickets: the drivers' consumers, as the broker describes them."""

from __future__ import annotations

import time
from typing import NamedTuple

import structlog

from conveyor.bus import subjects
from conveyor.bus.consumers import ConsumerState
from conveyor.bus.errors import BusError
from conveyor.bus.nats import Bus
from conveyor.engine.workers import DriverKey
from conveyor.v1 import run_pb2

log = structlog.get_logger("conveyor.engine")

_FRESH = 2.0
"""Seconds for which what the broker said of a consumer is believed."""
_BETWEEN_PULLS = 2.0
"""Seconds that a driver may take from one pull request to the next and still count as pulling."""
_INTEREST_LINGERS = 300.0


class Found(NamedTuple):
    """The consumer that would get a ticket now, or "" with the reason and message why there is none.

    The reason is UNSPECIFIED when the driver has no consumer at all.
    """

    consumer: str
    reason: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED
    message: str = ""


NOBODY = Found("")


class Takers:
    """What is known of the consumers. Nothing here waits, but `look`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._seen: set[DriverKey] = set()
        self._listed: list[ConsumerState] = []
        self._before: dict[DriverKey, ConsumerState] = {}
        self._pulled: dict[DriverKey, float] = {}
        self._interest_until: dict[DriverKey, float] = {}

    def state(self, key: DriverKey) -> ConsumerState | None:
        """What the broker last said of the driver's consumer."""
        return self._bus.consumers.state(*key)

    def find(self, namespace: str, driver: str, definition: str) -> Found:
        """The consumer that would get a ticket for a resource of the definition now."""
        key = (namespace, driver)
        if not self._bus.available:
            if key in self._seen:
                return Found(
                    "", run_pb2.STEP_REASON_BROKER_UNAVAILABLE, "the broker that its driver listens to is away"
                )
            return NOBODY
        state = self.state(key)
        if state is None:
            return NOBODY
        self._seen.add(key)
        name = subjects.consumer(namespace, driver)
        subject = subjects.ticket(namespace, driver, definition)
        if not state.matches(subject):
            message = f"JetStream consumer {name} has no filter that matches {subject}"
            return Found("", run_pb2.STEP_REASON_CONSUMER_MISMATCH, message)
        if state.age > _FRESH or not self._takes(key, state):
            return Found("", run_pb2.STEP_REASON_NO_WORKER, f"nobody takes messages from JetStream consumer {name}")
        return Found(name)

    def _takes(self, key: DriverKey, state: ConsumerState) -> bool:
        """Whether somebody is there: pulls, works unacknowledged, or is only between two pull requests."""
        if state.pulling or state.num_ack_pending:
            return True
        return time.monotonic() - self._pulled.get(key, -_BETWEEN_PULLS) < _BETWEEN_PULLS

    def changed(self, key: DriverKey) -> None:
        """The broker says something new of the driver's consumer."""
        state, before = self.state(key), self._before.pop(key, None)
        if state is None:
            self._pulled.pop(key, None)
            return
        self._before[key] = state
        if state.pulling or (before is not None and (before.pulling or before.delivered < state.delivered)):
            self._pulled[key] = time.monotonic()

    def interest(self, key: DriverKey) -> None:
        """Have the driver's consumer looked at, for some minutes after the last call."""
        if key not in self._interest_until:
            self._bus.consumers.interest(*key)
        self._interest_until[key] = time.monotonic() + _INTEREST_LINGERS

    def lose_interest(self, needed: set[DriverKey]) -> None:
        """Have those no longer looked at that were not asked for in a while and are not needed."""
        now = time.monotonic()
        for key, until in list(self._interest_until.items()):
            if until < now and key not in needed:
                del self._interest_until[key]
                self._before.pop(key, None)
                self._pulled.pop(key, None)
                self._bus.consumers.forget(*key)

    def listeners(self, namespace: str, definition: str) -> list[str]:
        """The drivers that would get a broadcast of the definition now."""
        subject = subjects.broadcast(namespace, definition)
        return [state.driver for state in self.consumers(namespace) if state.matches(subject) and self._listens(state)]

    def _listens(self, state: ConsumerState) -> bool:
        # Between two pull requests too; a consumer whose driver is gone would only have the run wait for its time.
        return self._takes((state.namespace, state.driver), state)

    def consumers(self, namespace: str) -> list[ConsumerState]:
        """All consumers of drivers in a namespace, as they were a moment ago."""
        return [state for state in self._listed if state.namespace == namespace]

    async def look(self) -> None:
        """Have all consumers listed."""
        if not self._bus.available:
            return
        try:
            self._listed = await self._bus.consumers.list_consumers()
        except BusError as error:
            log.debug("consumers_not_listed", error=str(error))

"""What is known of the drivers' consumers on stream `messages`. They belong to the drivers: here they are only read."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from conveyor.bus import subjects
from conveyor.bus.errors import BusError
from conveyor.bus.jetstream import JetStream, JsonObject
from conveyor.bus.session import cancel_and_wait
from conveyor.bus.subjects import MESSAGES_STREAM, DriverName

_log = structlog.get_logger("conveyor.bus")

POLL_S = 0.7
"""Between two looks at each consumer that somebody waits for."""
_LIST_FROM = 32
"""From so many consumers on they are listed together instead of asked for one by one."""

OnChange = Callable[[str, str], None]
"""Called with namespace and driver."""


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """A driver's consumer as the broker last described it.

    `created` is the broker's text. `delivered` is the highest stream sequence that was delivered; a new consumer starts
    at the stream's last. `num_pending` messages wait, `num_ack_pending` are out, `num_waiting` pull requests are open.
    `time` is monotonic seconds.
    """

    namespace: str
    driver: str
    created: str
    filters: tuple[str, ...]
    num_waiting: int
    num_pending: int
    num_ack_pending: int
    delivered: int
    push_bound: bool
    time: float

    @property
    def pulling(self) -> bool:
        """Whether somebody would get a message that is published now."""
        return self.num_waiting > 0 or self.push_bound

    @property
    def age(self) -> float:
        """Seconds since the broker said this."""
        return time.monotonic() - self.time

    def matches(self, subject: str) -> bool:
        """Whether messages of this subject go to this consumer."""
        return not self.filters or any(subjects.matches(wanted, subject) for wanted in self.filters)

    def differs(self, other: ConsumerState | None) -> bool:
        """Whether somebody who waits for this driver should look again."""
        return other is None or (self.created, self.filters, self.pulling, self.delivered) != (
            other.created,
            other.filters,
            other.pulling,
            other.delivered,
        )


class ConsumerRegistry:
    """Keeps the states of the consumers that somebody waits for at most a second old."""

    def __init__(self, jetstream: Callable[[], JetStream]) -> None:
        self._jetstream = jetstream
        self._interests: Counter[DriverName] = Counter()
        self._states: dict[DriverName, ConsumerState] = {}
        self._on_change: list[OnChange] = []
        self._refreshing: dict[DriverName, asyncio.Task[None]] = {}
        self._again: set[DriverName] = set()
        """Those of which something was heard while the answer about them was on its way: it may be the older one."""

    def on_change(self, callback: OnChange) -> None:
        """Calls back when a consumer somebody is interested in appears, goes, changes its filters, is pulled from or
        no longer, or was given more messages."""
        self._on_change.append(callback)

    def interest(self, namespace: str, driver: str) -> None:
        """Begins to watch the driver's consumer. Each call needs its `forget`."""
        name = DriverName(namespace or subjects.DEFAULT_NAMESPACE, driver)
        self._interests[name] += 1
        if self._interests[name] == 1:
            self._refresh_soon(name)

    def forget(self, namespace: str, driver: str) -> None:
        """Takes one `interest` back."""
        name = DriverName(namespace or subjects.DEFAULT_NAMESPACE, driver)
        self._interests[name] -= 1
        if self._interests[name] <= 0:
            del self._interests[name]
            self._states.pop(name, None)

    def state(self, namespace: str, driver: str) -> ConsumerState | None:
        """What was last heard; None when there is no consumer, nobody is interested or nothing is known (yet)."""
        return self._states.get(DriverName(namespace or subjects.DEFAULT_NAMESPACE, driver))

    async def refresh(self, namespace: str, driver: str) -> ConsumerState | None:
        """Asks the broker now; None when there is no consumer. Raises BusUnavailable."""
        name = DriverName(namespace or subjects.DEFAULT_NAMESPACE, driver)
        info = await self._jetstream().consumer(MESSAGES_STREAM, subjects.consumer(*name))
        state = None if info is None else _state(name, info)
        self._learn(name, state)
        return state

    async def list_consumers(self) -> list[ConsumerState]:
        """All consumers that can be a driver's. Raises BusUnavailable."""
        found = []
        async for info in self._jetstream().consumers(MESSAGES_STREAM):
            name = subjects.parse_consumer(info["name"])
            if name is not None:
                found.append(_state(name, info))
                self._learn(name, found[-1])
        return found

    def heard(self, consumer: str) -> None:
        """An advisory named this consumer."""
        name = subjects.parse_consumer(consumer)
        if name is not None and name in self._interests:
            self._refresh_soon(name)

    def lost(self) -> None:
        """The broker is away: nothing is known any more."""
        for name in list(self._states):
            self._learn(name, None)

    async def run(self) -> None:
        """Looks at the consumers for as long as the session lasts, until cancelled."""
        try:
            while True:
                started = time.monotonic()
                try:
                    await self._poll()
                except BusError as error:
                    _log.debug("bus.consumers.failed", error=str(error))
                await asyncio.sleep(max(0.05, POLL_S - (time.monotonic() - started)))
        finally:
            await cancel_and_wait(*self._refreshing.values())

    async def _poll(self) -> None:
        names = list(self._interests)
        if len(names) >= _LIST_FROM:
            seen = {DriverName(state.namespace, state.driver) for state in await self.list_consumers()}
            for name in names:
                if name not in seen:
                    self._learn(name, None)
            return
        await asyncio.gather(*(self.refresh(*name) for name in names))

    def _refresh_soon(self, name: DriverName) -> None:
        if name in self._refreshing:
            self._again.add(name)
            return

        async def refresh() -> None:
            try:
                while True:
                    self._again.discard(name)
                    await self.refresh(*name)
                    if name not in self._again:
                        return
            except BusError as error:
                _log.debug("bus.consumers.failed", error=str(error))
            finally:
                self._again.discard(name)
                self._refreshing.pop(name, None)

        self._refreshing[name] = asyncio.get_running_loop().create_task(refresh())

    def _learn(self, name: DriverName, state: ConsumerState | None) -> None:
        if name not in self._interests:
            return
        before = self._states.get(name)
        if state is None:
            self._states.pop(name, None)
            changed = before is not None
        else:
            self._states[name] = state
            changed = state.differs(before)
        if changed:
            for callback in self._on_change:
                callback(*name)


def _state(name: DriverName, info: JsonObject) -> ConsumerState:
    config = info["config"]
    single = config.get("filter_subject")
    return ConsumerState(
        namespace=name.namespace,
        driver=name.driver,
        created=info["created"],
        filters=tuple(config.get("filter_subjects") or ([single] if single else [])),
        num_waiting=int(info.get("num_waiting", 0)),
        num_pending=int(info.get("num_pending", 0)),
        num_ack_pending=int(info.get("num_ack_pending", 0)),
        delivered=int(info.get("delivered", {}).get("stream_seq", 0)),
        push_bound=bool(info.get("push_bound", False)),
        time=time.monotonic(),
    )

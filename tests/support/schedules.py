"""What tests of schedules share: a server whose clock they turn, and schedules that are due at each whole hour."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from conveyor.sdk import Client, Unavailable
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run
from conveyor.v1.schedule_pb2 import Schedule
from tests.support.belt import Belt, step
from tests.support.wait import until

HOURLY = "0 * * * *"
HOUR, MINUTE = 3600, 60


class TurnedClock:
    """The clock of servers: at first half a minute after a whole hour, so that the next one comes when a test says."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self._ahead = (30 - time.time()) % HOUR
        self.turn(0)

    @property
    def program(self) -> list[str]:
        """The command that takes `server …`, with this clock."""
        return [sys.executable, "-m", "tests.faults.program", "--clock", str(self._file)]

    def turn(self, seconds: float) -> None:
        """Have it be ahead by so much more. Whoever reads meanwhile reads the former or the latter."""
        self._ahead += seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._ahead:f}")
        new.replace(self._file)

    async def agreed(self, client: Client) -> None:
        """Wait until a server has read how far it was turned."""

        async def has() -> bool:
            made = await client.definitions.create(ResourceDefinition(name="probe"), validate_only=True)
            return made.create_time.ToSeconds() >= int(time.time() + self._ahead)

        await until(has, "the server to look at its clock")

    @property
    def hour(self) -> int:
        """The whole hour that it has struck last, in seconds since 1970."""
        return int(time.time() + self._ahead) // HOUR * HOUR


async def schedule(belt: Belt, *steps: str, name: str = "nightly", **fields: Any) -> Schedule:
    """A new schedule that is due at each whole hour, for a resource whose own changes start nothing."""
    # A step may take longer than an hour, which is soon over here.
    await belt.pipeline(*(step(each, timeout=100 * HOUR) for each in steps or ("pack",)))
    shop = Resource(name="shop", definition="app", pipeline="release", on_change=False)
    await belt.client.resources.apply(shop)
    wanted = Schedule(name=name, **{"definition": "app", "resource": "shop", "cron": HOURLY, **fields})
    return await belt.client.schedules.create(wanted)


async def runs(belt: Belt, name: str = "nightly") -> list[Run]:
    """The runs that a schedule started, the earliest first."""
    return [run async for run in belt.client.runs.list(schedule=name)][::-1]


async def started(belt: Belt, count: int, name: str = "nightly") -> list[Run]:
    """The runs that a schedule started, once there are so many."""

    async def there() -> list[Run] | None:
        try:
            found = await runs(belt, name)
        except Unavailable:
            return None  # the server has just been started again
        return found if len(found) >= count else None

    found = await until(there, f"{count} runs of {name}")
    assert found is not None
    assert len(found) == count
    return found


async def decided(belt: Belt, hour: int, name: str = "nightly") -> Schedule:
    """The schedule, once all is done that was due up to this hour."""

    async def there() -> Schedule | None:
        try:
            found = await belt.client.schedules.get(name)
        except Unavailable:
            return None
        return found if found.status.next_time.ToSeconds() > hour else None

    found = await until(there, f"{name} to be done with what was due")
    assert found is not None
    return found

"""What a check works with: the test server, the driver's process, and waiting for what the protocol asks."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from conveyor.verify.attempt import Answer, Attempt
from conveyor.verify.process import DriverProcess
from conveyor.verify.site import Site

SiteT = TypeVar("SiteT", bound=Site, covariant=True)

STARTED = "verify: started"
"""The line that tells that an attempt has begun."""


class Unmet(Exception):
    """The driver did not do what the protocol asks: what was expected, and what was seen."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}; {seen}")


class Rig(Generic[SiteT]):
    """One check's tools. `timeout` is how many seconds each single thing may take that the driver has to do."""

    def __init__(
        self, site: SiteT, process: DriverProcess, *, driver: str, namespace: str, slots: int, timeout: float
    ) -> None:
        self.site = site
        self.process = process
        self.driver = driver
        self.namespace = namespace
        self.slots = slots
        self.timeout = timeout

    async def give(self, spec: Mapping[str, Any] | None = None, **fields: Any) -> Attempt:
        """Give out an attempt."""
        attempt = Attempt(spec or {}, **fields)
        await self.site.give([attempt])
        return attempt

    async def start(self, seconds: float, **spec: Any) -> Attempt:
        """Give out an attempt that takes so long, and wait until it has begun."""
        attempt = await self.give({"log": [STARTED], "seconds": seconds, **spec})
        await self.started(attempt)
        return attempt

    async def started(self, *attempts: Attempt) -> None:
        """Wait until all of them have written their first line."""
        await self.until(
            lambda: all(each.lines for each in attempts),
            "the first log line of the attempt",
            lambda: f"none came of {sum(not each.lines for each in attempts)} of {len(attempts)}",
        )

    async def answer(self, attempt: Attempt, what: str = "a result") -> Answer:
        """Wait for the first result of an attempt."""
        await self.until(lambda: attempt.answers, what, lambda: "none came")
        return attempt.answers[0]

    async def until(
        self, condition: Callable[[], object], expected: str, seen: Callable[[], str], within: float = 0
    ) -> None:
        """Wait until a condition holds. Raises Unmet when it does not in time, or when the driver ends before."""
        within = within or self.timeout
        await self.site.changes.until(lambda: condition() or self.process.code is not None, within)
        if condition():
            return
        if self.process.code is not None:
            raise Unmet(expected, f"the driver {await self.process.obituary()}")
        raise Unmet(expected, f"{seen()} within {within:g} s")

    async def works(self, after: str) -> None:
        """The driver takes an attempt and answers it."""
        await self.answer(await self.give(), f"a result of the next attempt after {after}")

"""What a test server offers to the checks, whichever transport it speaks."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from conveyor.verify.attempt import Attempt, Attempts
from conveyor.verify.waiting import Changes


class CannotServe(Exception):
    """There can be no test server; the text says what to do."""


class Site(Protocol):
    """A server that gives out attempts, and gathers what drivers say. Whatever comes notifies `changes`."""

    changes: Changes
    attempts: Attempts

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells a driver the way."""

    async def start(self) -> None:
        """Serve."""

    async def close(self) -> None:
        """End everything."""

    async def forget_driver(self) -> None:
        """What was known of the driver's process counts no more: another one comes."""

    def abandon(self) -> None:
        """Leave no process behind, at once; `close` may still come, or not."""

    def ready(self) -> str:
        """What is still missing before the driver can be given attempts; empty when nothing is."""

    async def give(self, attempts: Sequence[Attempt]) -> None:
        """Give out attempts, all at once."""

    async def cancel(self, attempt: Attempt) -> None:
        """Tell the driver to stop an attempt."""

    async def go_away(self) -> None:
        """Be gone as a killed process is."""

    async def come_back(self) -> None:
        """Be there again, at the same address."""

    async def tidy(self) -> None:
        """Behave as usual again, and take back what no driver took."""

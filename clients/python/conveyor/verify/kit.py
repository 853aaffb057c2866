"""Runs the checks one after the other, on as few processes of the driver as will do."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conveyor.verify import catalogue
from conveyor.verify.catalogue import Check
from conveyor.verify.process import DriverProcess
from conveyor.verify.rig import Rig, Unmet
from conveyor.verify.site import Site

_TIDY_S = 3.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is verified and how. `driver`: the name that it must say, any when empty. `timeout` is in seconds."""

    command: Sequence[str]
    folder: Path
    """An empty folder for the time of the kit's run."""
    log: Path | None = None
    """Gets what the driver prints."""
    transport: str = "grpc"
    driver: str = ""
    namespace: str = "default"
    slots: int = 2
    timeout: float = 15.0
    only: frozenset[str] = frozenset()
    skip: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a check: `ok`, `FAIL` or `skipped`, and why."""

    check: str
    verdict: str
    said: str


async def verify(settings: Settings) -> AsyncGenerator[Verdict, None]:
    """The verdict of each check, as it comes. Raises CannotStart of the command, CannotServe of the test server."""
    checks, site = catalogue.of(settings.transport, settings.namespace, settings.driver, settings.folder)
    kit = _Kit(settings, site)
    try:
        await site.start()
        for check in checks:
            yield await kit.judge(check)
    except asyncio.CancelledError:
        # Perhaps there is no time for more.
        site.abandon()
        raise
    finally:
        try:
            await kit.end_process()
        finally:
            await site.close()


async def verdicts(settings: Settings) -> list[Verdict]:
    """All of them."""
    async with aclosing(verify(settings)) as found:
        return [verdict async for verdict in found]


class _Kit:
    def __init__(self, settings: Settings, site: Site) -> None:
        self._settings = settings
        self._site = site
        self._log = settings.log or settings.folder / "driver.log"
        self._process: DriverProcess | None = None
        self._came = False
        self._given_up = False

    async def judge(self, check: Check) -> Verdict:
        if check.name in self._settings.skip or (self._settings.only and check.name not in self._settings.only):
            return Verdict(check.name, "skipped", "left out")
        if self._given_up:
            return Verdict(check.name, "skipped", "the driver does not come")
        try:
            said = await check.run(await self._rig(check))
        except Unmet as unmet:
            self._given_up = not self._came
            await self.end_process()
            return Verdict(check.name, "FAIL", str(unmet))
        finally:
            await self._site.tidy()
        if not await self._idle():
            await self.end_process()
        return Verdict(check.name, "ok", said)

    async def end_process(self) -> None:
        """The next check gets another one."""
        for attempt in self._site.attempts.open:
            attempt.over = True
        if self._process is not None:
            await self._process.kill()
            self._process = None

    async def _rig(self, check: Check) -> Rig[Any]:
        if check.prepare is not None or self._process is None or self._process.code is not None:
            await self.end_process()
            await self._site.forget_driver()
            if check.prepare is not None:
                check.prepare(self._site)
            environment = {
                **self._site.environment,
                "CONVEYOR_NAMESPACE": self._settings.namespace,
                "CONVEYOR_SLOTS": str(self._settings.slots),
            }
            self._process = await DriverProcess.start(
                self._settings.command, environment, self._log, self._site.changes.notify
            )
        rig: Rig[Any] = Rig(
            self._site,
            self._process,
            driver=self._settings.driver,
            namespace=self._settings.namespace,
            slots=self._settings.slots,
            timeout=self._settings.timeout,
        )
        await rig.until(lambda: not self._site.ready(), check.coming, self._site.ready)
        self._came = True
        return rig

    async def _idle(self) -> bool:
        """Whether the driver can be used for the next check; what a check left running is cancelled."""
        if self._process is None or self._process.code is not None:
            return False
        for attempt in self._site.attempts.open:
            await self._site.cancel(attempt)
        return await self._site.changes.until(lambda: not self._site.attempts.open, _TIDY_S)

"""A driver of the older protocol in Go, on nats.go alone: the peer of `Older` that shares no code with anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from conveyor.bus.session import cancel_and_wait
from tests.support.golang import build
from tests.support.older import Held, Older, Ticket, Work, succeed
from tests.support.wait import until


class GoOlder:
    """One process of it. The face is that of `Older`, as far as a test can drive a process.

    `filters`: those of its consumer, when they are not the recorded ones.
    """

    def __init__(
        self,
        url: str,
        name: str,
        work: Work = succeed,
        *,
        directory: Path,
        echo: bool = True,
        filters: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.tickets: list[Ticket] = []
        self._url = url
        self._work = work
        self._release = directory / f"{name}.release"
        self._environment = {
            "CONVEYOR_NATS": url,
            **({} if echo else {"MUTE": "1"}),
            **({"FILTERS": ",".join(filters)} if filters else {}),
        }
        self._log = directory / f"{name}-{len(list(directory.glob('*.older')))}.older"
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()

    @property
    def runs(self) -> list[str]:
        """The run of each ticket."""
        return [ticket["run_id"] for ticket in self.tickets]

    @property
    def steps(self) -> list[str]:
        """The step of each ticket."""
        return [json.loads(ticket["payload"])["metadata"]["conveyor.step"] for ticket in self.tickets]

    async def start(self) -> GoOlder:
        """Starts it, and waits until it takes tickets."""
        program = await asyncio.to_thread(lambda: build("./internal/olderdriver") / "olderdriver")
        words = ["hold", str(self._release)] if isinstance(self._work, Held) else ["ok"]
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                program,
                self.name,
                *words,
                env={**os.environ, **self._environment},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self._tasks.append(asyncio.create_task(self._read()))
        if isinstance(self._work, Held):
            self._tasks.append(asyncio.create_task(self._let_go(self._work)))
        await until(lambda: self._ready.is_set() or self.ended, f"{self.name} to be ready")
        assert self._ready.is_set(), self._log.read_text()
        return self

    @property
    def ended(self) -> bool:
        """Whether the process is over."""
        return self._process is not None and self._process.returncode is not None

    async def stop(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._tasks:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            # What it has printed is read to the end.
            await asyncio.wait(self._tasks[:1])
        await cancel_and_wait(*self._tasks)
        self._tasks.clear()
        assert "DATA RACE" not in (self._log.read_text() if self._log.exists() else "")

    async def answer(self, ticket: Ticket, result: dict[str, Any]) -> None:
        """Another process publishes a result."""
        hand = await Older(self._url, self.name).connect()
        await hand.answer(ticket, result)
        await hand.stop()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line == b"ready\n":
                self._ready.set()
                continue
            ticket = json.loads(line)
            self.tickets.append(ticket)
            if isinstance(self._work, Held):
                self._work.started.append(ticket)

    async def _let_go(self, held: Held) -> None:
        await held.released.wait()
        self._release.touch()

"""The driver that is verified: a process of its own, in a group of its own."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from conveyor.sdk.process_tree import Mark, ProcessTree

_LAST_BYTES = 2_000
_KILL_S = 5.0
_BETWEEN_KILLS_S = 0.02


class CannotStart(Exception):
    """The driver's command cannot be started; the text says why."""


class DriverProcess:
    """One process of the driver. Whatever it started ends with it."""

    def __init__(
        self, process: asyncio.subprocess.Process, tree: ProcessTree, log: Path, changed: Callable[[], None]
    ) -> None:
        self._process = process
        self._tree = tree
        self._log = log
        self._watch = asyncio.create_task(self._tell(changed))

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], log: Path, changed: Callable[[], None]
    ) -> "DriverProcess":
        """Start it; what it prints is added to `log`, and `changed` is called when it has ended. Raises CannotStart."""
        mark = Mark()
        with await asyncio.to_thread(log.open, "ab") as sink:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env=mark.environment({**_inherited(), **environment}),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    start_new_session=True,
                )
            except OSError as error:
                raise CannotStart(f"cannot start {command[0]}: {error.strerror}") from None
        return cls(process, ProcessTree(mark, process.pid), log, changed)

    @property
    def code(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    def terminate(self) -> None:
        """Ask it to end, as a service manager does."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    async def kill(self) -> None:
        """End it, and whatever it started, also what left its group: a job of a shell has one of its own."""
        await asyncio.to_thread(self._end_all)
        await self._watch

    def _end_all(self) -> None:
        until = time.monotonic() + _KILL_S
        while (left := self._tree.alive()) and time.monotonic() < until:
            self._tree.signal(signal.SIGKILL, left)
            # What was being started at that moment is there now.
            time.sleep(_BETWEEN_KILLS_S)

    async def obituary(self) -> str:
        """How it ended, with the last line that it printed."""
        code = self.code
        how = (
            "still runs"
            if code is None
            else f"ended with exit status {code}"
            if code >= 0
            else f"ended by {_name(code)}"
        )
        text = await asyncio.to_thread(self._last)
        return f"{how}: {text}" if text else how

    def _last(self) -> str:
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _LAST_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def _tell(self, changed: Callable[[], None]) -> None:
        await self._process.wait()
        changed()


def _name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _inherited() -> dict[str, str]:
    """The environment without what would lead the driver elsewhere: the test server has no TLS."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CONVEYOR_TLS")}

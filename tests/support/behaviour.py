"""What test drivers do: handlers for SDK drivers, inside of a test or as a process of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conveyor.sdk import Job
from conveyor.v1.log_pb2 import LogStream

Handler = Callable[[Job], Any]


async def ok(job: Job) -> dict[str, object]:
    """Succeeds."""
    return {"by": job.driver}


async def fail(job: Job) -> None:
    """Fails."""
    raise job.fail("it is broken")


async def echo(job: Job) -> dict[str, object]:
    """Gives back what it got."""
    return {
        "spec": job.spec,
        "context": job.context,
        "results": {step: result.data for step, result in job.results.items()},
    }


def sleep(seconds: float) -> Handler:
    """Succeeds after a while."""

    async def handler(job: Job) -> None:
        await asyncio.sleep(seconds)

    return handler


def flaky(failures: int) -> Handler:
    """Fails so many times, then succeeds."""

    async def handler(job: Job) -> None:
        job.log("attempt %s", job.attempt)
        if job.attempt <= failures:
            raise job.fail("not yet")

    return handler


def big(size: int) -> Handler:
    """Succeeds with so many bytes of output."""

    async def handler(job: Job) -> dict[str, object]:
        return {"text": "x" * size}

    return handler


def raw(file: Path) -> Handler:
    """Writes a file's text as output."""

    def handler(job: Job) -> None:
        job.write_output(file.read_text(), LogStream.LOG_STREAM_STDOUT)

    return handler


class Hold:
    """Succeeds once it is released; knows what it was given."""

    def __init__(self, *, cancellable: bool = True) -> None:
        self.jobs: list[Job] = []
        self.started = asyncio.Event()
        self.released = asyncio.Event()
        self._cancellable = cancellable

    @property
    def count(self) -> int:
        """Attempts so far."""
        return len(self.jobs)

    async def __call__(self, job: Job) -> dict[str, object]:
        self.jobs.append(job)
        self.started.set()
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                if self._cancellable:
                    raise
        return {"attempt": job.attempt}


class Late:
    """Ignores cancellations, and succeeds once it is released; in a thread."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.released = threading.Event()

    def __call__(self, job: Job) -> dict[str, object]:
        self.started.set()
        self.released.wait(60)
        return {"late": True}


class Counted:
    """Another handler, counted."""

    def __init__(self, handler: Handler = ok) -> None:
        self.jobs: list[Job] = []
        self._handler = handler

    @property
    def count(self) -> int:
        """Attempts so far."""
        return len(self.jobs)

    @property
    def steps(self) -> list[str]:
        """The steps, in the order in which they came."""
        return [job.step for job in self.jobs]

    async def __call__(self, job: Job) -> Any:
        self.jobs.append(job)
        return await self._handler(job)


KINDS: dict[str, Callable[..., Handler]] = {
    "ok": lambda: ok,
    "fail": lambda: fail,
    "echo": lambda: echo,
    "sleep": lambda seconds: sleep(float(seconds)),
    "flaky": lambda failures: flaky(int(failures)),
    "big": lambda size: big(int(size)),
    "raw": lambda file: raw(Path(file)),
}
"""By the name that a driver of its own process is started with, then its arguments."""

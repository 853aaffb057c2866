"""Threads for handlers that block."""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

_Work = Callable[[], None]


class Threads:
    """Up to `count` threads, started when they are needed. For one event loop.

    Not concurrent.futures: the interpreter waits for its threads at exit, also in children that they fork, which then
    end with status 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._started = 0
        self._busy = 0

    def submit(self, body: Callable[[], T], done: Callable[[T], None]) -> None:
        """Call `body` in a thread, then `done` with what it returned on the loop. `body` must not raise."""
        self._busy += 1
        if self._busy > self._started < self._count:
            self._started += 1
            threading.Thread(target=self._run, name=f"conveyor-job-{self._started}", daemon=True).start()

        def work() -> None:
            self._loop.call_soon_threadsafe(self._finish, done, body())

        self._queue.put(work)

    def close(self) -> None:
        """Let the threads end after what they have."""
        for _ in range(self._started):
            self._queue.put(None)

    def _finish(self, done: Callable[[T], None], answer: T) -> None:
        self._busy -= 1
        done(answer)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except RuntimeError:
                # The loop was closed: nobody is there any more who could take the answer.
                return

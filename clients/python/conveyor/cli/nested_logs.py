"""The log lines of a run and of those that its steps started, at any depth."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress

from conveyor.sdk import Client, NotFound
from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.run_pb2 import Run

Found = tuple[str, LogLine]
"""A line, and the steps that lead to its run: "deploy/"."""

_PAUSE = 0.1
_TRIES = 50
"""A step names its run before that is made."""


def children(run: Run) -> Iterator[tuple[str, str]]:
    """The steps that started runs, with the ids of those: one for each attempt that is kept."""
    for step in run.steps:
        for attempt in step.attempts:
            if attempt.child_run:
                yield step.step, attempt.child_run


async def stored_lines(client: Client, run_id: str, way: str, give_up_after: float) -> AsyncGenerator[Found, None]:
    """What is there: the lines of the run, then those of the runs of its steps, in the order of the steps."""
    async with aclosing(client.logs.read(run_id, give_up_after=give_up_after)) as lines:
        async for line in lines:
            yield way, line
    for step, child in children(await client.runs.get(run_id)):
        try:
            async with aclosing(stored_lines(client, child, f"{way}{step}/", give_up_after)) as found:
                async for each in found:
                    yield each
        except NotFound:
            continue  # not made yet, or deleted


async def new_lines(client: Client, run_id: str, give_up_after: float) -> AsyncGenerator[Found, None]:
    """The lines of all of them as they come, until the run has ended and those within it."""
    queue: asyncio.Queue[Found | None] = asyncio.Queue(1000)

    async def follow() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                _Follower(client, give_up_after, queue, tasks).start(run_id, "")
        finally:
            await queue.put(None)

    following = asyncio.create_task(follow())
    try:
        while (each := await queue.get()) is not None:
            yield each
        await following
    except ExceptionGroup as group:
        # One of them says enough: the others were stopped.
        raise group.exceptions[0] from None
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


class _Follower:
    """Follows runs, each by two tasks: one for its lines, one for the runs that its steps start."""

    def __init__(
        self, client: Client, give_up_after: float, queue: asyncio.Queue[Found | None], tasks: asyncio.TaskGroup
    ) -> None:
        self._client = client
        self._give_up_after = give_up_after
        self._queue = queue
        self._tasks = tasks
        self._known: set[str] = set()

    def start(self, run_id: str, way: str) -> None:
        """Follow a run, unless that is done already."""
        if run_id not in self._known:
            self._known.add(run_id)
            self._tasks.create_task(self._follow(run_id, way))

    async def _follow(self, run_id: str, way: str) -> None:
        if not await self._there(run_id):
            return
        self._tasks.create_task(self._lines(run_id, way))
        updates = self._client.runs.watch(run_id, give_up_after=self._give_up_after)
        with suppress(NotFound):  # deleted
            async with aclosing(updates):
                async for update in updates:
                    for step, child in children(update.run):
                        self.start(child, f"{way}{step}/")

    async def _there(self, run_id: str) -> bool:
        for _ in range(_TRIES):
            try:
                await self._client.runs.get(run_id)
            except NotFound:
                await asyncio.sleep(_PAUSE)
            else:
                return True
        return False

    async def _lines(self, run_id: str, way: str) -> None:
        lines = self._client.logs.read(run_id, follow=True, give_up_after=self._give_up_after)
        with suppress(NotFound):
            async with aclosing(lines):
                async for line in lines:
                    await self._queue.put((way, line))

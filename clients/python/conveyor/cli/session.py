"""Runs what a command has to ask the server, so that Ctrl-C and a closed pipe end it at once."""

import asyncio
import logging
import os
import signal
import stat
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from conveyor.cli.failures import Interrupted, PipeClosed
from conveyor.cli.options import Settings
from conveyor.cli.terminal import note
from conveyor.sdk import Client, Tls

T = TypeVar("T")

# How long a command may tidy up after Ctrl-C before it is left alone.
_PATIENCE = 0.5


def new_client(settings: Settings, namespace: str | None = None) -> Client:
    """A client for what the options and the environment say. ConfigurationError when that is malformed."""
    tls = Tls.from_environment({**os.environ, **settings.tls}) if settings.tls else None
    return Client(settings.address, namespace=namespace or settings.namespace, tls=tls)


def run(settings: Settings, work: Callable[[Client], Awaitable[T]]) -> T:
    """The result of `work` with a client. Interrupted after Ctrl-C, PipeClosed when nobody reads the output."""

    _show_log(settings)

    async def connected() -> T:
        async with new_client(settings) as client:
            return await work(client)

    return run_alone(connected())


def run_alone(work: Coroutine[Any, Any, T]) -> T:
    """The same without a client."""
    loop = asyncio.new_event_loop()
    try:
        result = loop.run_until_complete(_supervised(work))
    except (Interrupted, PipeClosed):
        # The loop is not closed: what still runs may be stuck, and the process ends now.
        raise
    except BaseException:
        _close(loop)
        raise
    _close(loop)
    return result


def _show_log(settings: Settings) -> None:
    """Make notes of what the SDK logs: that it connects again, for example."""
    log = logging.getLogger("conveyor")
    log.setLevel(logging.ERROR if settings.quiet else logging.WARNING)
    if not log.handlers:
        log.addHandler(_Notes())
        log.propagate = False


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


async def _supervised(work: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[BaseException] = loop.create_future()

    def end(why: BaseException) -> None:
        if not stop.done():
            stop.set_result(why)

    task = loop.create_task(work)
    with suppress(NotImplementedError, ValueError, RuntimeError):
        loop.add_signal_handler(signal.SIGINT, end, Interrupted())
    if (pipe := _output_pipe()) is not None:
        # A pipe that only we write to becomes readable when its reader has gone.
        loop.add_reader(pipe, end, PipeClosed())
    try:
        futures: set[asyncio.Future[Any]] = {task, stop}
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_PATIENCE)
            raise stop.result()
        return task.result()
    finally:
        if pipe is not None:
            loop.remove_reader(pipe)


def _output_pipe() -> int | None:
    """The descriptor of standard output when it is a pipe whose end of life can be watched."""
    if sys.platform != "linux":
        return None
    try:
        number = sys.stdout.fileno()
        return number if stat.S_ISFIFO(os.fstat(number).st_mode) else None
    except (OSError, ValueError, AttributeError):
        return None


def _close(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()

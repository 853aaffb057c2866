"""Server streams that are opened again after the connection was lost."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar, cast

import grpc

from conveyor.sdk.cancellation import cancellable
from conveyor.sdk.connection import Backoff, Connection
from conveyor.sdk.errors import ApiError, ConnectionGivenUp, Unavailable
from conveyor.sdk.status import api_error, is_transient

AnswerT = TypeVar("AnswerT")

_log = logging.getLogger(__name__)


class Patience:
    """Waits between attempts to reach a server, and when they end. Not for use by several tasks."""

    def __init__(self, give_up_after: float | None) -> None:
        """`give_up_after`: seconds without an answer; None: never."""
        self._give_up_after = give_up_after
        self._backoff = Backoff()
        self._heard = time.monotonic()
        self._told = False

    def heard(self) -> None:
        """The server answered."""
        self._backoff.reset()
        self._heard = time.monotonic()
        self._told = False

    async def wait(self, failure: ApiError) -> None:
        """Wait before the next attempt. Raises `failure` when no other attempt can help, or ConnectionGivenUp."""
        if not is_transient(failure):
            raise failure
        wait = self._backoff.next()
        limit = self._give_up_after
        if limit is not None and time.monotonic() + wait - self._heard > limit:
            raise ConnectionGivenUp(f"given up after {limit:g} s: {failure.message}") from failure
        if not self._told:
            _log.warning("%s; trying again", failure.message)
            self._told = True
        await asyncio.sleep(wait)


async def resumed(
    connection: Connection,
    start: Callable[[], grpc.aio.UnaryStreamCall[Any, AnswerT]],
    *,
    give_up_after: float | None,
    silence: float | None = None,
) -> AsyncGenerator[AnswerT, None]:
    """What a stream sends, until it ends with OK.

    `start` opens the stream behind the last message that was seen. It is called again, with growing waits, when the
    connection breaks, and when nothing came for `silence` seconds. ConnectionGivenUp when that has not helped for
    `give_up_after` seconds (None: never give up); ApiError when the server refuses.
    """
    patience = Patience(give_up_after)
    while True:
        address = connection.address
        call = start()
        failure: ApiError = Unavailable()
        try:
            while True:
                async with asyncio.timeout(silence):
                    with cancellable():
                        answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                patience.heard()
                yield cast(AnswerT, answer)
        except grpc.aio.AioRpcError as error:
            failure = api_error(error, address)
        except TimeoutError:
            failure = Unavailable(f"the server at {address} has been silent for {silence:g} s")
        finally:
            call.cancel()
        if is_transient(failure):
            connection.failed(address)
        await patience.wait(failure)

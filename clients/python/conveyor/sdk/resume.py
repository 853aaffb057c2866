"""Server streams that are opened again after the connection was lost."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar, cast

import grpc

from conveyor.sdk.connection import Backoff, Connection
from conveyor.sdk.errors import ApiError, ConnectionGivenUp, Unavailable
from conveyor.sdk.status import api_error, is_transient

AnswerT = TypeVar("AnswerT")

_log = logging.getLogger(__name__)


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
    backoff = Backoff()
    heard = time.monotonic()
    warned = False
    while True:
        address = connection.address
        call = start()
        failure: ApiError = Unavailable()
        try:
            while True:
                async with asyncio.timeout(silence):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                backoff.reset()
                heard = time.monotonic()
                warned = False
                yield cast(AnswerT, answer)
        except grpc.aio.AioRpcError as error:
            failure = api_error(error, address)
        except TimeoutError:
            failure = Unavailable(f"the server at {address} has been silent for {silence:g} s")
        finally:
            call.cancel()
        if not is_transient(failure):
            raise failure
        connection.failed(address)
        wait = backoff.next()
        _check_patience(failure, time.monotonic() + wait - heard, give_up_after)
        if not warned:
            _log.warning("%s; trying again", failure.message)
            warned = True
        await asyncio.sleep(wait)


def _check_patience(failure: ApiError, silent_for: float, give_up_after: float | None) -> None:
    if give_up_after is not None and silent_for > give_up_after:
        raise ConnectionGivenUp(f"given up after {give_up_after:g} s: {failure.message}") from failure

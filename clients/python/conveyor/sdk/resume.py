"""Server streams that are opened again after the connection was lost."""

import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

import grpc

from conveyor.sdk import calls
from conveyor.sdk.backoff import Backoff
from conveyor.sdk.connection import Connection
from conveyor.sdk.errors import ApiError, ConnectionGivenUp, DeadlineExceeded, Unavailable
from conveyor.sdk.status import api_error, is_transient

AnswerT = TypeVar("AnswerT")

_log = logging.getLogger("conveyor.sdk.resume")

# Seconds, some thirty years: gRPC counts in nanoseconds.
_LONGEST = 1e9


class Patience:
    """Waits between attempts to reach a server, and when they end. Not for use by several tasks."""

    def __init__(self, give_up_after: float | None, deadline: float | None = None) -> None:
        """`give_up_after`: seconds without an answer; `deadline`: monotonic seconds; None: never."""
        self._give_up_after = give_up_after
        self._deadline = deadline
        self._backoff = Backoff()
        self._heard = time.monotonic()
        self._told = False

    @property
    def left(self) -> float | None:
        """Seconds until the deadline, as gRPC takes them. None: without end."""
        return None if self._deadline is None else min(self._deadline - time.monotonic(), _LONGEST)

    def heard(self) -> None:
        """The server answered."""
        self._backoff.reset()
        self._heard = time.monotonic()
        self._told = False

    async def wait(self, failure: ApiError) -> None:
        """Wait before the next attempt.

        Raises `failure` when no other attempt can help, ConnectionGivenUp, and DeadlineExceeded at the deadline.
        """
        if not is_transient(failure):
            raise failure
        wait = self._backoff.next()
        limit = self._give_up_after
        if limit is not None and time.monotonic() + wait - self._heard > limit:
            raise ConnectionGivenUp(f"given up after {limit:g} s: {failure.message}") from failure
        if not self._told:
            _log.warning("%s; trying again", failure.message)
            self._told = True
        left = self.left
        if left is not None and wait >= left:
            await calls.sleep(max(0.0, left))
            raise DeadlineExceeded
        await calls.sleep(wait)


async def resumed(
    connection: Connection,
    start: Callable[[float | None], calls.Messages[AnswerT]],
    *,
    give_up_after: float | None,
    silence: float | None = None,
    deadline: float | None = None,
) -> AsyncGenerator[AnswerT, None]:
    """What a stream sends, until it ends with OK.

    `start` opens the stream behind the last message that was seen, for so many seconds (None: without end). It is
    called again, with growing waits, when the connection breaks, and when nothing came for `silence` seconds.
    ConnectionGivenUp when that has not helped for `give_up_after` seconds (None: never give up); DeadlineExceeded at
    the `deadline` (monotonic seconds; None: none); ApiError when the server refuses.
    """
    patience = Patience(give_up_after, deadline)
    while True:
        address = connection.address
        stream = calls.Stream(lambda: start(patience.left), silence)
        failure: ApiError = Unavailable()
        try:
            while (answer := await stream.read()) is not None:
                patience.heard()
                yield answer
            return
        except grpc.aio.AioRpcError as error:
            failure = api_error(error, address)
        except TimeoutError:
            failure = Unavailable(f"the server at {address} has been silent for {silence:g} s")
        finally:
            stream.cancel()
        if is_transient(failure):
            connection.failed(address)
        await patience.wait(failure)

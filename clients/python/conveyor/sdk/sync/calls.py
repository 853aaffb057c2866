"""Single calls by the stubs of grpc: all that the synchronous client does otherwise than the asyncio one."""

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import grpc

from conveyor.sdk import forked
from conveyor.sdk.errors import ClientClosed

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")
TakenT = TypeVar("TakenT", contravariant=True)
GivenT = TypeVar("GivenT", covariant=True)

sleep = time.sleep


class Method(Protocol[TakenT, GivenT]):
    """What takes a request and answers it."""

    def __call__(self, request: TakenT, timeout: float | None = None) -> GivenT: ...


class Messages(Protocol[GivenT]):
    """A server stream that is open."""

    def __next__(self) -> GivenT: ...

    def cancel(self) -> bool: ...


def unary(method: Method[RequestT, AnswerT], request: RequestT, timeout: float) -> AnswerT:
    """The answer to a request. Raises grpc.RpcError."""
    try:
        return method(request, timeout=timeout)
    except ValueError:
        # So gRPC says it when another thread has just closed the channel.
        raise ClientClosed from None


class Stream(Generic[AnswerT]):
    """What a server stream sends."""

    def __init__(self, start: Callable[[], Messages[AnswerT]], silence: float | None) -> None:
        try:
            self._call = start()
        except ValueError:
            raise ClientClosed from None
        self._over = threading.Event()
        self._reading_since: float | None = None
        self._silent = False
        if silence is not None:
            threading.Thread(target=self._guard, args=(silence,), name="conveyor-silence", daemon=True).start()

    def read(self) -> AnswerT | None:
        """The next message, or None when the stream has ended with OK.

        Raises grpc.RpcError, TimeoutError when nothing came for `silence` seconds, and ForkedProcess.
        """
        forked.check()
        self._reading_since = time.monotonic()
        try:
            return next(self._call)
        except StopIteration:
            return None
        except grpc.RpcError:
            if self._silent:
                raise TimeoutError from None
            raise
        finally:
            self._reading_since = None

    def cancel(self) -> None:
        """End it, if it has not ended."""
        if not forked.in_child():
            self._over.set()
            self._call.cancel()

    def _guard(self, silence: float) -> None:
        """End a read that lasts too long: gRPC's own has no limit."""
        left = silence
        while not self._over.wait(left):
            since = self._reading_since
            left = silence if since is None else since + silence - time.monotonic()
            if left <= 0:
                self._silent = True
                self._call.cancel()
                return

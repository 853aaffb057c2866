"""Cancellations that no library swallows."""

import asyncio
from types import TracebackType


class cancellable:  # noqa: N801 (it reads as a function, like those of contextlib)
    """Ends with CancelledError when the task was cancelled within, whatever came of what was awaited.

    When a call of gRPC ends just as it is cancelled, grpc.aio raises its status, or says that the stream has ended; and
    before Python 3.12 `asyncio.wait_for`, on which nats-py stands, returns. Who takes that for a failure and tries
    again goes on for ever. Earlier cancellations do not count: what cleans up after one may call as ever.
    """

    __slots__ = ("_before", "_task")

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._before = self._task.cancelling() if self._task is not None else 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None or isinstance(error, asyncio.CancelledError):
            return
        if self._task.cancelling() > self._before:
            raise asyncio.CancelledError

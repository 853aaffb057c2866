"""The log lines of runs."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from conveyor.sdk import calls
from conveyor.sdk.connection import Connection
from conveyor.sdk.resume import resumed
from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.log_service_pb2 import ReadLogsRequest, ReadLogsResponse
from conveyor.v1.log_service_pb2_grpc import LogServiceStub


class Logs:
    """The log lines of the runs of a namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    async def read(
        self,
        run: str,
        step: str = "",
        attempt: int = 0,
        follow: bool = False,
        cursor: str = "",
        tail: int = 0,
        *,
        give_up_after: float | None = None,
    ) -> AsyncGenerator[LogLine, None]:
        """The lines of a run in the order in which they were stored, or only those of a step or of its attempt.

        With `follow` new lines come until the run has ended. `cursor` is that of the last line that was seen; `tail`
        asks for only the last so many lines of what is there. Goes on by itself after the connection was lost, without
        loss and without repetition; ConnectionGivenUp when no server could be reached for `give_up_after` seconds
        (None: never give up).
        """
        request = ReadLogsRequest(
            namespace=self._namespace,
            run=run,
            step=step,
            attempt=attempt,
            follow=follow,
            cursor=cursor,
            tail=tail,
        )

        def start(timeout: float | None) -> calls.Messages[ReadLogsResponse]:
            return self._connection.stub(LogServiceStub).ReadLogs(request, timeout=timeout)

        answers = resumed(self._connection, start, give_up_after=give_up_after)
        async with aclosing(answers):
            async for answer in answers:
                for line in answer.lines:
                    yield line
                    if line.cursor:
                        request.cursor = line.cursor
                        request.tail = 0

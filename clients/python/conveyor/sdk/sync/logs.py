# Derived from conveyor/sdk/logs.py by `make gen`; change that.
"""The log lines of runs."""

from collections.abc import Generator
from contextlib import closing

from conveyor.sdk.sync import calls
from conveyor.sdk.sync.connection import Connection
from conveyor.sdk.sync.resume import resumed
from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.log_service_pb2 import ReadLogsRequest, ReadLogsResponse
from conveyor.v1.log_service_pb2_grpc import LogServiceStub


class Logs:
    """The log lines of the runs of a namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    def read(
        self,
        run: str,
        step: str = "",
        attempt: int = 0,
        follow: bool = False,
        cursor: str = "",
        tail: int = 0,
        *,
        give_up_after: float | None = None,
    ) -> Generator[LogLine, None, None]:
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
        with closing(answers):
            for answer in answers:
                for line in answer.lines:
                    yield line
                    if line.cursor:
                        request.cursor = line.cursor
                        request.tail = 0

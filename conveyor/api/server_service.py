"""ServerService."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from conveyor.core import limits
from conveyor.v1 import server_pb2, server_service_pb2_grpc, worker_pb2
from conveyor.v1 import server_service_pb2 as pb

LIMITS = worker_pb2.Limits(
    message_bytes=limits.MESSAGE_BYTES,
    result_data_bytes=limits.RESULT_DATA_BYTES,
    result_message_bytes=limits.RESULT_MESSAGE_BYTES,
    log_line_bytes=limits.LOG_LINE_BYTES,
    nesting=limits.STRUCT_NESTING,
)
"""What the server accepts, for workers and clients."""


class ServerServicer(server_service_pb2_grpc.ServerServiceServicer):
    """Shows the server itself. `info` fills all but the limits and the time."""

    def __init__(self, info: Callable[[], server_pb2.ServerInfo]) -> None:
        self._info = info

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        response = pb.GetServerInfoResponse(server_info=self._info())
        response.server_info.limits.CopyFrom(LIMITS)
        response.server_info.time.FromNanoseconds(time.time_ns())
        return response

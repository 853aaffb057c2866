"""ServerService."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from conveyor.gateway.stream import server_limits
from conveyor.v1 import server_pb2, server_service_pb2_grpc
from conveyor.v1 import server_service_pb2 as pb


class ServerServicer(server_service_pb2_grpc.ServerServiceServicer):
    """Shows the server itself. `info` fills all but the limits and the time."""

    def __init__(self, info: Callable[[], server_pb2.ServerInfo]) -> None:
        self._info = info

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        response = pb.GetServerInfoResponse(server_info=self._info())
        response.server_info.limits.CopyFrom(server_limits())
        response.server_info.time.FromNanoseconds(time.time_ns())
        return response

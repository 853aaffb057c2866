"""Watches by the bare protocol."""

from __future__ import annotations

import grpc

from conveyor.v1.run_service_pb2 import WatchRunsRequest, WatchRunsResponse
from conveyor.v1.run_service_pb2_grpc import RunServiceStub


async def until_snapshot(address: str, namespace: str, cursor: str = "") -> list[WatchRunsResponse]:
    """What a watch of all runs says until its snapshot is complete."""
    said: list[WatchRunsResponse] = []
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        watch = RunServiceStub(channel).WatchRuns(WatchRunsRequest(namespace=namespace, cursor=cursor))
        while not said or not said[-1].HasField("snapshot_end"):
            response = await watch.read()
            assert isinstance(response, WatchRunsResponse)
            said.append(response)
        watch.cancel()
    return said


async def until_cursor(address: str, namespace: str) -> str:
    """The first position that a watch of all runs tells; there is none while its snapshot is newer than the feed."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        watch = RunServiceStub(channel).WatchRuns(WatchRunsRequest(namespace=namespace))
        while not (response := await watch.read()).cursor:
            assert isinstance(response, WatchRunsResponse)
        watch.cancel()
    return response.cursor

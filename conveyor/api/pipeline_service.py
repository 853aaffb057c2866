"""PipelineService."""

from __future__ import annotations

from typing import Any

from conveyor.api.object_calls import ObjectCalls, show
from conveyor.state import keys
from conveyor.state.kinds import PIPELINE
from conveyor.state.objects import Mode
from conveyor.state.repositories import Repositories
from conveyor.v1 import pipeline_service_pb2 as pb
from conveyor.v1 import pipeline_service_pb2_grpc


class PipelineServicer(pipeline_service_pb2_grpc.PipelineServiceServicer):
    """Keeps pipelines. Each method does what the comment of its rpc says."""

    def __init__(self, repositories: Repositories) -> None:
        self._calls = ObjectCalls(repositories, PIPELINE, "pipeline")

    async def CreatePipeline(self, request: pb.CreatePipelineRequest, context: Any) -> pb.CreatePipelineResponse:
        written = await self._calls.write(request, Mode.CREATE)
        response = pb.CreatePipelineResponse()
        show(response.pipeline, written.item)
        return response

    async def GetPipeline(self, request: pb.GetPipelineRequest, context: Any) -> pb.GetPipelineResponse:
        response = pb.GetPipelineResponse()
        show(response.pipeline, await self._calls.get(request))
        return response

    async def ListPipelines(self, request: pb.ListPipelinesRequest, context: Any) -> pb.ListPipelinesResponse:
        items, token = await self._calls.list(request, keys.pipelines, request.labels)
        response = pb.ListPipelinesResponse(next_page_token=token)
        for item in items:
            show(response.pipelines.add(), item)
        return response

    async def UpdatePipeline(self, request: pb.UpdatePipelineRequest, context: Any) -> pb.UpdatePipelineResponse:
        written = await self._calls.write(request, Mode.UPDATE)
        response = pb.UpdatePipelineResponse()
        show(response.pipeline, written.item)
        return response

    async def ApplyPipeline(self, request: pb.ApplyPipelineRequest, context: Any) -> pb.ApplyPipelineResponse:
        written = await self._calls.write(request, Mode.APPLY)
        response = pb.ApplyPipelineResponse(outcome=written.outcome)
        show(response.pipeline, written.item)
        return response

    async def DeletePipeline(self, request: pb.DeletePipelineRequest, context: Any) -> pb.DeletePipelineResponse:
        response = pb.DeletePipelineResponse()
        show(response.pipeline, await self._calls.delete(request))
        return response

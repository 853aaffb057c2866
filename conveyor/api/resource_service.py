"""ResourceService."""

from __future__ import annotations

from typing import Any

from conveyor.api.object_calls import ObjectCalls, show
from conveyor.api.validation import DEFAULT_NAMESPACE
from conveyor.state import keys
from conveyor.state.kinds import RESOURCE
from conveyor.state.objects import Mode
from conveyor.state.repositories import Repositories
from conveyor.v1 import resource_service_pb2 as pb
from conveyor.v1 import resource_service_pb2_grpc


class ResourceServicer(resource_service_pb2_grpc.ResourceServiceServicer):
    """Keeps resources. Each method does what the comment of its rpc says."""

    def __init__(self, repositories: Repositories) -> None:
        self._calls = ObjectCalls(repositories, RESOURCE, "resource")
        self._objects = repositories.objects

    async def CreateResource(self, request: pb.CreateResourceRequest, context: Any) -> pb.CreateResourceResponse:
        written = await self._calls.write(request, Mode.CREATE)
        response = pb.CreateResourceResponse(run=written.run)
        show(response.resource, written.item)
        return response

    async def GetResource(self, request: pb.GetResourceRequest, context: Any) -> pb.GetResourceResponse:
        response = pb.GetResourceResponse()
        show(response.resource, await self._calls.get(request))
        return response

    async def ListResources(self, request: pb.ListResourcesRequest, context: Any) -> pb.ListResourcesResponse:
        items, token = await self._calls.list(
            request, lambda namespace: keys.resources(namespace, request.definition), request.labels
        )
        response = pb.ListResourcesResponse(next_page_token=token)
        for item in items:
            show(response.resources.add(), item)
        return response

    async def ListResourceGenerations(
        self, request: pb.ListResourceGenerationsRequest, context: Any
    ) -> pb.ListResourceGenerationsResponse:
        key = keys.resource(request.namespace or DEFAULT_NAMESPACE, request.definition, request.name)
        items, token = await self._calls.list(request, lambda _: keys.history(key), None)
        if not items and not request.page_token:
            await self._objects.get(RESOURCE, key)  # raises NotFound: whatever exists has a generation
        response = pb.ListResourceGenerationsResponse(next_page_token=token)
        for item in items:
            show(response.resources.add(), item)
        return response

    async def UpdateResource(self, request: pb.UpdateResourceRequest, context: Any) -> pb.UpdateResourceResponse:
        written = await self._calls.write(request, Mode.UPDATE)
        response = pb.UpdateResourceResponse(run=written.run)
        show(response.resource, written.item)
        return response

    async def ApplyResource(self, request: pb.ApplyResourceRequest, context: Any) -> pb.ApplyResourceResponse:
        written = await self._calls.write(request, Mode.APPLY)
        response = pb.ApplyResourceResponse(run=written.run, outcome=written.outcome)
        show(response.resource, written.item)
        return response

    async def DeleteResource(self, request: pb.DeleteResourceRequest, context: Any) -> pb.DeleteResourceResponse:
        response = pb.DeleteResourceResponse()
        show(response.resource, await self._calls.delete(request))
        return response

"""ResourceDefinitionService."""

from __future__ import annotations

from typing import Any

from conveyor.api.object_calls import ObjectCalls, show
from conveyor.state import keys
from conveyor.state.kinds import DEFINITION
from conveyor.state.objects import Mode
from conveyor.state.repositories import Repositories
from conveyor.v1 import resource_definition_service_pb2 as pb
from conveyor.v1 import resource_definition_service_pb2_grpc


class DefinitionServicer(resource_definition_service_pb2_grpc.ResourceDefinitionServiceServicer):
    """Keeps resource definitions. Each method does what the comment of its rpc says."""

    def __init__(self, repositories: Repositories) -> None:
        self._calls = ObjectCalls(repositories, DEFINITION, "resource_definition")

    async def CreateResourceDefinition(
        self, request: pb.CreateResourceDefinitionRequest, context: Any
    ) -> pb.CreateResourceDefinitionResponse:
        written = await self._calls.write(request, Mode.CREATE)
        response = pb.CreateResourceDefinitionResponse()
        show(response.resource_definition, written.item)
        return response

    async def GetResourceDefinition(
        self, request: pb.GetResourceDefinitionRequest, context: Any
    ) -> pb.GetResourceDefinitionResponse:
        response = pb.GetResourceDefinitionResponse()
        show(response.resource_definition, await self._calls.get(request))
        return response

    async def ListResourceDefinitions(
        self, request: pb.ListResourceDefinitionsRequest, context: Any
    ) -> pb.ListResourceDefinitionsResponse:
        items, token = await self._calls.list(request, keys.definitions, request.labels)
        response = pb.ListResourceDefinitionsResponse(next_page_token=token)
        for item in items:
            show(response.resource_definitions.add(), item)
        return response

    async def UpdateResourceDefinition(
        self, request: pb.UpdateResourceDefinitionRequest, context: Any
    ) -> pb.UpdateResourceDefinitionResponse:
        written = await self._calls.write(request, Mode.UPDATE)
        response = pb.UpdateResourceDefinitionResponse()
        show(response.resource_definition, written.item)
        return response

    async def ApplyResourceDefinition(
        self, request: pb.ApplyResourceDefinitionRequest, context: Any
    ) -> pb.ApplyResourceDefinitionResponse:
        written = await self._calls.write(request, Mode.APPLY)
        response = pb.ApplyResourceDefinitionResponse(outcome=written.outcome)
        show(response.resource_definition, written.item)
        return response

    async def DeleteResourceDefinition(
        self, request: pb.DeleteResourceDefinitionRequest, context: Any
    ) -> pb.DeleteResourceDefinitionResponse:
        response = pb.DeleteResourceDefinitionResponse()
        show(response.resource_definition, await self._calls.delete(request))
        return response

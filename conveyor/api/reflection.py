"""Server reflection, v1 and v1alpha. grpcio-reflection has only the older one; on the wire both are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from conveyor.reflection.v1 import reflection_pb2 as v1

V1 = v1.DESCRIPTOR.services_by_name["ServerReflection"].full_name
V1ALPHA: str = reflection.SERVICE_NAME


def add_reflection(server: Any, services: Sequence[str]) -> None:
    """Serve both versions, which show `services` and themselves."""
    servicer = reflection.aio.ReflectionServicer([*services, V1, V1ALPHA])
    # The messages of v1 differ from these in the name of their package only.
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in (V1, V1ALPHA)]
    )

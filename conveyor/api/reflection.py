"""Server reflection, v1 and v1alpha. grpcio-reflection has only the older one; on the wire both are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

from conveyor.reflection.v1 import reflection_pb2 as v1

V1 = v1.DESCRIPTOR.services_by_name["ServerReflection"].full_name
V1ALPHA: str = reflection.SERVICE_NAME


def add_reflection(server: Any, services: Sequence[str]) -> None:
    """Serve both versions, which show `services` and themselves."""
    servicer = reflection.aio.ReflectionServicer([*services, V1, V1ALPHA], _Pool())
    # The messages of v1 differ from these in the name of their package only.
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in (V1, V1ALPHA)]
    )


class _Pool:
    """The default pool, which also finds methods by their names, as the protocol wants it."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        """The file that declares the symbol. Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            name, _, method = symbol.rpartition(".")
            service = self._pool.FindServiceByName(name)
            if method not in service.methods_by_name:
                raise
            return service.file

"""Which calls there are, from the descriptors of the services."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from conveyor.api.services import SERVICES

_READS = ("Get", "List", "Read", "Watch")
_CONVERSATIONS = {"/conveyor.v1.WorkerService/Work"}


@dataclass(frozen=True, slots=True)
class Method:
    """A call of the API. `reads`: it changes nothing. `converses`: both sides speak as long as it lasts."""

    path: str
    request: type[Message]
    client_streams: bool
    server_streams: bool
    reads: bool
    converses: bool


def methods() -> list[Method]:
    """All calls of the API."""
    pool = descriptor_pool.Default()
    return [_method(each) for name in SERVICES for each in pool.FindServiceByName(name).methods]


def _method(found: MethodDescriptor) -> Method:
    path = f"/{found.containing_service.full_name}/{found.name}"
    return Method(
        path,
        message_factory.GetMessageClass(found.input_type),
        found.client_streaming,
        found.server_streaming,
        found.name.startswith(_READS),
        path in _CONVERSATIONS,
    )

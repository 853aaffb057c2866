"""The kinds of objects that users write, and how each is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from conveyor.state import keys
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, resource_definition_pb2, resource_pb2, schedule_pb2

M = TypeVar(
    "M",
    pipeline_pb2.Pipeline,
    resource_pb2.Resource,
    resource_definition_pb2.ResourceDefinition,
    schedule_pb2.Schedule,
)


@dataclass(frozen=True)
class Kind(Generic[M]):
    """One kind: its name for people, where its objects are stored, and how."""

    noun: str
    new: Callable[[], M]
    key: Callable[[M], str]
    encode: Callable[[M], bytes]
    decode: Callable[[bytes], M]

    def written(self, item: M) -> M:
        """A copy without what the server sets."""
        copy = self.new()
        copy.CopyFrom(item)
        copy.ClearField("uid")
        copy.ClearField("generation")
        copy.ClearField("etag")
        copy.ClearField("create_time")
        copy.ClearField("update_time")
        if isinstance(copy, schedule_pb2.Schedule):
            copy.ClearField("status")
        copy.DiscardUnknownFields()
        return copy


DEFINITION = Kind[resource_definition_pb2.ResourceDefinition](
    noun="resource definition",
    new=resource_definition_pb2.ResourceDefinition,
    key=lambda item: keys.definition(item.namespace, item.name),
    encode=lambda item: storage_pb2.StoredResourceDefinition(object=item).SerializeToString(),
    decode=lambda value: storage_pb2.StoredResourceDefinition.FromString(value).object,
)
PIPELINE = Kind[pipeline_pb2.Pipeline](
    noun="pipeline",
    new=pipeline_pb2.Pipeline,
    key=lambda item: keys.pipeline(item.namespace, item.name),
    encode=lambda item: storage_pb2.StoredPipeline(object=item).SerializeToString(),
    decode=lambda value: storage_pb2.StoredPipeline.FromString(value).object,
)
RESOURCE = Kind[resource_pb2.Resource](
    noun="resource",
    new=resource_pb2.Resource,
    key=lambda item: keys.resource(item.namespace, item.definition, item.name),
    encode=lambda item: storage_pb2.StoredResource(object=item).SerializeToString(),
    decode=lambda value: storage_pb2.StoredResource.FromString(value).object,
)
SCHEDULE = Kind[schedule_pb2.Schedule](
    noun="schedule",
    new=schedule_pb2.Schedule,
    key=lambda item: keys.schedule(item.namespace, item.name),
    encode=lambda item: storage_pb2.StoredSchedule(object=item).SerializeToString(),
    decode=lambda value: storage_pb2.StoredSchedule.FromString(value).object,
)

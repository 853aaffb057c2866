# Derived from conveyor/sdk/objects.py by `make gen`; change that.
"""Definitions, pipelines, resources and schedules: what users create, change and delete."""

from collections.abc import Generator, Mapping
from types import ModuleType
from typing import Any, ClassVar, Generic

from google.protobuf.message import Message

from conveyor.sdk.answers import Applied, AppliedResource, ObjectT, Submitted
from conveyor.sdk.errors import Aborted
from conveyor.sdk.requests import new_request_id
from conveyor.sdk.sync.connection import Connection
from conveyor.v1 import (
    pipeline_service_pb2,
    pipeline_service_pb2_grpc,
    resource_definition_service_pb2,
    resource_definition_service_pb2_grpc,
    resource_service_pb2,
    resource_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run
from conveyor.v1.schedule_pb2 import Schedule


class _Objects(Generic[ObjectT]):
    """What the kinds have in common; the generated names follow one pattern, so that one code serves them."""

    _kind: ClassVar[str]
    _field: ClassVar[str]
    _messages: ClassVar[ModuleType]
    _stub: ClassVar[type[Any]]

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    def _call(self, verb: str, what: str = "", **fields: Any) -> Any:
        name = f"{verb}{self._kind}{what}"
        request: Message = getattr(self._messages, f"{name}Request")(namespace=self._namespace, **fields)
        return self._connection.call(lambda: getattr(self._connection.stub(self._stub), name), request)

    def _write(self, verb: str, obj: ObjectT, request_id: str, validate_only: bool) -> Any:
        own: dict[str, Any] = {self._field: obj}
        return self._call(verb, request_id=request_id or new_request_id(), validate_only=validate_only, **own)

    def _pages(self, what: str, **fields: Any) -> Generator[ObjectT, None, None]:
        token = ""
        while True:
            answer = self._call("List", what, page_token=token, **fields)
            yield from getattr(answer, f"{self._field}s")
            token = answer.next_page_token
            if not token:
                return


class _NamedObjects(_Objects[ObjectT]):
    def create(self, obj: ObjectT, *, request_id: str = "", validate_only: bool = False) -> ObjectT:
        """Create it. AlreadyExists when there is one of that name.

        `request_id` defaults to a new UUID; give the same one again to repeat a call whose answer was lost.
        `validate_only` checks everything and stores nothing.
        """
        created: ObjectT = getattr(self._write("Create", obj, request_id, validate_only), self._field)
        return created

    def get(self, name: str, generation: int = 0) -> ObjectT:
        """The current one, or an earlier generation of it. NotFound when there is none."""
        got: ObjectT = getattr(self._call("Get", name=name, generation=generation), self._field)
        return got

    def list(self, *, labels: Mapping[str, str] | None = None, page_size: int = 0) -> Generator[ObjectT, None, None]:
        """All of them that have all of the labels, page after page, in the order of their names."""
        return self._pages("s", labels=dict(labels or {}), page_size=page_size)

    def update(self, obj: ObjectT, *, request_id: str = "", validate_only: bool = False) -> ObjectT:
        """Replace it. NotFound when there is none; Aborted when `obj.etag` is set and not the current one."""
        updated: ObjectT = getattr(self._write("Update", obj, request_id, validate_only), self._field)
        return updated

    def apply(self, obj: ObjectT, *, request_id: str = "", validate_only: bool = False) -> Applied[ObjectT]:
        """Create it, or replace it when it differs."""
        answer = self._write("Apply", obj, request_id, validate_only)
        return Applied(getattr(answer, self._field), answer.outcome)

    def delete(self, name: str, etag: str = "", *, validate_only: bool = False) -> ObjectT:
        """Delete it and return it as it was. Aborted when `etag` is given and not the current one."""
        answer = self._call("Delete", name=name, etag=etag, validate_only=validate_only)
        deleted: ObjectT = getattr(answer, self._field)
        return deleted


class Definitions(_NamedObjects[ResourceDefinition]):
    """The ResourceDefinitions of a namespace."""

    _kind = "ResourceDefinition"
    _field = "resource_definition"
    _messages: ClassVar[ModuleType] = resource_definition_service_pb2
    _stub = resource_definition_service_pb2_grpc.ResourceDefinitionServiceStub


class Pipelines(_NamedObjects[Pipeline]):
    """The Pipelines of a namespace."""

    _kind = "Pipeline"
    _field = "pipeline"
    _messages: ClassVar[ModuleType] = pipeline_service_pb2
    _stub = pipeline_service_pb2_grpc.PipelineServiceStub


class Schedules(_NamedObjects[Schedule]):
    """The Schedules of a namespace."""

    _kind = "Schedule"
    _field = "schedule"
    _messages: ClassVar[ModuleType] = schedule_service_pb2
    _stub = schedule_service_pb2_grpc.ScheduleServiceStub

    def pause(self, name: str) -> Schedule:
        """Have it start nothing until it is resumed. NotFound when there is none."""
        return self._set_paused(name, True)

    def resume(self, name: str) -> Schedule:
        """Have it start runs again, from now on. NotFound when there is none."""
        return self._set_paused(name, False)

    def _set_paused(self, name: str, paused: bool) -> Schedule:
        tries = 5
        while True:
            schedule = self.get(name)
            if schedule.paused == paused:
                return schedule
            schedule.paused = paused
            try:
                return self.update(schedule)
            except Aborted:
                # Somebody has changed something else of it in between.
                tries -= 1
                if not tries:
                    raise

    def trigger(self, name: str, *, request_id: str = "") -> Run:
        """Start a run at once, also while it is paused.

        NotFound when there is none; FailedPrecondition when a run of it has not ended and it says not to start another.
        `request_id` defaults to a new UUID; give the same one again to repeat a call whose answer was lost.
        """
        run: Run = self._call("Trigger", name=name, request_id=request_id or new_request_id()).run
        return run


class Resources(_Objects[Resource]):
    """The Resources of a namespace."""

    _kind = "Resource"
    _field = "resource"
    _messages: ClassVar[ModuleType] = resource_service_pb2
    _stub = resource_service_pb2_grpc.ResourceServiceStub

    def create(self, obj: Resource, *, request_id: str = "", validate_only: bool = False) -> Submitted:
        """Create it, which starts a run unless its `on_change` is false.

        AlreadyExists when there is one of that definition and name.

        `request_id` defaults to a new UUID; give the same one again to repeat a call whose answer was lost.
        `validate_only` checks everything and stores nothing.
        """
        return _submitted(self._write("Create", obj, request_id, validate_only))

    def get(self, definition: str, name: str, generation: int = 0) -> Resource:
        """The current one, or an earlier generation of it. NotFound when there is none."""
        answer = self._call("Get", definition=definition, name=name, generation=generation)
        got: Resource = answer.resource
        return got

    def list(
        self, definition: str = "", *, labels: Mapping[str, str] | None = None, page_size: int = 0
    ) -> Generator[Resource, None, None]:
        """All of a definition, or all there are, that have all of the labels, page after page."""
        return self._pages("s", definition=definition, labels=dict(labels or {}), page_size=page_size)

    def generations(self, definition: str, name: str, *, page_size: int = 0) -> Generator[Resource, None, None]:
        """The generations of one that are kept, newest first."""
        return self._pages("Generations", definition=definition, name=name, page_size=page_size)

    def update(self, obj: Resource, *, request_id: str = "", validate_only: bool = False) -> Submitted:
        """Replace it, which starts a run unless its `on_change` is false.

        NotFound when there is none; Aborted when `obj.etag` is set and not the current one.
        """
        return _submitted(self._write("Update", obj, request_id, validate_only))

    def apply(self, obj: Resource, *, request_id: str = "", validate_only: bool = False) -> AppliedResource:
        """Create it, or replace it when it differs; either starts a run unless its `on_change` is false."""
        answer = self._write("Apply", obj, request_id, validate_only)
        return AppliedResource(answer.resource, answer.outcome, _run(answer))

    def delete(self, definition: str, name: str, etag: str = "", *, validate_only: bool = False) -> Resource:
        """Delete it and return it as it was. Aborted when `etag` is given and not the current one."""
        answer = self._call("Delete", definition=definition, name=name, etag=etag, validate_only=validate_only)
        deleted: Resource = answer.resource
        return deleted


def _submitted(answer: Any) -> Submitted:
    return Submitted(answer.resource, _run(answer))


def _run(answer: Any) -> Run | None:
    return answer.run if answer.HasField("run") else None

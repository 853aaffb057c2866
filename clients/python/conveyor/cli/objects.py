"""Reads, lists, applies and deletes objects of any kind."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import NamedTuple, Self

from google.protobuf.message import Message

from conveyor.cli.kinds import DEFINITION, PIPELINE, RESOURCE, RUN, SCHEDULE, Kind
from conveyor.cli.manifest import Object
from conveyor.cli.options import Settings
from conveyor.cli.refs import Ref
from conveyor.cli.session import new_client
from conveyor.sdk import Client
from conveyor.v1.apply_pb2 import ApplyOutcome
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run
from conveyor.v1.schedule_pb2 import Schedule

_PAGE = 1000


class Sent(NamedTuple):
    """What an apply did."""

    object: Object
    """The object as it is now, or would be."""
    outcome: ApplyOutcome.ValueType
    run: Run | None = None
    """The run that it started."""


class Clients:
    """A client for each namespace that files name. All are closed together."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._settings = settings
        self._clients = {client.namespace: client}
        self._default = client.namespace
        self._stack = AsyncExitStack()

    def full(self, namespace: str) -> str:
        """The namespace that an object lives in, when it says this one or none."""
        return namespace or self._default

    async def of(self, namespace: str) -> Client:
        """The client for it."""
        namespace = self.full(namespace)
        if namespace not in self._clients:
            self._clients[namespace] = await self._stack.enter_async_context(new_client(self._settings, namespace))
        return self._clients[namespace]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


async def fetch(client: Client, which: Ref, generation: int = 0) -> Message:
    """The object. NotFound when there is none."""
    if which.kind is DEFINITION:
        return await client.definitions.get(which.name, generation)
    if which.kind is PIPELINE:
        return await client.pipelines.get(which.name, generation)
    if which.kind is RESOURCE:
        return await client.resources.get(which.definition, which.name, generation)
    if which.kind is SCHEDULE:
        return await client.schedules.get(which.name, generation)
    if which.kind is RUN:
        return await client.runs.get(which.name)
    return await client.drivers.get(which.name)


def labelled(client: Client, kind: Kind, labels: Mapping[str, str]) -> AsyncIterator[Object]:
    """All objects of a kind that files may hold, which have all of the labels."""
    if kind is DEFINITION:
        return client.definitions.list(labels=labels, page_size=_PAGE)
    if kind is PIPELINE:
        return client.pipelines.list(labels=labels, page_size=_PAGE)
    if kind is SCHEDULE:
        return client.schedules.list(labels=labels, page_size=_PAGE)
    return client.resources.list(labels=labels, page_size=_PAGE)


async def send(client: Client, thing: Object, *, validate_only: bool) -> Sent:
    """Create it, or replace it when it differs."""
    if isinstance(thing, ResourceDefinition):
        return Sent(*await client.definitions.apply(thing, validate_only=validate_only))
    if isinstance(thing, Pipeline):
        return Sent(*await client.pipelines.apply(thing, validate_only=validate_only))
    if isinstance(thing, Schedule):
        return Sent(*await client.schedules.apply(thing, validate_only=validate_only))
    return Sent(*await client.resources.apply(thing, validate_only=validate_only))


def starts_no_run(thing: Object) -> bool:
    """Whether it is a resource that says that its changes start no run."""
    return isinstance(thing, Resource) and thing.HasField("on_change") and not thing.on_change


async def remove(client: Client, which: Ref) -> Message:
    """Delete an object and return it as it was."""
    if which.kind is RUN:
        return await client.runs.delete(which.name)
    if which.kind.applied:
        return await remove_unchanged(client, which, "", validate_only=False)
    return await client.drivers.delete(which.name)


async def remove_unchanged(client: Client, which: Ref, etag: str, *, validate_only: bool) -> Object:
    """Delete an object that files may hold, if it is still the one with this etag."""
    if which.kind is DEFINITION:
        return await client.definitions.delete(which.name, etag, validate_only=validate_only)
    if which.kind is PIPELINE:
        return await client.pipelines.delete(which.name, etag, validate_only=validate_only)
    if which.kind is SCHEDULE:
        return await client.schedules.delete(which.name, etag, validate_only=validate_only)
    return await client.resources.delete(which.definition, which.name, etag, validate_only=validate_only)

"""What the services of definitions, pipelines and resources have in common."""

from __future__ import annotations

from typing import Any, Generic

from conveyor.api.paging import open_page
from conveyor.api.validation import validate
from conveyor.state import keys
from conveyor.state.cache import Versioned
from conveyor.state.kinds import RESOURCE, Kind, M
from conveyor.state.objects import Mode, Written
from conveyor.state.repositories import Repositories
from conveyor.state.requests import Slip
from conveyor.state.views import etag


class ObjectCalls(Generic[M]):
    """The calls on one kind of object; `field` is its name in requests."""

    def __init__(self, repositories: Repositories, kind: Kind[M], field: str) -> None:
        self._objects = repositories.objects
        self._repositories = repositories
        self._kind: Kind[M] = kind
        self._field = field

    async def write(self, request: Any, mode: Mode) -> Written[M]:
        """Create, update or apply the object of the request."""
        namespace = await validate(request)
        item = getattr(request, self._field)
        request.namespace = item.namespace = namespace
        slip = await request_slip(self._repositories, namespace, request)
        return await self._objects.write(self._kind, item, mode, slip, validate_only=request.validate_only)

    async def get(self, request: Any) -> Versioned[M]:
        """The object that the request names, in the generation that it asks for."""
        return await self._objects.get(self._kind, await self._key(request), request.generation)

    async def delete(self, request: Any) -> Versioned[M]:
        """Delete the object that the request names."""
        key = await self._key(request)
        return await self._objects.delete(self._kind, key, request.etag, validate_only=request.validate_only)

    async def list(self, request: Any, prefix: Any, labels: Any) -> tuple[list[Versioned[M]], str]:
        """A page below `prefix(namespace)`, and the token of the next one."""
        namespace = await validate(request)
        page = open_page(request, namespace)
        start = prefix(namespace)
        found = await self._objects.page(self._kind, start, start + page.after if page.after else "", page.size, labels)
        return found.items, page.token(found.after.removeprefix(start))

    async def _key(self, request: Any) -> str:
        namespace = await validate(request)
        if self._kind is RESOURCE:
            return keys.resource(namespace, request.definition, request.name)
        item = self._kind.new()
        item.namespace, item.name = namespace, request.name
        return self._kind.key(item)


def show(target: M, item: Versioned[M]) -> None:
    """Fill the object of a response. Without an etag when it is not stored."""
    target.MergeFrom(item.object)
    if item.mod_revision:
        target.etag = etag(item.mod_revision)


async def request_slip(repositories: Repositories, namespace: str, request: Any) -> Slip | None:
    """The slip of a request that has an id and is meant."""
    if not request.request_id or getattr(request, "validate_only", False):
        return None
    method = type(request).DESCRIPTOR.name.removesuffix("Request")
    return await repositories.requests.slip(namespace, method, request.request_id, request)

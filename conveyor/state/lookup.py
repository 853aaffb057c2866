"""The current objects, from memory where a guard makes up for its age."""

from __future__ import annotations

from typing import cast

from google.protobuf.message import Message

from conveyor.core import errors
from conveyor.state import keys
from conveyor.state.cache import Cache, Versioned
from conveyor.state.kinds import DEFINITION, PIPELINE, Kind, M
from conveyor.store.port import Store
from conveyor.v1 import pipeline_pb2, resource_definition_pb2


class Lookup:
    """Reads objects. All methods raise the store's errors."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self._store = store
        self._cache = cache

    async def definition(
        self, namespace: str, name: str, *, fresh: bool = False
    ) -> Versioned[resource_definition_pb2.ResourceDefinition] | None:
        """The definition, from the cache unless `fresh`: a commit that relies on it guards its revision."""
        return await self.read(DEFINITION, keys.definition(namespace, name), fresh=fresh)

    async def pipeline(
        self, namespace: str, name: str, *, fresh: bool = False
    ) -> Versioned[pipeline_pb2.Pipeline] | None:
        """The pipeline, from the cache unless `fresh`: a commit that relies on it guards its revision."""
        return await self.read(PIPELINE, keys.pipeline(namespace, name), fresh=fresh)

    async def read(self, kind: Kind[M], key: str, *, fresh: bool) -> Versioned[M] | None:
        """The object of the key, from the cache unless `fresh`."""
        if not fresh and (known := self._cache.get(key)) is not None:
            return cast(Versioned[M], known)
        kv = await self._store.get(key)
        if kv is None:
            self._cache.drop(key)
            return None
        item = Versioned(kind.decode(kv.value), kv.mod_revision)
        self.remember(key, item, len(kv.value))
        return item

    def remember(self, key: str, item: Versioned[M], size: int) -> None:
        """What is stored under the key now, `size` bytes of it."""
        self._cache.put(key, cast(Versioned[Message], item), size)

    def forget(self, key: str) -> None:
        """Read the key anew the next time."""
        self._cache.drop(key)


def title(kind: Kind[M], key: str) -> str:
    """The object in words, from its key: the kind, and the name after its namespace."""
    return f"{kind.noun} {'/'.join(key.split('/')[5:])}"


def missing(kind: Kind[M], key: str) -> errors.NotFound:
    """The error for an object that is not there."""
    namespace, *name = key.split("/")[4:]
    return errors.NotFound(
        f"there is no {kind.noun} {'/'.join(name)} in namespace {namespace}",
        metadata={"kind": kind.noun, "name": "/".join(name), "namespace": namespace},
    )

"""The drivers of the store as the conformance suite sees them: open, reopen, a place of their own."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from pathlib import Path

from conveyor.store import open_etcd, open_sqlite
from conveyor.store.port import Store
from tests.support.etcd import VERSIONS, Etcd

BACKENDS = ("sqlite", *(f"etcd-{version}" for version in VERSIONS))


class Backend(ABC):
    """Where a store keeps its data, and how to open it. `prefix` is the part that belongs to one test."""

    name: str
    prefix: str
    history_survives = False
    """Whether a watch may go on from before a reopen."""

    @abstractmethod
    async def open(self) -> Store:
        """A store on the same data each time."""


class SqliteBackend(Backend):
    """A data directory."""

    name = "sqlite"
    prefix = "t/"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def open(self) -> Store:
        """Opens the directory; one at a time."""
        return await open_sqlite(self.directory)


class EtcdBackend(Backend):
    """A server that other tests may use too."""

    history_survives = True

    def __init__(self, version: str, server: Etcd) -> None:
        self.name = f"etcd-{version}"
        self.server = server
        self.prefix = f"{secrets.token_hex(4)}/"

    async def open(self) -> Store:
        """Opens another connection."""
        return await open_etcd([self.server.url], compaction_interval=0)

"""What the repositories need of whoever makes runs: the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from google.protobuf.struct_pb2 import Struct

from conveyor.state.callers import Caller
from conveyor.state.fired import Fired
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Guard, Put
from conveyor.v1 import pipeline_pb2, resource_pb2, run_pb2


class HasHead(Protocol):
    """The state of a run."""

    @property
    def head(self) -> storage_pb2.RunHead:
        """The run's head."""
        ...


class PreparedRun(Protocol):
    """A run that is not stored yet; its puts go into the commit of whatever caused it."""

    @property
    def run_id(self) -> str:
        """The new run's id."""
        ...

    @property
    def puts(self) -> Sequence[Put]:
        """Head, snapshot, active and index keys."""
        ...

    @property
    def guards(self) -> Sequence[Guard]:
        """What must hold for the run to be new."""
        ...

    @property
    def state(self) -> HasHead:
        """The run as it will be."""
        ...


Prepared = TypeVar("Prepared", bound=PreparedRun)


class Launcher(Protocol[Prepared]):
    """Makes runs. After `prepare`, `launched` or `abandoned` must follow."""

    def prepare(
        self,
        namespace: str,
        resource: resource_pb2.Resource,
        pipeline: pipeline_pb2.Pipeline | None,
        *,
        labels: Mapping[str, str],
        params: Struct | None = None,
        parent: str = "",
        inherited: Sequence[storage_pb2.StepRecord] = (),
        waits: bool = False,
        caller: Caller | None = None,
        fired: Fired | None = None,
    ) -> Prepared:
        """A run of the resource on the pipeline; without one it is a broadcast. Stores nothing.

        `labels` are all labels of the run, those of the resource included; `inherited` the steps that it takes over
        from its `parent`. One that `waits` for older runs is stored as it is, and started when it is its turn. The
        `caller` is the step that waits for the run and names its id, `fired` what a schedule starts it for.
        """
        ...

    async def launched(self, prepared: Prepared, revision: int) -> run_pb2.Run:
        """The commit went through in this revision: take the run up. Returns its basic view."""
        ...

    def abandoned(self, prepared: Prepared) -> None:
        """The commit did not go through."""
        ...

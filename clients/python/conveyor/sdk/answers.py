"""What calls return that no single message of `conveyor.v1` holds."""

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from conveyor.v1.apply_pb2 import ApplyOutcome
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run, StepRun
from conveyor.v1.schedule_pb2 import Schedule

ObjectT = TypeVar("ObjectT", Pipeline, ResourceDefinition, Resource, Schedule)


class Applied(NamedTuple, Generic[ObjectT]):
    """What an apply of a definition, pipeline or schedule did."""

    object: ObjectT
    """The object as it is now."""
    outcome: ApplyOutcome.ValueType
    """APPLY_OUTCOME_CREATED, _CHANGED or _UNCHANGED."""


class AppliedResource(NamedTuple):
    """What an apply of a resource did."""

    object: Resource
    """The resource as it is now."""
    outcome: ApplyOutcome.ValueType
    """APPLY_OUTCOME_CREATED, _CHANGED or _UNCHANGED."""
    run: Run | None
    """The run that it started. None when nothing changed, or when its `on_change` is false."""


class Submitted(NamedTuple):
    """A resource that was created or updated."""

    resource: Resource
    """The resource as it is now."""
    run: Run | None
    """The run that it started. None when nothing changed, with validate_only, or when its `on_change` is false."""


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """A run after a change."""

    run: Run
    """The run. In `watch` with all its steps and snapshots, in `watch_all` without them."""
    changed: tuple[StepRun, ...] = ()
    """The steps that changed; at first all that there are."""
    skipped: int = 0
    """So many changes before this one were left out, because the reader was slow; this is the newest state."""
    reset: bool = False
    """Changes before this one may be missing, because the server no longer had them; this is the newest state."""
    deleted: bool = False
    """The run was deleted; this is how it was. Only in `watch_all`."""

"""Whether a resource may move, and the run that takes it along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.struct_pb2 import Struct

from conveyor.core import errors, limits
from conveyor.core.model import TERMINAL_RUN
from conveyor.core.params import resolve
from conveyor.state import keys, views
from conveyor.state.callers import Caller
from conveyor.state.fired import Fired
from conveyor.state.lanes import Lane, Lanes, has_lane
from conveyor.state.launcher import Launcher, PreparedRun
from conveyor.state.lookup import Lookup
from conveyor.state.schemas import Schemas
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Guard, Put
from conveyor.v1 import pipeline_pb2, resource_pb2, run_pb2


@dataclass(frozen=True, slots=True)
class Admitted:
    """A run that may start, and what must still hold when it is committed."""

    prepared: PreparedRun
    guards: list[Guard]
    puts: list[Put]


class Admission:
    """Checks resources against their definitions and pipelines."""

    def __init__(self, lookup: Lookup, lanes: Lanes, launcher: Launcher[Any]) -> None:
        self._lookup = lookup
        self._lanes = lanes
        self._launcher = launcher
        self.schemas = Schemas()

    async def change(self, resource: resource_pb2.Resource, *, fresh: bool) -> tuple[Sequence[Guard], Admitted | None]:
        """What must hold for a changed resource, and the run that the change starts, if it starts one.

        Raises errors.UnknownDefinition, errors.SchemaViolation, errors.UnknownPipeline, errors.DefinitionMismatch,
        errors.TooManyWaitingRuns, errors.InvalidRequest when the parameters do not fit.
        """
        definition = await self._lookup.definition(resource.namespace, resource.definition, fresh=fresh)
        if definition is None:
            raise errors.UnknownDefinition(f"there is no resource definition {resource.definition}")
        await self.schemas.check_spec(definition.object, resource.spec, "resource.spec")
        guards = [Guard(keys.definition(resource.namespace, resource.definition), definition.mod_revision)]
        if resource.HasField("on_change") and not resource.on_change:
            # It must be able to move all the same, whenever somebody starts a run.
            await self.check(resource, resource.pipeline, guards, fresh=fresh)
            return guards, None
        admitted = await self.run(resource, resource.pipeline, resource.labels, guards, fresh=fresh)
        return admitted.guards, admitted

    async def run(
        self,
        resource: resource_pb2.Resource,
        pipeline: str,
        labels: Mapping[str, str],
        guards: list[Guard],
        *,
        fresh: bool,
        params: Struct | None = None,
        fired: Fired | None = None,
    ) -> Admitted:
        """A run of the resource on the named pipeline, or as a broadcast.

        `params` are what a start gives, None when a change of the resource starts it. `fired` is what a schedule
        starts it for.

        Raises errors.UnknownPipeline, errors.DefinitionMismatch, errors.TooManyWaitingRuns, errors.InvalidRequest when
        the parameters do not fit.
        """
        chosen, values = await self.check(resource, pipeline, guards, fresh=fresh, params=params)
        lane = await self._lane(resource, chosen)
        prepared = self._launcher.prepare(
            resource.namespace,
            resource,
            chosen,
            labels=labels,
            params=values,
            waits=lane is not None and bool(lane.entries),
            fired=fired,
        )
        return _admit(prepared, guards, lane, chosen)

    async def check(
        self,
        resource: resource_pb2.Resource,
        pipeline: str,
        guards: list[Guard],
        *,
        fresh: bool,
        params: Struct | None = None,
    ) -> tuple[pipeline_pb2.Pipeline | None, Struct | None]:
        """The pipeline, which takes the resource, and the values of its parameters; adds a guard for it.

        Raises as `run`, but for errors.TooManyWaitingRuns.
        """
        chosen = await self._pipeline(resource, pipeline, guards, fresh=fresh) if pipeline else None
        return chosen, _params(resource, chosen, params)

    async def call(
        self,
        caller: Caller,
        resource: resource_pb2.Resource,
        pipeline: str,
        labels: Mapping[str, str],
        params: Struct,
        guards: list[Guard],
        *,
        fresh: bool,
    ) -> Admitted:
        """A run for a step that waits for it. Of the parameters the step gives all: not even the resource's own count.

        Raises errors.UnknownPipeline, errors.DefinitionMismatch, errors.TooManyWaitingRuns, errors.InvalidRequest when
        the parameters do not fit, errors.Unfit when it would be within too many runs, or wait for one of them.
        """
        caller.check_size(pipeline)
        chosen = await self._pipeline(resource, pipeline, guards, fresh=fresh)
        values, violations = resolve(chosen.params, [("params", params)])
        if violations:
            raise errors.InvalidRequest(violations=violations)
        lane = await self._lane(resource, chosen)
        if lane is not None:
            caller.check_lane(lane.runs())
        prepared = self._launcher.prepare(
            resource.namespace,
            resource,
            chosen,
            labels=labels,
            params=values if values.fields else None,
            waits=lane is not None and bool(lane.entries),
            caller=caller,
        )
        try:
            caller.check_lock(prepared.state.head.lock)
        except errors.Unfit:
            self._launcher.abandoned(prepared)
            raise
        return _admit(prepared, guards, lane, chosen)

    async def retry(
        self,
        parent: str,
        spec: storage_pb2.RunSpec,
        labels: Mapping[str, str],
        inherited: list[storage_pb2.StepRecord],
        guards: list[Guard],
    ) -> Admitted:
        """A run of the same snapshot as its parent's, that takes over some of its steps.

        Raises errors.TooManyWaitingRuns.
        """
        lane = await self._lane(spec.resource, spec.pipeline)
        prepared = self._launcher.prepare(
            spec.resource.namespace,
            spec.resource,
            spec.pipeline,
            labels=labels,
            params=Struct.FromString(spec.params) if spec.params else None,
            parent=parent,
            inherited=inherited,
            waits=lane is not None and bool(lane.entries),
        )
        return _admit(prepared, guards, lane, spec.pipeline)

    async def _pipeline(
        self, resource: resource_pb2.Resource, name: str, guards: list[Guard], *, fresh: bool
    ) -> pipeline_pb2.Pipeline:
        """The named pipeline, if the resource may move on it; it must still be so at the commit."""
        found = await self._lookup.pipeline(resource.namespace, name, fresh=fresh)
        if found is None:
            raise errors.UnknownPipeline(f"there is no pipeline {name}")
        chosen = found.object
        if chosen.definition and chosen.definition != resource.definition:
            raise errors.DefinitionMismatch(
                f"pipeline {name} takes resources of {chosen.definition}, not of {resource.definition}"
            )
        guards.append(Guard(keys.pipeline(resource.namespace, name), found.mod_revision))
        return chosen

    async def _lane(self, resource: resource_pb2.Resource, pipeline: pipeline_pb2.Pipeline | None) -> Lane | None:
        """The lane that a run of the resource on the pipeline joins, if it joins one."""
        if pipeline is None or not has_lane(pipeline):
            return None
        return await self._lanes.read(keys.lane(resource.namespace, pipeline.name, resource.definition, resource.name))

    async def launched(self, admitted: Admitted, revision: int) -> run_pb2.Run:
        """The basic view of the run after the commit. Revision 0: nothing was stored, this is how it would be."""
        if revision:
            return await self._launcher.launched(admitted.prepared, revision)
        run = views.basic_run(admitted.prepared.state.head, 0)
        run.ClearField("etag")
        return run

    def abandoned(self, admitted: Admitted) -> None:
        """The commit did not go through."""
        self._launcher.abandoned(admitted.prepared)


def _admit(
    prepared: PreparedRun, guards: list[Guard], lane: Lane | None, pipeline: pipeline_pb2.Pipeline | None
) -> Admitted:
    guards, puts = [*guards, *prepared.guards], [*prepared.puts]
    # One that has ended already, since it took over all its steps, leaves the lane as it is.
    if lane is not None and pipeline is not None and prepared.state.head.state not in TERMINAL_RUN:
        replaces = pipeline.concurrency.policy == pipeline_pb2.CONCURRENCY_POLICY_REPLACE
        change = lane.with_run(prepared.run_id, replaces=replaces)
        guards.append(change.guard)
        puts.extend(change.puts)
    return Admitted(prepared, guards, puts)


def _params(
    resource: resource_pb2.Resource, pipeline: pipeline_pb2.Pipeline | None, given: Struct | None
) -> Struct | None:
    """The values of the pipeline's parameters. Raises errors.InvalidRequest with all that does not fit."""
    if pipeline is None:
        if given is not None and given.fields:
            text = "the resource moves on no pipeline, which could take them"
            raise errors.InvalidRequest(violations=[errors.Violation("params", text)])
        return None
    own = pipeline.name == resource.pipeline and resource.HasField("params")
    if not pipeline.params and not own and not (given is not None and given.fields):
        return None
    sources: list[tuple[str, Struct]] = []
    if own:
        sources.append(("resource.params", resource.params))
    if given is not None:
        sources.append(("params", given))
    values, violations = resolve(pipeline.params, sources or [("resource.params", Struct())])
    if violations:
        raise errors.InvalidRequest(violations=violations)
    return values


def merged_labels(base: Mapping[str, str], over: Mapping[str, str]) -> dict[str, str]:
    """Both together, `over` winning. Raises errors.InvalidRequest when they are too many."""
    labels = {**base, **over}
    if len(labels) > limits.LABELS:
        text = f"there are {len(labels)} together with those that the run has already; at most {limits.LABELS}"
        raise errors.InvalidRequest(violations=[errors.Violation("labels", text)])
    return labels

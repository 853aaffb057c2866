"""Runs that a caller starts: of a resource as it is, or of an earlier run once more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from google.protobuf.struct_pb2 import Struct

from conveyor.core import errors
from conveyor.core.calls import awaits
from conveyor.core.inherit import inheritable
from conveyor.state import keys, views
from conveyor.state.admission import Admission, Admitted, merged_labels
from conveyor.state.callers import Withdrawn
from conveyor.state.commits import Committer, Draft
from conveyor.state.kinds import RESOURCE
from conveyor.state.lookup import Lookup, missing
from conveyor.state.requests import Remembered, Slip
from conveyor.state.runs import Runs, StoredRun
from conveyor.store.port import Guard
from conveyor.v1 import run_pb2


class Starts:
    """Starts runs; each in one commit with the record of its request. All methods raise the store's errors."""

    def __init__(self, lookup: Lookup, admission: Admission, committer: Committer, runs: Runs) -> None:
        self._lookup = lookup
        self._admission = admission
        self._committer = committer
        self._runs = runs

    async def start(
        self,
        namespace: str,
        definition: str,
        resource: str,
        *,
        pipeline: str = "",
        params: Struct | None = None,
        labels: Mapping[str, str] | None = None,
        slip: Slip | None = None,
        validate_only: bool = False,
    ) -> run_pb2.Run:
        """Start a run of a resource, on its own pipeline or on the named one. Returns its basic view.

        `params` go over those of the resource, which are for its own pipeline.

        Raises errors.NotFound, errors.UnknownPipeline, errors.DefinitionMismatch, errors.TooManyWaitingRuns,
        errors.InvalidRequest when its labels are too many or the parameters do not fit, and what `Committer.run`
        raises.
        """
        key = keys.resource(namespace, definition, resource)

        async def draft(fresh: bool, slip: Slip | None) -> Draft[run_pb2.Run]:
            found = await self._lookup.read(RESOURCE, key, fresh=fresh)
            if found is None:
                raise missing(RESOURCE, key)
            admitted = await self._admission.run(
                found.object,
                pipeline or found.object.pipeline,
                merged_labels(found.object.labels, labels or {}),
                [Guard(key, found.mod_revision)],
                params=params if params is not None else Struct(),
                fresh=fresh,
            )
            return self.draft(admitted, slip)

        return await self._committer.run(draft, slip, self.again(namespace), validate_only=validate_only)

    async def retry(
        self, namespace: str, run_id: str, *, labels: Mapping[str, str] | None = None, slip: Slip | None = None
    ) -> run_pb2.Run:
        """Start a run that takes over the steps of this one that succeeded. Returns its basic view.

        Raises errors.NotFound, errors.RunNotFinished, errors.RunSucceeded, errors.TooManyWaitingRuns,
        errors.InvalidRequest when its labels are too many, and what `Committer.run` raises.
        """

        async def draft(_: bool, slip: Slip | None) -> Draft[run_pb2.Run]:
            parent = await self._runs.load(namespace, run_id)
            if not parent.state.terminal:
                raise errors.RunNotFinished(f"run {run_id} has not ended; cancel it first")
            if parent.head.state == run_pb2.RUN_STATE_SUCCEEDED:
                raise errors.RunSucceeded(f"run {run_id} succeeded; there is nothing to retry")
            admitted = await self._admission.retry(
                run_id,
                parent.spec,
                merged_labels(parent.head.labels, labels or {}),
                inheritable(parent.state),
                [Guard(keys.head(namespace, run_id), parent.revision)],
            )
            return self.draft(admitted, slip)

        return await self._committer.run(draft, slip, self.again(namespace))

    async def call(self, run: StoredRun, index: int, child: str) -> None:
        """Make the run that a step waits for, under the id that it waits for.

        Nothing is made once the step is told to stop, or has ended: its record is guarded. Raises callers.Withdrawn
        then, errors.AlreadyExists when the run is there, what `Admission.call` and `Committer.run` raise.
        """
        head, step = run.head, run.state.plan.steps[index]

        async def draft(fresh: bool, _: Slip | None) -> Draft[run_pb2.Run]:
            record, revision = await self._runs.step(head.namespace, head.id, step.id)
            if record is None or record.cancel_sent or not awaits(record, child):
                raise Withdrawn
            admitted = await self._admission.call(
                await self._runs.caller(head, record, child),
                run.spec.resource,
                step.calls,
                head.labels,
                Struct.FromString(record.params or step.params),
                [Guard(keys.step(head.namespace, head.id, step.id), revision)],
                fresh=fresh,
            )
            # Other replicas make it too, under the same keys: only the head says whose commit went through.
            key = keys.head(head.namespace, child)
            stored = next(put.value for put in admitted.puts if put.key == key)
            there = errors.AlreadyExists(f"run {child} is there")
            return replace(self.draft(admitted, None), witness=(key, stored), clash=(key, there))

        await self._committer.run(draft, None, self.again(head.namespace))

    def draft(self, admitted: Admitted, slip: Slip | None) -> Draft[run_pb2.Run]:
        """The commit that starts an admitted run."""
        run_id, namespace = admitted.prepared.run_id, admitted.prepared.state.head.namespace
        guards, puts = admitted.guards, list(admitted.puts)
        if slip is not None:
            guards.insert(0, slip.guard)
            puts.append(slip.put(run=run_id))
        return Draft(
            guards,
            puts,
            witness=(keys.spec(namespace, run_id), None),
            done=lambda revision: self._admission.launched(admitted, revision),
            undo=lambda: self._admission.abandoned(admitted),
        )

    def again(self, namespace: str) -> Callable[[Remembered], Awaitable[run_pb2.Run]]:
        """Answers a request that started a run before: with the run as it is now."""

        async def answer(before: Remembered) -> run_pb2.Run:
            try:
                return views.basic_run(*await self._runs.head(namespace, before.run))
            except errors.NotFound:
                raise errors.NotFound(f"run {before.run}, which this request started, has been deleted") from None

        return answer

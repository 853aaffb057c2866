"""How a run begins: prepared for the commit of whatever caused it, with its first steps given out in that commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.struct_pb2 import Struct

from conveyor.core.events import RunCreated
from conveyor.core.model import Decision, keep_waiting
from conveyor.core.transitions import apply
from conveyor.engine.dispatch import Dispatch
from conveyor.engine.loop import Engine
from conveyor.state.callers import Caller
from conveyor.state.fired import Fired
from conveyor.state.runs import StoredRun
from conveyor.state.views import basic_run
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Guard, Put
from conveyor.v1 import pipeline_pb2, resource_pb2, run_pb2

BROADCAST_TIMEOUT = 600
"""Seconds that the drivers of a broadcast have for their answer."""


@dataclass(slots=True)
class PreparedRun:
    """A run that is about to be stored: `puts` and `guards` go into the caller's commit."""

    run_id: str
    puts: Sequence[Put]
    guards: Sequence[Guard]
    state: StoredRun
    decision: Decision
    dispatch: Dispatch


class Launcher:
    """Begins runs."""

    def __init__(self, engine: Engine, broadcast_timeout: int = BROADCAST_TIMEOUT) -> None:
        self._engine = engine
        self._broadcast_timeout = broadcast_timeout

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
    ) -> PreparedRun:
        """A new run with its first steps claimed for free workers; `launched` or `abandoned` must follow.

        `labels` are all labels of the run, those of the resource included. Without a pipeline the resource goes to
        every driver that listens to its definition. One that `waits` for older runs claims nothing yet. The `caller`
        is the step that waits for the run and names its id.
        """
        engine = self._engine
        now = engine.now()
        run = engine.runs.new(
            caller.child if caller is not None else engine.dispatcher.ids.new(now),
            now,
            namespace,
            pipeline if pipeline is not None else self._broadcast(namespace, resource.definition),
            resource,
            labels=labels,
            params=params.SerializeToString() if params is not None else b"",
            parent=parent,
            inherited=inherited,
            caller=caller,
            fired=fired,
        )
        if waits:
            keep_waiting(run.state)
            decision, dispatch = Decision(run.state, dirty=True), Dispatch()
        else:
            decision, dispatch = engine.dispatcher.dispatch(run, apply(run.state, RunCreated(), now), now)
        new = engine.runs.creation(run, decision)
        return PreparedRun(run.head.id, new.puts, new.guards, new.run, decision, dispatch)

    def _broadcast(self, namespace: str, definition: str) -> pipeline_pb2.Pipeline:
        pipeline = pipeline_pb2.Pipeline(namespace=namespace, order=pipeline_pb2.ORDER_GRAPH)
        pipeline.failure_policy = pipeline_pb2.FAILURE_POLICY_CONTINUE
        for driver in self._engine.dispatcher.listeners(namespace, definition):
            step = pipeline.steps.add(id=driver, driver=driver)
            step.timeout.seconds = self._broadcast_timeout
        return pipeline

    async def launched(self, prepared: PreparedRun, revision: int) -> run_pb2.Run:
        """The commit took effect: the engine takes the run up and sends what was claimed. Returns the basic view."""
        run = prepared.state.moved(prepared.decision.state, revision)
        self._engine.adopt(run, prepared.decision, prepared.dispatch)
        return basic_run(run.head, revision)

    def abandoned(self, prepared: PreparedRun) -> None:
        """The commit did not take effect: the workers are free again."""
        self._engine.undo(prepared.dispatch)

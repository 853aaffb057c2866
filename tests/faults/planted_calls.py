"""Deliberate bugs in what steps have to do with the runs that they wait for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from google.protobuf.struct_pb2 import Struct

from conveyor.core import calls
from conveyor.core.calls import on_child_ended
from conveyor.core.events import ChildEnded
from conveyor.core.model import Decision, RunState
from conveyor.state.admission import Admission, Admitted
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2
from tests.faults.plant import on_event, plant, put


@plant("a step succeeds however its run ended", 3, faults=("kill-grpc-driver",), rate=30)
def failed_runs_count() -> None:
    def kind(state: RunState, event: ChildEnded, now: int, jitter: float) -> Decision:
        return on_child_ended(state, replace(event, state=run_pb2.RUN_STATE_SUCCEEDED), now, jitter)

    on_event(ChildEnded, kind)


@plant(
    "the end of any run of a step ends it, also that of an earlier attempt", 3, faults=("kill-grpc-driver",), rate=30
)
def any_run_counts() -> None:
    def waits(record: storage_pb2.StepRecord | None, child: str) -> bool:
        return record is not None and record.state == run_pb2.STEP_STATE_RUNNING

    put(calls, "awaits", waits)


@plant("a run within does not get what its step gives", 3, faults=("kill-grpc-driver",), rate=30)
def calls_give_nothing() -> None:
    call = Admission.call

    async def without(self: Admission, *arguments: Any, **kind: Any) -> Admitted:
        return await call(self, *(Struct() if isinstance(each, Struct) else each for each in arguments), **kind)

    put(Admission, "call", without)

"""Deliberate bugs in what people decide."""

from __future__ import annotations

from dataclasses import replace

from conveyor.core import gates, transitions
from conveyor.core.events import StepDecided
from conveyor.core.model import Decision, RunState
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.faults.plant import on_event, plant, put


@plant("one approval is enough, however many a gate wants", 3, faults=("kill-grpc-driver",), rate=30)
def approvals_are_not_counted() -> None:
    put(gates, "missing", lambda gate, record: 0)


@plant("a run goes on without an optional gate while others are at work", 3, faults=("kill-grpc-driver",), rate=30)
def those_at_work_are_overlooked() -> None:
    put(gates, "_UNDER_WAY", frozenset({run_pb2.STEP_STATE_QUEUED}))


@plant("who rejects is taken for one who approves", 3, 1, faults=("kill-grpc-driver",), rate=30)
def rejections_are_lost() -> None:
    decided = transitions._on_decided

    def kind(state: RunState, event: StepDecided, now: int, jitter: float) -> Decision:
        return decided(state, replace(event, decision=pipeline_pb2.DECISION_APPROVED), now, jitter)

    on_event(StepDecided, kind)

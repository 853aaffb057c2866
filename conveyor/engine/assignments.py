"""What a worker receives: the resource, the context and earlier results of its run."""

from __future__ import annotations

from conveyor.core.model import TERMINAL_STEP
from conveyor.core.plan import SECOND
from conveyor.state.runs import StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2, worker_pb2

_SHARED = -1
"""Key in StoredRun.inputs of what all assignments of a run have in common."""


def assignment(run: StoredRun, index: int, now: int) -> worker_pb2.Assignment:
    """The assignment of a step that was claimed.

    Serialized messages that follow one another parse as one merged message: what never changes again is serialized
    once and joined here.
    """
    state = run.state
    step, record = state.plan.steps[index], state.steps[index]
    if record is None:
        raise ValueError(f"step {step.id} was never queued")
    pieces = [_shared(run)]
    for before in state.plan.inputs(index):
        if state.head.step_states[before] in TERMINAL_STEP:
            piece = run.inputs.get(before)
            pieces.append(piece if piece is not None else _result(run, before))
    message = worker_pb2.Assignment.FromString(b"".join(pieces))
    message.step = step.id
    message.attempt = record.attempt
    message.token = record.token
    message.driver = step.driver
    message.max_attempts = step.retry.max_attempts
    message.run_state = state.head.outcome or _heading_for(run)
    if record.next_time:
        left = max(0, record.next_time - now)
        message.timeout.seconds, rest = divmod(left, SECOND)
        message.timeout.nanos = rest * 1000
        message.deadline.seconds, rest = divmod(record.next_time, SECOND)
        message.deadline.nanos = rest * 1000
    return message


def _heading_for(run: StoredRun) -> run_pb2.RunState.ValueType:
    states = run.head.step_states
    if run_pb2.STEP_STATE_FAILED in states and any(
        state == run_pb2.STEP_STATE_FAILED and not run.state.plan.steps[i].allow_failure
        for i, state in enumerate(states)
    ):
        return run_pb2.RUN_STATE_FAILED
    return run_pb2.RUN_STATE_RUNNING


def _shared(run: StoredRun) -> bytes:
    piece = run.inputs.get(_SHARED)
    if piece is None:
        message = worker_pb2.Assignment(
            namespace=run.head.namespace,
            run=run.head.id,
            pipeline=run.head.pipeline,
            resource=run.spec.resource,
        )
        if run.spec.pipeline.HasField("context"):
            message.context.CopyFrom(run.spec.pipeline.context)
        piece = run.inputs[_SHARED] = message.SerializeToString()
    return piece


def _result(run: StoredRun, index: int) -> bytes:
    """The result of a terminal step; nothing for one that never ran."""
    record = run.state.steps[index]
    piece = b""
    if record is not None and record.state != run_pb2.STEP_STATE_SKIPPED:
        message = worker_pb2.Assignment()
        _fill_result(message.results[record.step], record, run.state.plan.steps[index].driver)
        piece = message.SerializeToString()
    run.inputs[index] = piece
    return piece


def _fill_result(result: worker_pb2.StepResult, record: storage_pb2.StepRecord, driver: str) -> None:
    result.state = record.state
    result.driver = driver
    result.message = record.result.message or record.message
    if record.result.data:
        result.data.ParseFromString(record.result.data)

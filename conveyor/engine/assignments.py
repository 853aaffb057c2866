"""What a worker receives: the resource, the context and earlier results of its run."""

from __future__ import annotations

from itertools import compress

from conveyor.core.model import TERMINAL_STEP
from conveyor.core.plan import SECOND
from conveyor.core.wire import delimited, tag
from conveyor.state.runs import StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2, worker_pb2

_PARAMS = tag(worker_pb2.Assignment.DESCRIPTOR.fields_by_name["params"])


def assignment(run: StoredRun, index: int, now: int) -> worker_pb2.Assignment:
    """The assignment of a step that was claimed, as a message."""
    return worker_pb2.Assignment.FromString(packed(run, index, now))


def packed(run: StoredRun, index: int, now: int) -> bytes:
    """The assignment of a step that was claimed, serialized.

    Serialized messages that follow one another are one merged message: what never changes again is serialized once
    and joined here, so that the results of a thousand earlier steps cost next to nothing.
    """
    state, inputs = run.state, run.inputs
    step, record = state.plan.steps[index], state.steps[index]
    if record is None:
        raise ValueError(f"step {step.id} was never queued")
    message = worker_pb2.Assignment(
        step=step.id,
        attempt=record.attempt,
        token=record.token,
        driver=step.driver,
        max_attempts=step.retry.max_attempts,
        run_state=state.head.outcome or _heading_for(run),
    )
    if record.next_time:
        left = max(0, record.next_time - now)
        message.timeout.seconds, rest = divmod(left, SECOND)
        message.timeout.nanos = rest * 1000
        message.deadline.seconds, rest = divmod(record.next_time, SECOND)
        message.deadline.nanos = rest * 1000
    if not inputs.common:
        inputs.common = _common(run)
    if inputs.states != state.head.step_states:
        _keep_results(run)
    results = compress(inputs.results, state.plan.selectors(index))
    params = record.params or step.params
    parts = [inputs.common, *results, message.SerializeToString()]
    if params:
        parts.append(delimited(_PARAMS, params))
    return b"".join(parts)


def _keep_results(run: StoredRun) -> None:
    """Serialize the results of the steps that have ended since the last time."""
    inputs, states = run.inputs, run.head.step_states
    # At first, and after a matrix was expanded.
    inputs.results.extend([b""] * (len(states) - len(inputs.results)))
    # The bytes that differ, found without looking at each: most transitions end one step of many.
    changed = int.from_bytes(states, "little") ^ int.from_bytes(inputs.states, "little")
    while changed:
        index = ((changed & -changed).bit_length() - 1) // 8
        changed &= ~(0xFF << 8 * index)
        if states[index] in TERMINAL_STEP:
            inputs.results[index] = _result(run, index)
    inputs.states = states


def _heading_for(run: StoredRun) -> run_pb2.RunState.ValueType:
    states = run.head.step_states
    if run_pb2.STEP_STATE_FAILED in states and any(
        state == run_pb2.STEP_STATE_FAILED and not run.state.plan.steps[i].allow_failure
        for i, state in enumerate(states)
    ):
        return run_pb2.RUN_STATE_FAILED
    return run_pb2.RUN_STATE_RUNNING


def _common(run: StoredRun) -> bytes:
    message = worker_pb2.Assignment(
        namespace=run.head.namespace, run=run.head.id, pipeline=run.head.pipeline, resource=run.spec.resource
    )
    if run.spec.pipeline.HasField("context"):
        message.context.CopyFrom(run.spec.pipeline.context)
    return message.SerializeToString()


def _result(run: StoredRun, index: int) -> bytes:
    """The result of a terminal step; nothing for one that never ran."""
    record = run.state.steps[index]
    if record is None or record.state == run_pb2.STEP_STATE_SKIPPED:
        return b""
    message = worker_pb2.Assignment()
    _fill_result(message.results[record.step], record, run.state.plan.steps[index].driver)
    return message.SerializeToString()


def _fill_result(result: worker_pb2.StepResult, record: storage_pb2.StepRecord, driver: str) -> None:
    result.state = record.state
    result.driver = driver
    result.message = record.result.message or record.message
    if record.result.data:
        result.data.ParseFromString(record.result.data)

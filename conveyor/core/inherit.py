"""What a run takes over from the one that it retries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conveyor.core.matrix import is_expanded
from conveyor.core.model import RunState
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

_HEAVY = 128 << 10
"""Bytes that are taken over as they are."""

_DECIDED_BY_NEEDS = frozenset(
    {
        run_pb2.STEP_REASON_NEED_FAILED,
        run_pb2.STEP_REASON_NEED_SKIPPED,
        run_pb2.STEP_REASON_NO_NEED_FAILED,
    }
)


def inheritable(state: RunState) -> list[storage_pb2.StepRecord]:
    """The records that a retry of this run takes over: main steps that succeeded and would find the same again.

    That is so when each of their needs is taken over too, or was skipped and is going to be for the same reason. Of a
    step whose matrix did not succeed, the instances that did are taken over.
    """
    plan, head = state.plan, state.head
    kept: list[storage_pb2.StepRecord] = []
    expanded = plan.declared
    same = [False] * plan.declared
    order = [step.index for step in plan.steps[: plan.main] if not step.needs]
    open_needs = [len(step.needs) for step in plan.steps]
    for index in order:
        step, record = plan.steps[index], state.steps[index]
        if all(same[need] for need in step.needs):
            if head.step_states[index] == run_pb2.STEP_STATE_SUCCEEDED and record is not None:
                same[index] = True
                copy = _inherited(record)
                if is_expanded(record):
                    # In the new run other matrices may come before it, or not be there yet.
                    copy.first_instance = expanded
                    expanded += len(record.instances)
                kept.append(copy)
            elif head.step_states[index] == run_pb2.STEP_STATE_SKIPPED:
                same[index] = head.step_reasons[index] in _DECIDED_BY_NEEDS or _condition_repeats(state, index)
            kept.extend(_inherited_instances(state, index))
        for dependent in step.dependents:
            open_needs[dependent] -= 1
            if not open_needs[dependent]:
                order.append(dependent)
    _lighten(kept)
    return kept


def _lighten(kept: Sequence[storage_pb2.StepRecord]) -> None:
    """Leave out what nobody needs any more when there is much: one commit stores all of it, with the snapshot."""
    if sum(record.ByteSize() for record in kept) <= _HEAVY:
        return
    expanded = {record.step for record in kept if is_expanded(record)}
    for record in kept:
        record.ClearField("params")
        if record.matrix_step in expanded:
            record.ClearField("matrix")  # the record of its step has it


def _inherited_instances(state: RunState, index: int) -> Iterator[storage_pb2.StepRecord]:
    """The instances of a step's matrix that succeeded, also in a run that this one retries; all, if the step did."""
    name = state.plan.steps[index].id
    succeeded = state.head.step_states[index] == run_pb2.STEP_STATE_SUCCEEDED
    yield from (_inherited(record) for record in state.kept.values() if record.matrix_step == name)
    for place in state.plan.instances.get(index, ()):
        record = state.steps[place]
        if record is not None and (succeeded or record.state == run_pb2.STEP_STATE_SUCCEEDED):
            yield _inherited(record)


def _condition_repeats(state: RunState, index: int) -> bool:
    """Whether a step was skipped because of its condition, and is going to be again."""
    if state.head.step_reasons[index] != run_pb2.STEP_REASON_CONDITION_FALSE or state.inputs is None:
        return False
    return state.inputs.repeats(index)


def _inherited(record: storage_pb2.StepRecord) -> storage_pb2.StepRecord:
    """A copy with the attempt that succeeded; the others stay with the run that made them."""
    copy = storage_pb2.StepRecord()
    copy.CopyFrom(record)
    copy.inherited = True
    del copy.attempts[:-1]
    for attempt in copy.attempts:
        attempt.ClearField("late_results")
    return copy

"""Gates: steps at which people decide."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.core.draft import Draft
from conveyor.core.limits import RUN_RESULTS_BYTES
from conveyor.core.model import RunState
from conveyor.core.plan import SECOND, GatePlan
from conveyor.core.rules import may_start
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, result_pb2, run_pb2

_NAMES_SHOWN = 5
_PASSED_BY = "nobody decided before all else had ended"
_UNDER_WAY = frozenset({run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_STATE_RUNNING, run_pb2.STEP_STATE_RETRYING})


class Standing(enum.Enum):
    """What a step makes of somebody's decision."""

    OPEN = "it counts"
    REPEATED = "the same person has decided so before"
    CONTRARY = "the same person has decided otherwise"
    CLOSED = "the step is no gate that waits"


def standing(state: RunState, index: int, decision: pipeline_pb2.Decision.ValueType, by: str) -> Standing:
    """What becomes of a decision. One that was made stays made, also after the gate and its run have ended."""
    step, record = state.plan.steps[index], state.steps[index]
    if record is None or step.gate is None:
        return Standing.CLOSED
    for made in record.decisions:
        if made.by == by:
            return Standing.REPEATED if made.decision == decision else Standing.CONTRARY
    head = state.head
    open_to_all = may_start(state.plan, head, head.step_states, state.failed, index)
    if record.state != run_pb2.STEP_STATE_QUEUED or not open_to_all:
        return Standing.CLOSED
    return Standing.OPEN


def missing(gate: GatePlan, record: storage_pb2.StepRecord) -> int:
    """How many more people must approve a gate that waits."""
    return gate.approvals - len(record.decisions)


def decide(draft: Draft, index: int, decision: pipeline_pb2.Decision.ValueType, by: str, comment: str) -> None:
    """Note what somebody decided at a gate that is open to them, and end the gate if that is enough."""
    gate, record = _gate(draft, index), draft.edit(index)
    _note(draft, record, storage_pb2.DecisionRecord(decision=decision, by=by, time=draft.stamp, comment=comment))
    if decision == pipeline_pb2.DECISION_REJECTED:
        _close(draft, index, decision, _said(f"rejected by {by}", comment))
    elif not missing(gate, record) or draft.head.result_bytes > RUN_RESULTS_BYTES:
        names = [made.by for made in record.decisions]
        _close(draft, index, decision, _said(f"approved by {_listed(names)}", comment if len(names) == 1 else ""))


def decide_in_time(draft: Draft, index: int) -> None:
    """The timeout of a gate has passed: its default is the decision."""
    if not draft.may_start(index):
        return  # What stops the run stops the gate.
    gate, record = _gate(draft, index), draft.edit(index)
    made = f"only {len(record.decisions)} of {gate.approvals} approved" if record.decisions else "nobody decided"
    verb = "approved" if gate.default == pipeline_pb2.DECISION_APPROVED else "rejected"
    message = f"{verb} by default: {made} within {draft.plan.steps[index].queue_timeout / SECOND:g} s"
    _note(draft, record, storage_pb2.DecisionRecord(decision=gate.default, time=draft.stamp))
    _close(draft, index, gate.default, message)


def pass_by(draft: Draft) -> bool:
    """Skip the first optional gate when a run that is at rest waits for nothing but such gates; whether there was one.

    One at a time: what it holds back may run then, which gives people time for the others.
    """
    if not draft.plan.optional_gates or draft.more or draft.cancelling:
        return False
    first = -1
    for index, state in enumerate(draft.states):
        step = draft.plan.steps[index]
        if state not in _UNDER_WAY or index in draft.plan.instances:
            continue
        if step.gate is None or not step.gate.optional or step.is_finally:
            return False
        first = index if first < 0 else first
    if first < 0 or not draft.fits(first):
        return False
    draft.finish(first, run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_NOT_DECIDED, _PASSED_BY)
    return True


def _note(draft: Draft, record: storage_pb2.StepRecord, made: storage_pb2.DecisionRecord) -> None:
    record.decisions.append(made)
    draft.head.result_bytes += made.ByteSize()


def _close(draft: Draft, index: int, decision: pipeline_pb2.Decision.ValueType, message: str) -> None:
    """End a gate; later steps find in its data what was decided."""
    record = draft.edit(index)
    approved = decision == pipeline_pb2.DECISION_APPROVED
    data = _data(decision, record.message, record.decisions)
    size = draft.head.result_bytes + len(data)
    if size > RUN_RESULTS_BYTES:
        said = f"{message}; but the results of the run would have {size} bytes; the limit is {RUN_RESULTS_BYTES}"
        draft.finish(index, run_pb2.STEP_STATE_FAILED, run_pb2.STEP_REASON_RESULT_TOO_LARGE, said)
        return
    record.result.outcome = result_pb2.OUTCOME_SUCCEEDED if approved else result_pb2.OUTCOME_FAILED
    record.result.data = data
    draft.head.result_bytes = size
    draft.bytes_taken += len(data)
    if approved:
        draft.finish(index, run_pb2.STEP_STATE_SUCCEEDED, message=message)
    else:
        draft.finish(index, run_pb2.STEP_STATE_FAILED, run_pb2.STEP_REASON_GATE_REJECTED, message)


def _data(
    decision: pipeline_pb2.Decision.ValueType, asked: str, decisions: Sequence[storage_pb2.DecisionRecord]
) -> bytes:
    data = Struct()
    data["decision"] = _word(decision)
    data["message"] = asked
    data["decisions"] = [
        {"decision": _word(made.decision), "by": made.by, "time": _time(made.time), "comment": made.comment}
        for made in decisions
    ]
    return data.SerializeToString(deterministic=True)


def _gate(draft: Draft, index: int) -> GatePlan:
    step = draft.plan.steps[index]
    if step.gate is None:
        raise ValueError(f"step {step.id} is no gate")
    return step.gate


def _word(decision: pipeline_pb2.Decision.ValueType) -> str:
    return pipeline_pb2.Decision.Name(decision).removeprefix("DECISION_")


def _time(micros: int) -> str:
    time = Timestamp()
    time.FromMicroseconds(micros)
    return time.ToJsonString()


def _said(what: str, comment: str) -> str:
    return f"{what}: {comment}" if comment else what


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMES_SHOWN:
        return f"{', '.join(names[:_NAMES_SHOWN])} and {len(names) - _NAMES_SHOWN} more"
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]

"""What a run within a run comes to, as news for the step that waits for it."""

from __future__ import annotations

from google.protobuf.struct_pb2 import Struct

from conveyor.core import limits
from conveyor.core.events import ChildEnded
from conveyor.core.matrix import data_of
from conveyor.state.runs import StoredRun
from conveyor.state.structs import Unrepresentable, json_bytes, plain
from conveyor.v1 import run_pb2


def child_ended(child: StoredRun) -> ChildEnded:
    """The news of a run that has ended: its id, and the data of its main steps.

    If these are too much, the step that waits for a run that succeeded fails; of other runs it gets the id alone.
    """
    head = child.head
    data, fault = Struct(), ""
    data.fields["run"].string_value = head.id
    whole = _with_results(data, child)
    try:
        size = json_bytes(plain(whole, limits.STRUCT_NESTING))
    except Unrepresentable:
        fault = f"is nested deeper than {limits.STRUCT_NESTING} levels"
    else:
        if size > limits.RESULT_DATA_BYTES:
            fault = f"has {size} bytes as JSON; the limit is {limits.RESULT_DATA_BYTES}"
    if fault and head.state == run_pb2.RUN_STATE_SUCCEEDED:
        message = f"run {head.id} succeeded, but the data of its steps together {fault}"
        return ChildEnded(head.caller_step, head.id, head.state, message, invalid=run_pb2.STEP_REASON_RESULT_TOO_LARGE)
    given = data if fault else whole
    return ChildEnded(
        head.caller_step, head.id, head.state, _message(child), given.SerializeToString(deterministic=True)
    )


def _with_results(data: Struct, child: StoredRun) -> Struct:
    whole = Struct()
    whole.CopyFrom(data)
    steps = whole.fields["steps"].struct_value
    steps.SetInParent()  # there, even if none of them has data
    plan, records = child.state.plan, child.state.steps
    for record in records[: plan.main]:
        if record is not None and record.result.data:
            steps.fields[record.step].struct_value.ParseFromString(record.result.data)
    for index, places in plan.instances.items():
        if index < plan.main:
            steps.fields[plan.steps[index].id].list_value.CopyFrom(data_of([records[place] for place in places]))
    return whole


def _message(child: StoredRun) -> str:
    """How it ended, unless it succeeded."""
    head = child.head
    if head.state == run_pb2.RUN_STATE_SUCCEEDED:
        return ""
    how = "failed" if head.state == run_pb2.RUN_STATE_FAILED else "was cancelled"
    said = (head.cancel_message if head.state == run_pb2.RUN_STATE_CANCELLED else "") or head.message
    return f"run {head.id} {how}{f': {said}' if said else ''}"[: limits.CANCEL_MESSAGE_BYTES]

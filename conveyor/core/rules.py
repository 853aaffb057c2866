"""What a finished need means: the trigger rules, in Airflow's words."""

from __future__ import annotations

from conveyor.core.model import OVERDUE
from conveyor.core.plan import Plan
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, run_pb2

STOPPED_BY_FAIL_FAST = frozenset({pipeline_pb2.TRIGGER_RULE_ALL_SUCCESS, pipeline_pb2.TRIGGER_RULE_NONE_FAILED})
"""Steps with one of these rules have nothing left to wait for once the run is to fail."""


def may_start(plan: Plan, head: storage_pb2.RunHead, states: bytes | bytearray, failed: int, index: int) -> bool:
    """Whether a queued step may go to a worker, as far as its run is concerned; `states` are those of all steps.

    A commit has no room for stopping hundreds of steps at once: until their turn comes, this keeps them back.
    """
    step = plan.steps[index]
    if step.is_instance and is_stopping(plan, states, step.matrix_step):
        return False
    if step.is_finally:
        return head.finally_deadline > OVERDUE
    if head.state != run_pb2.RUN_STATE_RUNNING:
        return False
    return not (failed and plan.fail_fast and step.rule in STOPPED_BY_FAIL_FAST)


def is_stopping(plan: Plan, states: bytes | bytearray, index: int) -> bool:
    """Whether an instance of the step's matrix failed, and the others are not to go on."""
    step = plan.steps[index]
    if step.matrix is None or not step.matrix.fail_fast or step.allow_failure:
        return False
    places = plan.instances.get(index, range(0))
    return states.find(run_pb2.STEP_STATE_FAILED, places.start, places.stop) >= 0


def judge(plan: Plan, states: bytes | bytearray, index: int) -> run_pb2.StepReason.ValueType:
    """Whether a step whose needs are all terminal runs: STEP_REASON_UNSPECIFIED if so, else why it is skipped."""
    step = plan.steps[index]
    if step.rule == pipeline_pb2.TRIGGER_RULE_ALL_DONE:
        return run_pb2.STEP_REASON_UNSPECIFIED
    failed = skipped = any_failed = False
    for need in step.needs:
        state = states[need]
        if state == run_pb2.STEP_STATE_FAILED:
            any_failed = True
            failed = failed or not plan.steps[need].allow_failure
        elif state == run_pb2.STEP_STATE_CANCELLED:
            failed = True
        elif state == run_pb2.STEP_STATE_SKIPPED:
            skipped = True
    if step.rule == pipeline_pb2.TRIGGER_RULE_ONE_FAILED:
        return run_pb2.STEP_REASON_UNSPECIFIED if any_failed else run_pb2.STEP_REASON_NO_NEED_FAILED
    if failed:
        return run_pb2.STEP_REASON_NEED_FAILED
    if skipped and step.rule == pipeline_pb2.TRIGGER_RULE_ALL_SUCCESS:
        return run_pb2.STEP_REASON_NEED_SKIPPED
    return run_pb2.STEP_REASON_UNSPECIFIED


def outcome(
    plan: Plan, states: bytes | bytearray
) -> tuple[run_pb2.RunState.ValueType, run_pb2.RunReason.ValueType, int]:
    """How a run whose steps are all terminal ends, why, and the step that decided it (-1: none)."""
    cancelled = -1
    # Instances of a matrix count through their step.
    for index, state in enumerate(states[: plan.declared]):
        if state == run_pb2.STEP_STATE_FAILED and not plan.steps[index].allow_failure:
            return run_pb2.RUN_STATE_FAILED, run_pb2.RUN_REASON_STEP_FAILED, index
        if state == run_pb2.STEP_STATE_CANCELLED and not plan.steps[index].allow_failure and cancelled < 0:
            cancelled = index
    if cancelled >= 0:
        return run_pb2.RUN_STATE_FAILED, run_pb2.RUN_REASON_STEP_CANCELLED, cancelled
    return run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_REASON_UNSPECIFIED, -1

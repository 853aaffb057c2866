"""Stored runs as the API shows them."""

from __future__ import annotations

import pytest
from google.protobuf.struct_pb2 import Struct

from conveyor.core import limits
from conveyor.state.views import SKIP_MESSAGES, basic_run, etag, full_run, step_run
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, resource_pb2, result_pb2, run_pb2, run_service_pb2

SECOND = 1_000_000
TOKEN = "token-that-nobody-may-see"


def head(steps: int = 2, **fields: object) -> storage_pb2.RunHead:
    return storage_pb2.RunHead(
        **{  # type: ignore[arg-type]
            "namespace": "default",
            "id": "r",
            "pipeline": "main",
            "pipeline_generation": 3,
            "definition": "app",
            "resource": "web",
            "resource_generation": 4,
            "state": run_pb2.RUN_STATE_RUNNING,
            "create_time": 7 * SECOND + 1,
            "update_time": 9 * SECOND,
            "step_states": bytes([run_pb2.STEP_STATE_RUNNING] * steps),
            "step_reasons": bytes(steps),
            **fields,
        }
    )


def spec(steps: int = 2) -> storage_pb2.RunSpec:
    pipeline = pipeline_pb2.Pipeline(name="main")
    for i in range(steps - 1):
        pipeline.steps.add(id=f"s{i}", driver="build")
    pipeline.finally_steps.add(id="end", driver="tell", allow_failure=True)
    return storage_pb2.RunSpec(pipeline=pipeline, resource=resource_pb2.Resource(name="web"))


def record(step: str, **fields: object) -> storage_pb2.StepRecord:
    return storage_pb2.StepRecord(step=step, token=TOKEN, session="session", **fields)  # type: ignore[arg-type]


def test_a_basic_run_has_all_of_the_head_that_is_public() -> None:
    stored = head(
        reason=run_pb2.RUN_REASON_CANCEL_REQUESTED,
        message="why",
        labels={"a": "b"},
        start_time=8 * SECOND,
        end_time=9 * SECOND,
        parent_run="p",
        cancel_message="stop",
        deadline=10 * SECOND,
        caller_run="c",
        caller_step="deploy",
        depth=1,
        schedule="nightly",
        schedule_time=500,
        lock=storage_pb2.LockClaim(key="prod", limit=1),
        step_reasons=bytes([run_pb2.STEP_REASON_NO_WORKER, 0]),
    )
    run = basic_run(stored, 255)
    own = "state reason message labels parent_run cancel_message caller_run caller_step depth schedule"
    same = f"namespace id pipeline pipeline_generation definition resource resource_generation {own}"
    for name in same.split():
        assert getattr(run, name) == getattr(stored, name), name
    for name in ("create_time", "start_time", "end_time", "update_time", "deadline", "schedule_time"):
        assert getattr(run, name).ToMicroseconds() == getattr(stored, name), name
    assert (run.etag, run.lock) == (etag(255), "prod") == ("ff", "prod")
    assert list(run.step_states) == [run_pb2.STEP_STATE_RUNNING] * 2
    only_full = {"steps", "pipeline_snapshot", "resource_snapshot", "params", "wait"}
    assert {field.name for field, _ in run.ListFields()} == set(run.DESCRIPTOR.fields_by_name) - only_full


def test_times_that_are_not_there_are_not_set() -> None:
    run = basic_run(head(), 1)
    assert [name for name in ("start_time", "end_time", "deadline") if run.HasField(name)] == []  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", SKIP_MESSAGES)
def test_a_skipped_step_says_why(reason: int) -> None:
    step = pipeline_pb2.Step(id="a", driver="build")
    view = step_run("r", step, False, run_pb2.STEP_STATE_SKIPPED, reason, None)
    assert view.message == SKIP_MESSAGES[reason]
    assert (view.run, view.step, view.driver, view.max_attempts) == ("r", "a", "build", 1)


def test_every_reason_for_a_skip_has_words() -> None:
    comments = [value.name for value in run_pb2.StepReason.DESCRIPTOR.values if 10 <= value.number < 20]
    assert {run_pb2.StepReason.Name(reason) for reason in SKIP_MESSAGES} == set(comments)  # type: ignore[arg-type]


def test_the_attempts_that_a_step_has() -> None:
    def attempts(step: pipeline_pb2.Step) -> int:
        return step_run("r", step, False, run_pb2.STEP_STATE_PENDING, 0, None).max_attempts

    assert attempts(pipeline_pb2.Step()) == 1
    assert attempts(pipeline_pb2.Step(retry={})) == 3
    assert attempts(pipeline_pb2.Step(retry={"max_attempts": 7})) == 7


def test_a_step_shows_its_record_but_never_a_token() -> None:
    data = Struct()
    data.update({"wheel": "x.whl"})
    stored = record(
        "s0",
        message="no worker of driver build is connected",
        attempt=2,
        queue_time=1 * SECOND,
        start_time=2 * SECOND,
        next_time=5 * SECOND,
        inherited=True,
        result={
            "outcome": result_pb2.OUTCOME_FAILED,
            "message": "m",
            "data": data.SerializeToString(),
            "retryable": False,
        },
        attempts=[
            {
                "number": 1,
                "worker": "w",
                "transport": run_pb2.TRANSPORT_GRPC,
                "start_time": 2 * SECOND,
                "end_time": 3 * SECOND,
                "state": run_pb2.STEP_STATE_FAILED,
                "reason": run_pb2.STEP_REASON_DRIVER_FAILED,
                "message": "boom",
                "token": TOKEN,
                "late_results": [
                    {"time": 4 * SECOND, "disposition": result_pb2.DISPOSITION_STALE_ATTEMPT, "message": "l"}
                ],
            }
        ],
    )
    step = pipeline_pb2.Step(id="s0", driver="build")
    view = step_run("r", step, False, run_pb2.STEP_STATE_RUNNING, 0, stored)
    assert (view.message, view.attempt, view.inherited) == (stored.message, 2, True)
    assert (view.queue_time.seconds, view.start_time.seconds, view.next_time.seconds) == (1, 2, 5)
    assert not view.HasField("end_time")
    assert (view.result.outcome, view.result.message, view.result.retryable) == (result_pb2.OUTCOME_FAILED, "m", False)
    assert view.result.HasField("retryable")
    assert view.result.data == data
    (attempt,) = view.attempts
    assert (attempt.number, attempt.worker, attempt.message, attempt.end_time.seconds) == (1, "w", "boom", 3)
    assert attempt.late_results[0].time.seconds == 4
    assert TOKEN.encode() not in view.SerializeToString()


def test_the_next_time_is_that_of_an_attempt_not_of_a_wait() -> None:
    step = pipeline_pb2.Step(id="s0")
    stored = record("s0", next_time=SECOND)
    shown = [
        state
        for state in run_pb2.StepState.values()
        if step_run("r", step, False, state, 0, stored).HasField("next_time")
    ]
    assert shown == [run_pb2.STEP_STATE_RUNNING, run_pb2.STEP_STATE_RETRYING]


def test_a_full_run_has_its_steps_in_order_and_its_snapshots() -> None:
    run = full_run(head(), 1, spec(), [record("s0", attempt=1), None])
    assert [(step.step, step.finally_step, step.allow_failure) for step in run.steps] == [
        ("s0", False, False),
        ("end", True, True),
    ]
    assert run.pipeline_snapshot == spec().pipeline
    assert run.resource_snapshot == spec().resource
    assert not run.HasField("params")


def evaluated(size: int = 1) -> storage_pb2.StepRecord:
    """The record of a step whose expressions came to so many bytes."""
    params = Struct()
    params.update({"k": "x" * size})
    selector = pipeline_pb2.LabelSelector(match_labels={"os": "arm64"})
    return storage_pb2.StepRecord(params=params.SerializeToString(), worker_selector=selector)


def test_a_full_run_shows_what_came_of_expressions() -> None:
    run = full_run(head(), 1, spec(), [evaluated(), None])
    assert (run.steps[0].params["k"], run.steps[0].worker_selector.match_labels) == ("x", {"os": "arm64"})
    assert not run.steps[1].HasField("params")
    assert not run.steps[1].HasField("worker_selector")


def test_a_run_that_would_not_fit_leaves_out_what_came_of_expressions() -> None:
    records = [evaluated(limits.STEP_PARAMS_BYTES // 2)] * limits.STEPS
    run = full_run(head(limits.STEPS), 1, spec(limits.STEPS), records)
    assert run.ByteSize() < limits.MESSAGE_BYTES
    assert not any(step.HasField("params") or step.HasField("worker_selector") for step in run.steps)


def test_the_largest_run_fits_into_a_message_and_keeps_its_data() -> None:
    text = "ß" * (limits.RESULT_MESSAGE_BYTES // 2)
    data = Struct()
    data.update({"k": "v" * 400})
    attempt = {"number": 1, "worker": "w" * 253, "message": text, "state": run_pb2.STEP_STATE_FAILED}
    attempt |= {"late_results": [{"message": text}] * 5, "start_time": SECOND, "end_time": SECOND}
    big = storage_pb2.StepRecord(
        message=text,
        result={"outcome": result_pb2.OUTCOME_FAILED, "message": text, "data": data.SerializeToString()},
        attempts=[attempt] * 10,
    )
    full = spec(limits.STEPS)
    full.pipeline.context.update({"k": "x" * (limits.PIPELINE_BYTES - 30_000)})
    full.resource.spec.update({"k": "x" * limits.SPEC_BYTES})
    run = full_run(head(limits.STEPS), 1, full, [big] * limits.STEPS)
    response = run_service_pb2.WatchRunResponse(snapshot=run_pb2.RunSnapshot(runs=[run]))
    assert response.ByteSize() < limits.MESSAGE_BYTES
    assert all(step.result.data == data for step in run.steps)
    assert all(step.message.endswith("…") for step in run.steps)
    assert all(step.attempts for step in run.steps)


def test_the_largest_run_of_gates_fits_into_a_message() -> None:
    made = {"by": "b" * limits.DECIDED_BY_BYTES, "comment": "c" * limits.DECISION_COMMENT_BYTES, "time": SECOND}
    asked = storage_pb2.StepRecord(message="m" * 4096, decisions=[made] * limits.GATE_APPROVALS)
    run = full_run(head(limits.STEPS), 1, spec(limits.STEPS), [asked] * limits.STEPS)
    assert run.ByteSize() < limits.MESSAGE_BYTES
    assert all(len(step.decisions) == 1 for step in run.steps)
    few = full_run(head(), 1, spec(), [record("s0", decisions=[made] * limits.GATE_APPROVALS), None])
    assert [each.comment for each in few.steps[0].decisions] == [made["comment"]] * limits.GATE_APPROVALS


def test_a_usual_run_is_not_shortened() -> None:
    text = "x" * limits.RESULT_MESSAGE_BYTES
    run = full_run(head(), 1, spec(), [record("s0", message=text, attempts=[{"message": text}]), None])
    assert run.steps[0].message == run.steps[0].attempts[0].message == text

"""Stored records as the public API shows them. Tokens never appear.

`basic_run` runs on every change of every run, hence its plain form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.core import limits
from conveyor.core.matrix import instance_id
from conveyor.core.plan import DEFAULT_MAX_ATTEMPTS
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, result_pb2, run_pb2

SKIP_MESSAGES: dict[int, str] = {
    run_pb2.STEP_REASON_NEED_FAILED: "a step that it needs failed or was cancelled",
    run_pb2.STEP_REASON_NEED_SKIPPED: "a step that it needs was skipped",
    run_pb2.STEP_REASON_NO_NEED_FAILED: "none of the steps that it needs failed, and it runs only after a failure",
    run_pb2.STEP_REASON_FAIL_FAST: "another step failed, and the pipeline stops at the first failure",
    run_pb2.STEP_REASON_RUN_CANCELLED: "the run was cancelled before it started",
    run_pb2.STEP_REASON_RUN_TIMED_OUT: "the run timed out before it started",
    run_pb2.STEP_REASON_NOT_REPORTED: "its driver did not answer in time",
    run_pb2.STEP_REASON_CONDITION_FALSE: "its condition was false",
    run_pb2.STEP_REASON_NOT_DECIDED: "nobody decided before all else had ended",
    run_pb2.STEP_REASON_INSTANCE_FAIL_FAST: "another instance of its matrix failed",
}
"""What a step without a record says about why it never ran."""

_TIMED = (run_pb2.STEP_STATE_RUNNING, run_pb2.STEP_STATE_RETRYING)


class Instance(NamedTuple):
    """What tells an instance of a matrix from its step: its id, and its values, a serialized Struct."""

    id: str
    values: bytes


_FULL_RUN_BYTES = 3 << 20
_SHORT_TEXT = 256


def etag(mod_revision: int) -> str:
    """The etag of what was last changed in this revision."""
    return f"{mod_revision:x}"


def timestamp(micros: int) -> Timestamp | None:
    """The time, or None for 0."""
    if not micros:
        return None
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def basic_run(head: storage_pb2.RunHead, mod_revision: int) -> run_pb2.Run:
    """The run without steps, snapshots and parameters."""
    # Assignments: this takes 4 µs, a constructor with keywords 8.
    run = run_pb2.Run()
    run.namespace = head.namespace
    run.id = head.id
    run.pipeline = head.pipeline
    run.pipeline_generation = head.pipeline_generation
    run.definition = head.definition
    run.resource = head.resource
    run.resource_generation = head.resource_generation
    run.state = head.state
    if head.reason:
        run.reason = head.reason
    if head.message:
        run.message = head.message
    if head.labels:
        run.labels.update(head.labels)
    _set_time(run.create_time, head.create_time)
    if head.start_time:
        _set_time(run.start_time, head.start_time)
    if head.end_time:
        _set_time(run.end_time, head.end_time)
    _set_time(run.update_time, head.update_time)
    if head.parent_run:
        run.parent_run = head.parent_run
    run.etag = f"{mod_revision:x}"
    run.step_states.extend(head.step_states)  # type: ignore[arg-type]  # each byte is a state
    if head.cancel_message:
        run.cancel_message = head.cancel_message
    if head.deadline:
        _set_time(run.deadline, head.deadline)
    if head.caller_run:
        run.caller_run = head.caller_run
        run.caller_step = head.caller_step
        run.depth = head.depth
    if head.schedule:
        run.schedule = head.schedule
        _set_time(run.schedule_time, head.schedule_time)
    if head.lock.key:
        run.lock = head.lock.key
    return run


def step_run(
    run: str,
    step: pipeline_pb2.Step,
    is_finally: bool,
    state: int,
    reason: int,
    record: storage_pb2.StepRecord | None,
    instance: Instance | None = None,
) -> run_pb2.StepRun:
    """One step of a run. `state` and `reason` are the head's, `record` is None for a step that never was QUEUED.

    `instance`: it is not the step itself, but one of the instances of its matrix.
    """
    view = run_pb2.StepRun(
        run=run,
        step=step.id,
        driver=step.driver,
        state=state,  # type: ignore[arg-type]
        reason=reason,  # type: ignore[arg-type]
        max_attempts=_max_attempts(step),
        allow_failure=step.allow_failure,
        finally_step=is_finally,
    )
    if instance is not None:
        view.step, view.matrix_step = instance.id, step.id
        view.matrix.ParseFromString(instance.values)
    if record is None:
        if state == run_pb2.STEP_STATE_SKIPPED:
            view.message = SKIP_MESSAGES.get(reason, "")
        return view
    view.message = record.message or (SKIP_MESSAGES.get(reason, "") if state == run_pb2.STEP_STATE_SKIPPED else "")
    view.attempt = record.attempt
    view.inherited = record.inherited
    view.lock = record.lock.key
    view.instances = len(record.instances)
    _set_time(view.queue_time, record.queue_time)
    _set_time(view.start_time, record.start_time)
    _set_time(view.end_time, record.end_time)
    if state in _TIMED or reason == run_pb2.STEP_REASON_AWAITING_DECISION:
        _set_time(view.next_time, record.next_time)
    if record.HasField("result"):
        view.result.CopyFrom(_result(record.result))
    view.child_run = record.child_run
    view.attempts.extend(_attempt(attempt) for attempt in record.attempts)
    view.decisions.extend(_decision(made) for made in record.decisions)
    return view


def full_run(
    head: storage_pb2.RunHead,
    mod_revision: int,
    spec: storage_pb2.RunSpec,
    records: Sequence[storage_pb2.StepRecord | None],
) -> run_pb2.Run:
    """The run with all that belongs to it; `records` are in the order of the run's steps.

    It always fits into a message: of runs with very many long texts, what came of expressions is left out first, then
    the attempts lose theirs.
    """
    run = basic_run(head, mod_revision)
    pipeline = spec.pipeline
    steps = [*pipeline.steps, *pipeline.finally_steps]
    main = len(pipeline.steps)
    run.steps.extend(
        step_run(head.id, step, i >= main, head.step_states[i], head.step_reasons[i], records[i])
        for i, step in enumerate(steps)
    )
    run.steps.extend(_instances(head, steps, main, records))
    for view, record in zip(run.steps, records, strict=True):
        if record is not None:
            _show_evaluated(view, record)
    run.pipeline_snapshot.CopyFrom(pipeline)
    run.resource_snapshot.CopyFrom(spec.resource)
    if spec.params:
        run.params.ParseFromString(spec.params)
    if run.ByteSize() > _FULL_RUN_BYTES:
        _shorten(run)
    return run


def set_queue_wait(wait: run_pb2.StepWait, record: storage_pb2.StepRecord) -> None:
    """Since when, and until when, a step waits that is QUEUED."""
    _set_time(wait.since, record.ready_time)
    if record.next_time:
        _set_time(wait.until, record.next_time)


def _instances(
    head: storage_pb2.RunHead,
    steps: Sequence[pipeline_pb2.Step],
    main: int,
    records: Sequence[storage_pb2.StepRecord | None],
) -> Iterator[run_pb2.StepRun]:
    """The instances of all matrices, in the order of expansion."""
    expanded = [
        (record, i) for i, record in enumerate(records[: len(steps)]) if record is not None and record.instances
    ]
    for matrix, i in sorted(expanded, key=lambda each: each[0].first_instance):
        for place, values in enumerate(matrix.instances):
            at = matrix.first_instance + place
            instance = Instance(instance_id(matrix.step, place), values)
            yield step_run(
                head.id, steps[i], i >= main, head.step_states[at], head.step_reasons[at], records[at], instance
            )


def seen_workers(record: storage_pb2.DriverRecord) -> list[run_pb2.SeenWorker]:
    """The workers of a driver that were seen last, latest first."""
    return [run_pb2.SeenWorker(name=seen.name, time=timestamp(seen.time)) for seen in record.last_workers]


def _max_attempts(step: pipeline_pb2.Step) -> int:
    if not step.HasField("retry"):
        return 1
    return step.retry.max_attempts if step.retry.HasField("max_attempts") else DEFAULT_MAX_ATTEMPTS


def _set_time(target: Timestamp, micros: int) -> None:
    if micros:
        target.seconds = micros // 1_000_000
        target.nanos = micros % 1_000_000 * 1000


def _result(stored: storage_pb2.StoredResult) -> result_pb2.DriverResult:
    result = result_pb2.DriverResult(outcome=stored.outcome, message=stored.message)
    if stored.data:
        result.data.CopyFrom(struct_pb2.Struct.FromString(stored.data))
    if stored.HasField("retryable"):
        result.retryable = stored.retryable
    return result


def _attempt(record: storage_pb2.AttemptRecord) -> run_pb2.Attempt:
    return run_pb2.Attempt(
        number=record.number,
        worker=record.worker,
        transport=record.transport,
        start_time=timestamp(record.start_time),
        end_time=timestamp(record.end_time),
        state=record.state,
        reason=record.reason,
        message=record.message,
        child_run=record.child_run,
        late_results=[
            run_pb2.LateResult(
                time=timestamp(late.time), disposition=late.disposition, outcome=late.outcome, message=late.message
            )
            for late in record.late_results
        ],
    )


def _decision(made: storage_pb2.DecisionRecord) -> run_pb2.GateDecision:
    return run_pb2.GateDecision(decision=made.decision, by=made.by, time=timestamp(made.time), comment=made.comment)


def _show_evaluated(view: run_pb2.StepRun, record: storage_pb2.StepRecord) -> None:
    """Add what came of the step's expressions."""
    if record.params:
        view.params.ParseFromString(record.params)
    if record.HasField("worker_selector"):
        view.worker_selector.CopyFrom(record.worker_selector)


def _shorten(run: run_pb2.Run) -> None:
    """Leave out what came of expressions, then texts of attempts, then those of steps, then attempts, until it fits."""
    for step in run.steps:
        step.ClearField("params")
        step.ClearField("worker_selector")
    if run.ByteSize() <= _FULL_RUN_BYTES:
        return
    for step in run.steps:
        for attempt in step.attempts:
            attempt.message = _cut(attempt.message)
            del attempt.late_results[:]
    if run.ByteSize() <= _FULL_RUN_BYTES:
        return
    for step in run.steps:
        step.message = _cut(step.message)
        for made in step.decisions:
            made.comment = _cut(made.comment)
        if step.HasField("result"):
            step.result.message = _cut(step.result.message)
    if run.ByteSize() <= limits.MESSAGE_BYTES - _FULL_RUN_BYTES // 16:
        return
    for step in run.steps:
        del step.attempts[:-1]
        del step.decisions[:-1]


def _cut(text: str) -> str:
    return text if len(text) <= _SHORT_TEXT else text[: _SHORT_TEXT - 1] + "…"

"""The columns of lists."""

from collections.abc import Mapping
from datetime import datetime
from typing import cast

from google.protobuf.message import Message

from conveyor.cli.encode import enum_name
from conveyor.cli.instances import label
from conveyor.cli.output import Row
from conveyor.cli.times import age, length, upcoming
from conveyor.cli.waiting import waiting
from conveyor.v1.driver_pb2 import Driver, Worker
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run, StepRun, StepState
from conveyor.v1.schedule_pb2 import Schedule

DEFINITIONS = ("NAME", "GENERATION", "CHANGED", "DESCRIPTION")
PIPELINES = ("NAME", "STEPS", "ORDER", "DEFINITION", "GENERATION", "CHANGED", "DESCRIPTION")
RESOURCES = ("NAME", "PIPELINE", "GENERATION", "CHANGED", "LABELS")
SCHEDULES = ("NAME", "CRON", "TIME ZONE", "RESOURCE", "NEXT", "LAST", "LAST RUN", "MESSAGE")
RUNS = ("ID", "PIPELINE", "RESOURCE", "STATE", "STEPS", "CREATED", "DURATION", "REASON", "MESSAGE")
DRIVERS = ("NAME", "WORKERS", "BUSY", "SLOTS", "TRANSPORT", "LAST SEEN")
STEPS = ("STEP", "DRIVER", "STATE", "ATTEMPT", "DURATION", "REASON", "MESSAGE")

UNKNOWN = "-"

_TERMINAL = frozenset(
    {
        StepState.STEP_STATE_SUCCEEDED,
        StepState.STEP_STATE_FAILED,
        StepState.STEP_STATE_CANCELLED,
        StepState.STEP_STATE_SKIPPED,
    }
)


def definition_row(message: Message, now: datetime) -> Row:
    """The row of a definition."""
    it = cast(ResourceDefinition, message)
    return it.name, str(it.generation), age(it, "update_time", now), it.description


def pipeline_row(message: Message, now: datetime) -> Row:
    """The row of a pipeline."""
    it = cast(Pipeline, message)
    steps = str(len(it.steps) + len(it.finally_steps))
    order = enum_name(it, "order") or "LIST"
    return it.name, steps, order, it.definition, str(it.generation), age(it, "update_time", now), it.description


def resource_row(message: Message, now: datetime) -> Row:
    """The row of a resource."""
    it = cast(Resource, message)
    return f"{it.definition}/{it.name}", it.pipeline, str(it.generation), age(it, "update_time", now), labels(it)


def schedule_row(message: Message, now: datetime) -> Row:
    """The row of a schedule."""
    it = cast(Schedule, message)
    return (
        it.name,
        it.cron,
        it.time_zone or "UTC",
        f"{it.definition}/{it.resource}",
        "paused" if it.paused else upcoming(it.status, "next_time", now),
        age(it.status, "last_time", now),
        it.status.last_run,
        it.status.last_error,
    )


def run_row(message: Message, now: datetime) -> Row:
    """The row of a run."""
    it = cast(Run, message)
    steps = f"{sum(state in _TERMINAL for state in it.step_states)}/{len(it.step_states)}"
    return (
        it.id,
        it.pipeline,
        f"{it.definition}/{it.resource}",
        enum_name(it, "state"),
        steps,
        age(it, "create_time", now),
        length(it, now),
        enum_name(it, "reason"),
        it.message,
    )


def driver_row(message: Message, now: datetime) -> Row:
    """The row of a driver."""
    it = cast(Driver, message)
    transports = {enum_name(worker, "transport") for worker in it.workers}
    # 0 of a worker means that nobody knows, as over JetStream.
    slots = sum(worker.slots for worker in it.workers)
    return (
        it.name,
        str(len(it.workers)),
        str(sum(worker.busy for worker in it.workers)),
        str(slots) if slots or not it.workers else UNKNOWN,
        ", ".join(sorted(transports)),
        # The time is that of the last connect or disconnect.
        "now" if it.workers else age(it, "last_seen_time", now),
    )


def step_row(step: StepRun, now: datetime) -> Row:
    """The row of a step of a run."""
    name = label(step)
    if step.matrix_step:
        name = f"└ {name}"
    elif step.finally_step:
        name = f"{name} (finally)"
    return (
        name,
        step.driver,
        enum_name(step, "state"),
        attempt(step),
        length(step, now),
        enum_name(step, "reason"),
        step_message(step, now),
    )


def attempt(step: StepRun) -> str:
    """Which attempt of how many it is; empty before the first."""
    if not step.attempt:
        return ""
    return f"{step.attempt}/{max(step.max_attempts, step.attempt)}"


def step_message(step: StepRun, now: datetime, otherwise: str = "") -> str:
    """What there is to say about a step. `otherwise` stands for a message that there is not."""
    message = step.message or step.result.message or otherwise
    marks = [
        mark
        for mark, holds in (
            ("allowed to fail", step.allow_failure and step.state == StepState.STEP_STATE_FAILED),
            (f"{step.instances} {'instance' if step.instances == 1 else 'instances'}", step.instances),
            ("taken over", step.inherited),
            (f"run {step.child_run}", step.child_run and step.child_run not in message),
            (waiting(step, now), step.state != StepState.STEP_STATE_PENDING),
        )
        if mark and holds
    ]
    if step.state == StepState.STEP_STATE_PENDING and not message:
        return waiting(step, now)
    if not marks or not message:
        return message or ", ".join(marks)
    return f"{message} ({', '.join(marks)})"


def labels(message: Pipeline | Resource | ResourceDefinition | Schedule | Run | Worker) -> str:
    """Labels in one line."""
    return label_text(message.labels)


def label_text(labels: Mapping[str, str]) -> str:
    """Keys and values in one line."""
    return ", ".join(f"{key}={labels[key]}" for key in sorted(labels))

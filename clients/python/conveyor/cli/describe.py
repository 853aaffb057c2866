"""What `get` shows a person of one object."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from google.protobuf.message import Message

from conveyor.cli.drawing.notes import doing, lock_note, matrix_note, selector_note
from conveyor.cli.durations import show_duration
from conveyor.cli.encode import encode, enum_name
from conveyor.cli.gates import decisions, open_block
from conveyor.cli.instances import in_order
from conveyor.cli.objects import starts_no_run
from conveyor.cli.output import block, table
from conveyor.cli.tables import RUNS, STEPS, UNKNOWN, label_text, labels, run_row, step_row
from conveyor.cli.terminal import harmless, one_line
from conveyor.cli.times import due, length, moment, now
from conveyor.cli.waiting import lock_wait
from conveyor.cli.yaml_writer import to_yaml
from conveyor.v1.driver_pb2 import Driver
from conveyor.v1.pipeline_pb2 import Lock, Pipeline, Step
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run
from conveyor.v1.schedule_pb2 import Schedule

_PIPELINE_STEPS = ("STEP", "DRIVER", "WORKERS", "NEEDS", "RULE", "TIMEOUT", "ATTEMPTS", "MATRIX", "LOCK", "DESCRIPTION")
_WORKERS = ("WORKER", "TRANSPORT", "BUSY", "SLOTS", "DEFINITIONS", "LABELS", "STATE", "CONNECTED", "PROGRAM")
# How late a run of a schedule may start that does not say it, in seconds.
_DEADLINE = 300


@dataclass(slots=True)
class Related:
    """The runs that retry a run, and those that its steps started; the newest first."""

    retries: Sequence[Run] = ()
    children: Sequence[Run] = ()


def describe(message: Message, at: datetime, related: Related | None = None) -> str:
    """The text for any kind of object."""
    if isinstance(message, Run):
        return describe_run(message, at, related or Related())
    if isinstance(message, Driver):
        return _driver(message, at)
    if isinstance(message, Pipeline):
        return _pipeline(message, at)
    if isinstance(message, Resource):
        return _resource(message, at)
    if isinstance(message, Schedule):
        return _schedule(message, at)
    return _definition(cast(ResourceDefinition, message), at)


def describe_run(run: Run, at: datetime, related: Related) -> str:
    """A run: what and when, then its steps, and the runs that they started."""
    head = block(
        [
            ("Run", run.id),
            ("Pipeline", run.pipeline and f"{run.pipeline} (generation {run.pipeline_generation})"),
            ("Resource", f"{run.definition}/{run.resource} (generation {run.resource_generation})"),
            ("State", enum_name(run, "state")),
            ("Reason", enum_name(run, "reason")),
            ("Message", run.message),
            ("Waits for", _turn(run)),
            ("Lock", run.lock),
            ("Cancelled", run.cancel_message if run.cancel_message != run.message else ""),
            ("Labels", labels(run)),
            ("Created", moment(run, "create_time", at)),
            ("Started", moment(run, "start_time", at)),
            ("Ended", moment(run, "end_time", at)),
            ("Duration", length(run, at)),
            ("Step of", run.caller_run and f"run {run.caller_run}, step {run.caller_step}"),
            ("Schedule", run.schedule),
            ("Was due", moment(run, "schedule_time", at)),
            ("Retry of", run.parent_run),
            ("Retried as", ", ".join(f"{retry.id} ({enum_name(retry, 'state')})" for retry in related.retries)),
        ]
    )
    head += _values("Params", encode(run).get("params"))
    if not run.steps:
        return head
    parts = [head, table(STEPS, [step_row(step, at) for step in in_order(run.steps)])]
    if related.children:
        rows = [(child.caller_step, *run_row(child, at)) for child in reversed(related.children)]
        parts.append(f"Runs of its steps:\n{table(('STEP', *RUNS), rows)}")
    parts += [part for part in (decisions(run, at), "\n".join(open_block(run))) if part]
    return "\n\n".join(parts)


def _turn(run: Run) -> str:
    """Whose turn it is before a run that waits for older ones, or who has its lock."""
    ahead = run.wait.ahead
    if run.wait.HasField("lock"):
        return f"lock {run.wait.lock.key}, {lock_wait(run.wait.lock)}"
    if not ahead:
        return ""
    return f"run {run.wait.run}, and {ahead - 1} more before it" if ahead > 1 else f"run {run.wait.run}"


def summary(run: Run) -> str:
    """How a run ended, in one line."""
    parts = [f"run {run.id} {enum_name(run, 'state')}"]
    took = length(run, now())
    if took:
        parts.append(f" in {took}")
    if run.message:
        parts.append(f": {one_line(run.message)}")
    return "".join(parts)


def _driver(driver: Driver, at: datetime) -> str:
    head = block(
        [
            ("Driver", driver.name),
            ("First seen", moment(driver, "create_time", at)),
            ("Last seen", "now" if driver.workers else moment(driver, "last_seen_time", at)),
            ("Last workers", "" if driver.workers else _last_workers(driver, at)),
            ("Workers", str(len(driver.workers))),
        ]
    )
    if not driver.workers:
        return head
    rows = [
        (
            worker.name,
            enum_name(worker, "transport"),
            str(worker.busy),
            str(worker.slots or UNKNOWN),
            ", ".join(worker.definitions),
            labels(worker),
            "draining" if worker.draining else "",
            moment(worker, "connect_time", at),
            worker.sdk,
        )
        for worker in driver.workers
    ]
    return f"{head}\n\n{table(_WORKERS, rows)}"


def _last_workers(driver: Driver, at: datetime) -> str:
    return ", ".join(f"{worker.name} {moment(worker, 'time', at)}" for worker in driver.last_workers)


def _pipeline(pipeline: Pipeline, at: datetime) -> str:
    head = block(
        [
            ("Pipeline", pipeline.name),
            ("Description", pipeline.description),
            ("Definition", pipeline.definition),
            ("Order", enum_name(pipeline, "order") or "LIST"),
            ("On failure", enum_name(pipeline, "failure_policy") or "FAIL_FAST"),
            ("Lock", _lock(pipeline.lock) if pipeline.HasField("lock") else ""),
            *_common(pipeline, at),
        ]
    )
    rows = [_pipeline_step(step, "") for step in pipeline.steps]
    rows += [_pipeline_step(step, "finally") for step in pipeline.finally_steps]
    text = f"{head}\n\n{table(_PIPELINE_STEPS, rows)}"
    return text + _values("Context", encode(pipeline).get("context"))


def _pipeline_step(step: Step, rule: str) -> tuple[str, ...]:
    return (
        step.id,
        doing(step),
        selector_note(step.worker_selector),
        ", ".join(step.needs),
        rule or enum_name(step, "trigger_rule"),
        _timeout(step),
        str(step.retry.max_attempts if step.retry.HasField("max_attempts") else 3) if step.HasField("retry") else "",
        matrix_note(step.matrix) if step.HasField("matrix") else "",
        _lock(step.lock) if step.HasField("lock") else "",
        step.description,
    )


def _lock(lock: Lock) -> str:
    return lock_note(lock).removeprefix("lock ")


def _timeout(step: Step) -> str:
    own = step.gate if step.HasField("gate") else step
    return show_duration(own.timeout.ToTimedelta().total_seconds()) if own.HasField("timeout") else ""


def _resource(resource: Resource, at: datetime) -> str:
    head = block(
        [
            ("Resource", f"{resource.definition}/{resource.name}"),
            ("Pipeline", resource.pipeline),
            ("On change", "starts no run" if starts_no_run(resource) else ""),
            *_common(resource, at),
        ]
    )
    values = encode(resource)
    return head + _values("Spec", values.get("spec")) + _values("Params", values.get("params"))


def _schedule(schedule: Schedule, at: datetime) -> str:
    status = schedule.status
    head = block(
        [
            ("Schedule", schedule.name),
            ("Description", schedule.description),
            ("Resource", f"{schedule.definition}/{schedule.resource}"),
            ("Pipeline", schedule.pipeline),
            ("Cron", schedule.cron),
            ("Time zone", schedule.time_zone or "UTC"),
            ("Missed", _missed(schedule)),
            ("Overlap", enum_name(schedule, "overlap") or "SKIP"),
            ("Run labels", label_text(schedule.run_labels)),
            ("Next", "paused" if schedule.paused else due(status, "next_time", at)),
            ("Last", moment(status, "last_time", at)),
            ("Last run", status.last_run),
            ("Under way", ", ".join(status.active_runs)),
            ("Error", status.last_error),
            ("Error at", moment(status, "last_error_time", at)),
            ("Runs", _counts(schedule)),
            *_common(schedule, at),
        ]
    )
    return head + _values("Params", encode(schedule).get("params"))


def _missed(schedule: Schedule) -> str:
    policy = enum_name(schedule, "missed") or "RUN_ONCE"
    if policy == "SKIP":
        return policy
    late = schedule.deadline.ToTimedelta().total_seconds() if schedule.HasField("deadline") else _DEADLINE
    return f"{policy} (at most {show_duration(late)} late)"


def _counts(schedule: Schedule) -> str:
    status = schedule.status
    counts = {
        "started": status.started,
        "skipped": status.skipped,
        "missed": status.missed,
        "refused": status.failed,
    }
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count or word == "started")


def _definition(definition: ResourceDefinition, at: datetime) -> str:
    head = block(
        [
            ("Definition", definition.name),
            ("Description", definition.description),
            *_common(definition, at),
        ]
    )
    return head + _values("Schema", encode(definition).get("schema"))


def _common(message: Pipeline | Resource | ResourceDefinition | Schedule, at: datetime) -> list[tuple[str, str]]:
    return [
        ("Labels", labels(message)),
        ("Generation", str(message.generation)),
        ("Created", moment(message, "create_time", at)),
        ("Changed", moment(message, "update_time", at)),
    ]


def _values(title: str, value: object) -> str:
    if not value:
        return ""
    lines = "\n".join(f"  {harmless(line)}" for line in to_yaml(value).splitlines())
    return f"\n\n{title}:\n{lines}"

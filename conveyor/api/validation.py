"""Which rules each request must keep: one table. All that is broken is reported at once.

What can only be said with the store at hand (does the pipeline exist, does the spec fit its schema) is not here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.message import Message

from conveyor.api import actions, checks
from conveyor.api.checks import DAY, SECOND, Check, Problems
from conveyor.api.selector_checks import label_selector
from conveyor.core import limits
from conveyor.core.call_check import check_calls
from conveyor.core.graph_check import check_graph
from conveyor.core.lock_check import check_locks
from conveyor.core.matrix_check import check_matrix
from conveyor.core.params import check_params
from conveyor.expressions.check import check_expressions
from conveyor.schedules.cron import cron_fault, zone_fault
from conveyor.v1 import (
    driver_service_pb2,
    log_service_pb2,
    pipeline_service_pb2,
    resource_definition_service_pb2,
    resource_service_pb2,
    run_service_pb2,
    schedule_pb2,
    schedule_service_pb2,
    server_service_pb2,
)

DEFAULT_NAMESPACE = "default"

_ON_THE_LOOP_BYTES = 16 << 10
"""Larger requests are checked in a thread."""

Rules = tuple[tuple[str, Check], ...]


async def validate(request: Message) -> str:
    """The namespace of the request, if the request keeps its rules.

    Raises errors.InvalidRequest, errors.Cycle, errors.TooLarge or errors.UnsupportedField with all violations.
    """
    if request.ByteSize() <= _ON_THE_LOOP_BYTES:
        check(request)
    else:
        await asyncio.to_thread(check, request)
    return getattr(request, "namespace", "") or DEFAULT_NAMESPACE


def check(request: Message) -> None:
    """As `validate`, at once."""
    problems = Problems()
    _apply(RULES[type(request)], problems, "", request)
    checks.known_enums(problems, "", request)
    problems.raise_any()


def _apply(rules: Rules, problems: Problems, path: str, message: Any) -> None:
    for key, rule in rules:
        rule(problems, f"{path}.{key}" if path and key else path or key, message, key)


def _object(rules: Rules) -> Check:
    """An object that must be there, with a namespace that is empty or that of the request."""

    def rule(problems: Problems, path: str, message: Any, key: str) -> None:
        if not message.HasField(key):
            problems.add(path, "is missing")
            return
        item = getattr(message, key)
        if item.namespace and item.namespace != (message.namespace or DEFAULT_NAMESPACE):
            problems.add(f"{path}.namespace", "must be empty or that of the request")
        _apply(rules, problems, path, item)

    return rule


def _retry(problems: Problems, path: str, step: Any, key: str) -> None:
    if not step.HasField(key):
        return
    retry = step.retry
    _apply(_RETRY, problems, path, retry)
    first, longest = retry.initial_backoff, retry.max_backoff
    shorter = (longest.seconds, longest.nanos) < (first.seconds, first.nanos)
    if retry.HasField("initial_backoff") and retry.HasField("max_backoff") and shorter:
        problems.add(f"{path}.max_backoff", "must not be shorter than initial_backoff")


def _gate(problems: Problems, path: str, step: Any, key: str) -> None:
    if step.HasField(key):
        _apply(actions.GATE, problems, path, step.gate)


def _runs(problems: Problems, path: str, step: Any, key: str) -> None:
    if step.HasField(key):
        _apply(actions.RUNS, problems, path, step.runs)


def _steps(problems: Problems, path: str, pipeline: Any, key: str) -> None:
    """All steps, one by one and together."""
    count = len(pipeline.steps) + len(pipeline.finally_steps)
    if not pipeline.steps:
        problems.add(path, "is empty; a pipeline has at least one step")
    if count > limits.STEPS:
        problems.too_large(path, f"has {count} steps, finally steps included; at most {limits.STEPS}")
        return
    parent = path.removesuffix(f".{key}")
    actions.optional_gates(problems, parent, pipeline)
    for name, steps in ((key, pipeline.steps), ("finally", pipeline.finally_steps)):
        for i, step in enumerate(steps):
            _apply(_STEP, problems, f"{parent}.{name}[{i}]", step)
    problems.found.extend(check_graph(pipeline, parent))
    problems.found.extend(check_calls(pipeline, parent))


def _matrix(problems: Problems, path: str, step: Any, key: str) -> None:
    """How the instances of a step are made."""
    if not step.HasField(key):
        return
    matrix, before = step.matrix, len(problems.found)
    for name in sorted(matrix.axes):
        checks.value(problems, f"{path}.axes.{name[:64]}", matrix.axes[name])
    for part in ("include", "exclude"):
        for i, each in enumerate(getattr(matrix, part)):
            where = f"{path}.{part}[{i}]"
            for name in sorted(each.fields):
                checks.value(problems, f"{where}.{name[:64]}", each.fields[name])
    if len(problems.found) == before:
        problems.found.extend(check_matrix(matrix, path))


def _params(problems: Problems, path: str, pipeline: Any, key: str) -> None:
    """How parameters are declared."""
    for i, param in enumerate(pipeline.params):
        where = f"{path}[{i}]"
        checks.text(limits.STEP_DESCRIPTION_BYTES)(problems, f"{where}.description", param, "description")
        if param.HasField("default"):
            checks.value(problems, f"{where}.default", param.default)
        for j, value in enumerate(param.enum):
            checks.value(problems, f"{where}.enum[{j}]", value)
    problems.found.extend(check_params(pipeline.params, path))


def _locks(problems: Problems, path: str, pipeline: Any, _: str) -> None:
    problems.found.extend(check_locks(pipeline, path))


def _expressions(problems: Problems, path: str, pipeline: Any, _: str) -> None:
    """The expressions of a pipeline in which nothing else is wrong: what they refer to is known then."""
    if not problems.found:
        problems.found.extend(check_expressions(pipeline, path))


def _params_without_pipeline(problems: Problems, path: str, resource: Any, key: str) -> None:
    if resource.params.fields and not resource.pipeline:
        problems.add(path, "needs pipeline too, which takes them")


def _cron(problems: Problems, path: str, schedule: Any, key: str) -> None:
    if (size := len(schedule.cron.encode())) > limits.CRON_BYTES:
        problems.too_large(path, f"has {size} bytes; at most {limits.CRON_BYTES}")
    elif fault := cron_fault(schedule.cron):
        problems.add(path, fault)


def _time_zone(problems: Problems, path: str, schedule: Any, key: str) -> None:
    if fault := zone_fault(schedule.time_zone):
        problems.add(path, fault)


def _deadline_of_nothing(problems: Problems, path: str, schedule: Any, key: str) -> None:
    if schedule.HasField("deadline") and schedule.missed == schedule_pb2.MISSED_RUNS_SKIP:
        problems.add(path, "has no meaning when missed is SKIP: no run starts late")


def _pipeline_size(problems: Problems, path: str, pipeline: Any, _: str) -> None:
    if (size := pipeline.ByteSize()) > limits.PIPELINE_BYTES:
        problems.too_large(path, f"takes {size} bytes with its context; at most {limits.PIPELINE_BYTES}")


def _needs(key: str, other: str) -> Check:
    """A field that means something only together with another one."""

    def rule(problems: Problems, path: str, message: Any, _: str) -> None:
        if getattr(message, key) and not getattr(message, other):
            problems.add(path, f"needs {other} too")

    return rule


def _tail_or_cursor(problems: Problems, path: str, request: Any, _: str) -> None:
    if request.tail and request.cursor:
        problems.add(path, "must not come together with cursor")


def _lines(problems: Problems, path: str, request: Any, key: str) -> None:
    for i, line in enumerate(request.lines):
        where = f"{path}[{i}]"
        checks.run_id(problems, f"{where}.run", line, "run")
        checks.step_id(problems, f"{where}.step", line, "step")
        if not line.attempt:
            problems.add(f"{where}.attempt", "is missing; attempts count from 1")
        if not line.seq:
            problems.add(f"{where}.seq", "is missing; lines count from 1")


_RETRY: Rules = (
    ("max_attempts", checks.number(1, limits.ATTEMPTS)),
    ("initial_backoff", checks.duration(0, DAY)),
    ("max_backoff", checks.duration(0, DAY)),
    ("multiplier", checks.number(1, 100)),
    ("jitter", checks.number(0, 1)),
)
_STEP: Rules = (
    ("id", checks.name),
    ("driver", actions.action),
    ("timeout", checks.duration(SECOND // 10, 366 * DAY)),
    ("queue_timeout", checks.duration(SECOND // 10, 366 * DAY)),
    ("retry", _retry),
    ("params", checks.struct(None)),
    ("matrix", _matrix),
    ("gate", _gate),
    ("runs", _runs),
    ("worker_selector", label_selector),
    ("description", checks.text(limits.STEP_DESCRIPTION_BYTES)),
)
_PIPELINE: Rules = (
    ("name", checks.name),
    ("labels", checks.labels),
    ("description", checks.text(limits.DESCRIPTION_BYTES)),
    ("definition", checks.optional_name),
    ("", _pipeline_size),
    ("params", _params),
    ("steps", _steps),
    ("context", checks.struct(None)),
    ("timeout", checks.duration(SECOND, 366 * DAY)),
    ("finally_timeout", checks.duration(SECOND, 366 * DAY)),
    ("", _locks),
    ("", _expressions),
)
_DEFINITION: Rules = (
    ("name", checks.name),
    ("labels", checks.labels),
    ("description", checks.text(limits.DESCRIPTION_BYTES)),
    ("schema", checks.struct(limits.SPEC_BYTES)),
)
_RESOURCE: Rules = (
    ("name", checks.name),
    ("definition", checks.name),
    ("pipeline", checks.optional_name),
    ("labels", checks.labels),
    ("spec", checks.struct(limits.SPEC_BYTES)),
    ("params", checks.struct(limits.PARAMS_BYTES)),
    ("params", _params_without_pipeline),
)
_SCHEDULE: Rules = (
    ("name", checks.name),
    ("labels", checks.labels),
    ("description", checks.text(limits.DESCRIPTION_BYTES)),
    ("definition", checks.name),
    ("resource", checks.name),
    ("pipeline", checks.optional_name),
    ("params", checks.struct(limits.PARAMS_BYTES)),
    ("run_labels", checks.labels),
    ("cron", _cron),
    ("time_zone", _time_zone),
    ("deadline", checks.duration(10 * SECOND, 366 * DAY)),
    ("deadline", _deadline_of_nothing),
)

_NAMESPACE: Rules = (("namespace", checks.optional_name),)
_REQUEST_ID: Rules = (("request_id", checks.text(limits.REQUEST_ID_BYTES)),)
_NAME: Rules = (*_NAMESPACE, ("name", checks.name))
_GET: Rules = (*_NAME, ("generation", checks.at_least_zero))
_RESOURCE_NAME: Rules = (*_NAME, ("definition", checks.name))
_RUN: Rules = (*_NAMESPACE, ("id", checks.run_id))
_RUN_FILTER: Rules = (
    *_NAMESPACE,
    ("pipeline", checks.optional_name),
    ("definition", checks.optional_name),
    ("resource", checks.optional_name),
    ("resource", _needs("resource", "definition")),
    ("labels", checks.labels),
)


def _write(key: str, rules: Rules) -> Rules:
    return (*_NAMESPACE, (key, _object(rules)), *_REQUEST_ID)


RULES: dict[type[Message], Rules] = {
    resource_definition_service_pb2.CreateResourceDefinitionRequest: _write("resource_definition", _DEFINITION),
    resource_definition_service_pb2.UpdateResourceDefinitionRequest: _write("resource_definition", _DEFINITION),
    resource_definition_service_pb2.ApplyResourceDefinitionRequest: _write("resource_definition", _DEFINITION),
    resource_definition_service_pb2.GetResourceDefinitionRequest: _GET,
    resource_definition_service_pb2.ListResourceDefinitionsRequest: (*_NAMESPACE, ("labels", checks.labels)),
    resource_definition_service_pb2.DeleteResourceDefinitionRequest: _NAME,
    pipeline_service_pb2.CreatePipelineRequest: _write("pipeline", _PIPELINE),
    pipeline_service_pb2.UpdatePipelineRequest: _write("pipeline", _PIPELINE),
    pipeline_service_pb2.ApplyPipelineRequest: _write("pipeline", _PIPELINE),
    pipeline_service_pb2.GetPipelineRequest: _GET,
    pipeline_service_pb2.ListPipelinesRequest: (*_NAMESPACE, ("labels", checks.labels)),
    pipeline_service_pb2.DeletePipelineRequest: _NAME,
    resource_service_pb2.CreateResourceRequest: _write("resource", _RESOURCE),
    resource_service_pb2.UpdateResourceRequest: _write("resource", _RESOURCE),
    resource_service_pb2.ApplyResourceRequest: _write("resource", _RESOURCE),
    resource_service_pb2.GetResourceRequest: (*_GET, ("definition", checks.name)),
    resource_service_pb2.ListResourcesRequest: (
        *_NAMESPACE,
        ("labels", checks.labels),
        ("definition", checks.optional_name),
    ),
    resource_service_pb2.ListResourceGenerationsRequest: _RESOURCE_NAME,
    resource_service_pb2.DeleteResourceRequest: _RESOURCE_NAME,
    schedule_service_pb2.CreateScheduleRequest: _write("schedule", _SCHEDULE),
    schedule_service_pb2.UpdateScheduleRequest: _write("schedule", _SCHEDULE),
    schedule_service_pb2.ApplyScheduleRequest: _write("schedule", _SCHEDULE),
    schedule_service_pb2.GetScheduleRequest: _GET,
    schedule_service_pb2.ListSchedulesRequest: (*_NAMESPACE, ("labels", checks.labels)),
    schedule_service_pb2.DeleteScheduleRequest: _NAME,
    schedule_service_pb2.TriggerScheduleRequest: (*_NAME, *_REQUEST_ID),
    run_service_pb2.StartRunRequest: (
        *_NAMESPACE,
        ("definition", checks.name),
        ("resource", checks.name),
        ("pipeline", checks.optional_name),
        ("params", checks.struct(limits.PARAMS_BYTES)),
        ("labels", checks.labels),
        *_REQUEST_ID,
    ),
    run_service_pb2.GetRunRequest: _RUN,
    run_service_pb2.ListRunsRequest: (
        *_RUN_FILTER,
        ("parent_run", checks.optional_run_id),
        ("caller_run", checks.optional_run_id),
        ("schedule", checks.optional_name),
        ("create_time_from", checks.time),
        ("create_time_before", checks.time),
    ),
    run_service_pb2.WatchRunRequest: _RUN,
    run_service_pb2.WatchRunsRequest: _RUN_FILTER,
    run_service_pb2.CancelRunRequest: (
        *_RUN,
        ("message", checks.text(limits.CANCEL_MESSAGE_BYTES)),
        ("grace", checks.duration(0, 3600 * SECOND)),
        *_REQUEST_ID,
    ),
    run_service_pb2.RetryRunRequest: (*_RUN, ("labels", checks.labels), *_REQUEST_ID),
    run_service_pb2.DecideStepRequest: (
        *_RUN,
        ("step", checks.step_id),
        ("decision", checks.chosen),
        ("by", checks.one_line(limits.DECIDED_BY_BYTES)),
        ("comment", checks.text(limits.DECISION_COMMENT_BYTES)),
        *_REQUEST_ID,
    ),
    run_service_pb2.ListLocksRequest: (*_NAMESPACE, ("key", checks.text(limits.LOCK_KEY_BYTES))),
    run_service_pb2.DeleteRunRequest: _RUN,
    log_service_pb2.WriteLogsRequest: (*_NAMESPACE, ("lines", _lines)),
    log_service_pb2.ReadLogsRequest: (
        *_NAMESPACE,
        ("run", checks.run_id),
        ("step", checks.optional_step_id),
        ("attempt", _needs("attempt", "step")),
        ("tail", _tail_or_cursor),
    ),
    driver_service_pb2.GetDriverRequest: _NAME,
    driver_service_pb2.ListDriversRequest: _NAMESPACE,
    driver_service_pb2.DeleteDriverRequest: _NAME,
    server_service_pb2.GetServerInfoRequest: (),
}
"""The rules of every request, field by field; "" stands for the whole message."""

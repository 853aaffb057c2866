"""The rules of requests: what breaks them, with the path and the reason that the caller gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from conveyor.api.validation import RULES, check, validate
from conveyor.core import errors
from conveyor.v1 import (
    driver_service_pb2,
    errors_pb2,
    log_service_pb2,
    pipeline_pb2,
    pipeline_service_pb2,
    resource_definition_service_pb2,
    resource_service_pb2,
    run_pb2,
    run_service_pb2,
    schedule_service_pb2,
    server_service_pb2,
)

RUN = "01890000-0000-7000-8000-000000000000"

Pipeline = pipeline_pb2.Pipeline
Change = Callable[[Any], object]


def pipeline_request(change: Change = lambda _: None) -> pipeline_service_pb2.ApplyPipelineRequest:
    request = pipeline_service_pb2.ApplyPipelineRequest()
    request.pipeline.name = "main"
    request.pipeline.order = pipeline_pb2.ORDER_GRAPH
    request.pipeline.steps.add(id="a", driver="x")
    request.pipeline.steps.add(id="b", driver="x", needs=["a"])
    request.pipeline.finally_steps.add(id="z", driver="x")
    change(request.pipeline)
    return request


def resource_request(change: Change = lambda _: None) -> resource_service_pb2.CreateResourceRequest:
    request = resource_service_pb2.CreateResourceRequest()
    request.resource.name = "web"
    request.resource.definition = "app"
    request.resource.spec.update({"a": {"b": [1, "x", None, True]}})
    change(request)
    return request


def problems(request: Message) -> list[tuple[str, str]]:
    """Paths and reasons of what is wrong with the request."""
    try:
        check(request)
    except errors.DomainError as error:
        return [
            (v.field, errors_pb2.ErrorReason.Name(v.reason).removeprefix("ERROR_REASON_")) for v in error.violations
        ]
    return []


def set_duration(field: str, seconds: int, nanos: int = 0) -> Change:
    def change(message: Any) -> None:
        duration = getattr(message, field)
        duration.seconds, duration.nanos = seconds, nanos

    return change


def on_step(change: Change) -> Change:
    return lambda pipeline: change(pipeline.steps[0])


def with_retry(**fields: Any) -> Change:
    return lambda pipeline: pipeline.steps[0].retry.CopyFrom(pipeline_pb2.RetryPolicy(**fields))


def nested(levels: int, leaf: Any = 1) -> dict[str, Any]:
    document: dict[str, Any] = {"x": leaf}
    for _ in range(levels - 1):
        document = {"x": document}
    return document


def test_every_request_of_the_api_has_rules() -> None:
    modules = (
        resource_definition_service_pb2,
        pipeline_service_pb2,
        resource_service_pb2,
        schedule_service_pb2,
        run_service_pb2,
        log_service_pb2,
        driver_service_pb2,
        server_service_pb2,
    )
    requests = {
        method.input_type.full_name
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert requests == {kind.DESCRIPTOR.full_name for kind in RULES}


def test_what_is_right_passes() -> None:
    assert problems(pipeline_request()) == []
    assert problems(resource_request()) == []
    assert (
        problems(run_service_pb2.ListRunsRequest(definition="app", resource="web", states=[2], labels={"a": ""})) == []
    )


@pytest.mark.parametrize(
    "name", ["", "A", "a_b", "img.build", "a b", "*", ">", "a..b", "a.", "-a", "a-", "é", "a" * 64, "a/b", "a\n", "a\0"]
)
def test_names_that_cannot_be_keys_and_subjects_are_refused(name: str) -> None:
    assert problems(pipeline_request(lambda p: setattr(p, "name", name))) == [("pipeline.name", "INVALID_FIELD")]
    assert problems(pipeline_request(on_step(lambda s: setattr(s, "driver", name)))) == [
        ("pipeline.steps[0].driver", "INVALID_FIELD")
    ]
    get = run_service_pb2.StartRunRequest(definition="app", resource=name)
    assert problems(get) == [("resource", "INVALID_FIELD")]


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a--b", "0a9", "a" * 63])
def test_names_that_can_are_taken(name: str) -> None:
    assert problems(pipeline_request(lambda p: setattr(p, "name", name))) == []


# Each row: what is changed in a good pipeline, and what is wrong with it then.
PIPELINES: dict[str, tuple[Change, list[tuple[str, str]]]] = {
    "no steps": (lambda p: p.ClearField("steps"), [("pipeline.steps", "INVALID_FIELD")]),
    "no action": (on_step(lambda s: s.ClearField("driver")), [("pipeline.steps[0].driver", "INVALID_FIELD")]),
    "other namespace": (lambda p: setattr(p, "namespace", "other"), [("pipeline.namespace", "INVALID_FIELD")]),
    "bad definition": (lambda p: setattr(p, "definition", "A"), [("pipeline.definition", "INVALID_FIELD")]),
    "long description": (lambda p: setattr(p, "description", "é" * 2049), [("pipeline.description", "TOO_LARGE")]),
    "long step description": (
        on_step(lambda s: setattr(s, "description", "x" * 1025)),
        [("pipeline.steps[0].description", "TOO_LARGE")],
    ),
    "empty label": (lambda p: p.labels.update({"": "x"}), [("pipeline.labels", "INVALID_FIELD")]),
    "long label key": (
        lambda p: p.labels.update({"k" * 129: "x"}),
        [(f'pipeline.labels["{"k" * 64}"]', "TOO_LARGE")],
    ),
    "long label value": (lambda p: p.labels.update({"k": "é" * 129}), [('pipeline.labels["k"]', "TOO_LARGE")]),
    "many labels": (lambda p: p.labels.update({str(i): "" for i in range(65)}), [("pipeline.labels", "TOO_LARGE")]),
    "unknown order": (
        lambda p: (setattr(p, "order", 9), p.steps[1].ClearField("needs")),
        [("pipeline.order", "INVALID_FIELD")],
    ),
    "unknown policy": (lambda p: setattr(p, "failure_policy", 9), [("pipeline.failure_policy", "INVALID_FIELD")]),
    "unknown rule": (
        on_step(lambda s: setattr(s, "trigger_rule", 77)),
        [("pipeline.steps[0].trigger_rule", "INVALID_FIELD")],
    ),
    "unknown rule of a finally step": (
        lambda p: setattr(p.finally_steps[0], "trigger_rule", 77),
        [("pipeline.finally[0].trigger_rule", "INVALID_FIELD"), ("pipeline.finally[0].trigger_rule", "INVALID_FIELD")],
    ),
    "unknown concurrency": (
        lambda p: setattr(p.concurrency, "policy", 9),
        [("pipeline.concurrency.policy", "INVALID_FIELD")],
    ),
    "params": (lambda p: p.params.add(name="x y"), [("pipeline.params[0].name", "INVALID_FIELD")]),
    "when": (on_step(lambda s: setattr(s, "when", "tru")), [("pipeline.steps[0].when", "INVALID_FIELD")]),
    "step params": (
        on_step(lambda s: s.params.update({"a": "${{ b }}"})),
        [("pipeline.steps[0].params.a", "INVALID_FIELD")],
    ),
    "nan in step params": (
        on_step(lambda s: s.params.update({"a": float("nan")})),
        [("pipeline.steps[0].params/a", "INVALID_FIELD")],
    ),
    "matrix": (on_step(lambda s: s.matrix.SetInParent()), [("pipeline.steps[0].matrix", "INVALID_FIELD")]),
    "nan in the context": (
        lambda p: p.context.update({"a": [0, float("nan")]}),
        [("pipeline.context/a/1", "INVALID_FIELD")],
    ),
    "infinity in the context": (
        lambda p: p.context.update({"a/b": float("inf")}),
        [("pipeline.context/a~1b", "INVALID_FIELD")],
    ),
    "deep context": (lambda p: p.context.update(nested(33)), [("pipeline.context" + "/x" * 32, "TOO_LARGE")]),
    "too large": (lambda p: p.context.update({"a": "x" * 458_752}), [("pipeline", "TOO_LARGE")]),
    "timeout 0": (set_duration("timeout", 0), [("pipeline.timeout", "INVALID_FIELD")]),
    "timeout below": (set_duration("timeout", 0, 999_999_999), [("pipeline.timeout", "INVALID_FIELD")]),
    "timeout above": (set_duration("timeout", 366 * 86400, 1), [("pipeline.timeout", "INVALID_FIELD")]),
    "timeout negative": (set_duration("timeout", -1), [("pipeline.timeout", "INVALID_FIELD")]),
    "timeout of 9e15": (set_duration("timeout", 9_000_000_000_000_000), [("pipeline.timeout", "INVALID_FIELD")]),
    "finally timeout": (set_duration("finally_timeout", 0), [("pipeline.finally_timeout", "INVALID_FIELD")]),
    "step timeout below": (
        on_step(set_duration("timeout", 0, 99_999_999)),
        [("pipeline.steps[0].timeout", "INVALID_FIELD")],
    ),
    "queue timeout above": (
        on_step(set_duration("queue_timeout", 367 * 86400)),
        [("pipeline.steps[0].queue_timeout", "INVALID_FIELD")],
    ),
    "nanos of no duration": (set_duration("timeout", 5, 2_000_000_000), [("pipeline.timeout", "INVALID_FIELD")]),
    "no attempts": (with_retry(max_attempts=0), [("pipeline.steps[0].retry.max_attempts", "INVALID_FIELD")]),
    "many attempts": (with_retry(max_attempts=101), [("pipeline.steps[0].retry.max_attempts", "INVALID_FIELD")]),
    "long back-off": (
        with_retry(initial_backoff={"seconds": 86401}),
        [("pipeline.steps[0].retry.initial_backoff", "INVALID_FIELD")],
    ),
    "back-off upside down": (
        with_retry(initial_backoff={"seconds": 5}, max_backoff={"seconds": 4, "nanos": 999}),
        [("pipeline.steps[0].retry.max_backoff", "INVALID_FIELD")],
    ),
    "small multiplier": (with_retry(multiplier=0.9), [("pipeline.steps[0].retry.multiplier", "INVALID_FIELD")]),
    "multiplier that is none": (
        with_retry(multiplier=float("nan")),
        [("pipeline.steps[0].retry.multiplier", "INVALID_FIELD")],
    ),
    "jitter": (with_retry(jitter=1.1), [("pipeline.steps[0].retry.jitter", "INVALID_FIELD")]),
}


@pytest.mark.parametrize("case", PIPELINES)
def test_bad_pipelines(case: str) -> None:
    change, expected = PIPELINES[case]
    assert problems(pipeline_request(change)) == expected


GOOD_PIPELINES: dict[str, Change] = {
    "one label fewer": lambda p: p.labels.update({"k" * 128: "v" * 256} | {str(i): "" for i in range(63)}),
    "descriptions": lambda p: (
        setattr(p, "description", "é" * 2048),
        setattr(p.steps[0], "description", "x" * 1024),
    ),
    "parallel": lambda p: setattr(p.concurrency, "policy", pipeline_pb2.CONCURRENCY_POLICY_PARALLEL),
    "timeouts at their bounds": lambda p: (
        set_duration("timeout", 366 * 86400)(p),
        set_duration("finally_timeout", 1)(p),
        set_duration("timeout", 0, 100_000_000)(p.steps[0]),
        set_duration("queue_timeout", 366 * 86400)(p.steps[0]),
    ),
    "an empty retry policy": with_retry(),
    "retries at their bounds": with_retry(
        max_attempts=100, initial_backoff={}, max_backoff={"seconds": 86400}, multiplier=100.0, jitter=1.0
    ),
    "an initial back-off beyond the default of the longest": with_retry(initial_backoff={"seconds": 3600}),
    "32 levels": lambda p: p.context.update(nested(32)),
    "no values of what is not supported": lambda p: p.steps[0].params.SetInParent(),
    "almost too large": lambda p: p.context.update({"a": "x" * (458_752 - 200)}),
}


@pytest.mark.parametrize("case", GOOD_PIPELINES)
def test_pipelines_at_their_limits(case: str) -> None:
    assert problems(pipeline_request(GOOD_PIPELINES[case])) == []


def test_all_that_is_wrong_is_said_at_once() -> None:
    request = pipeline_request(
        lambda p: (
            setattr(p, "name", "A"),
            p.labels.update({"": ""}),
            setattr(p.steps[0], "driver", "B"),
            p.steps[1].needs.append("nobody"),
            p.steps[0].matrix.SetInParent(),
        )
    )
    assert problems(request) == [
        ("pipeline.name", "INVALID_FIELD"),
        ("pipeline.labels", "INVALID_FIELD"),
        ("pipeline.steps[0].driver", "INVALID_FIELD"),
        ("pipeline.steps[0].matrix", "INVALID_FIELD"),
        ("pipeline.steps[1].needs[1]", "INVALID_FIELD"),
    ]
    with pytest.raises(errors.InvalidRequest):
        check(request)


RESOURCES: dict[str, tuple[Change, list[tuple[str, str]]]] = {
    "missing": (lambda r: r.ClearField("resource"), [("resource", "INVALID_FIELD")]),
    "no definition": (lambda r: r.resource.ClearField("definition"), [("resource.definition", "INVALID_FIELD")]),
    "bad pipeline": (lambda r: setattr(r.resource, "pipeline", "a.b"), [("resource.pipeline", "INVALID_FIELD")]),
    "bad namespace": (lambda r: setattr(r, "namespace", "A"), [("namespace", "INVALID_FIELD")]),
    "params": (lambda r: r.resource.params.update({"a": 1}), [("resource.params", "INVALID_FIELD")]),
    "long request id": (lambda r: setattr(r, "request_id", "é" * 65), [("request_id", "TOO_LARGE")]),
    "spec too large": (lambda r: r.resource.spec.update({"k": "x" * 262_144}), [("resource.spec", "TOO_LARGE")]),
    "spec too large as stored": (
        lambda r: r.resource.spec.update({"k": [1] * 40_000}),
        [("resource.spec", "TOO_LARGE")],
    ),
    "too deep": (lambda r: r.resource.spec.update(nested(33)), [("resource.spec" + "/x" * 32, "TOO_LARGE")]),
    "list too deep": (
        lambda r: r.resource.spec.update(nested(32, [1])),
        [("resource.spec" + "/x" * 32, "TOO_LARGE")],
    ),
    "nan": (lambda r: r.resource.spec.update({"a": float("nan")}), [("resource.spec/a", "INVALID_FIELD")]),
    "minus infinity": (
        lambda r: r.resource.spec.update({"a": [[float("-inf")]]}),
        [("resource.spec/a/0/0", "INVALID_FIELD")],
    ),
    "a value that is not set": (
        lambda r: r.resource.spec.fields["b"].SetInParent(),
        [("resource.spec/b", "INVALID_FIELD")],
    ),
}


@pytest.mark.parametrize("case", RESOURCES)
def test_bad_resources(case: str) -> None:
    change, expected = RESOURCES[case]
    assert problems(resource_request(change)) == expected


def test_a_spec_at_its_limit_is_taken() -> None:
    assert problems(resource_request(lambda r: r.resource.spec.CopyFrom(_spec("x" * (262_144 - 8))))) == []
    assert problems(resource_request(lambda r: r.resource.spec.CopyFrom(_spec("x" * (262_144 - 7))))) != []
    assert problems(resource_request(lambda r: r.resource.spec.update(nested(31, [1])))) == []


def _spec(text: str) -> Any:
    request = resource_service_pb2.CreateResourceRequest()
    request.resource.spec.update({"k": text})  # {"k":"…"}: eight bytes around the text
    return request.resource.spec


REQUESTS: dict[str, tuple[Message, list[tuple[str, str]]]] = {
    "run id": (run_service_pb2.GetRunRequest(id="nope"), [("id", "INVALID_FIELD")]),
    "run id in capitals": (run_service_pb2.WatchRunRequest(id=RUN.replace("7", "A")), [("id", "INVALID_FIELD")]),
    "run id that leads elsewhere": (run_service_pb2.DeleteRunRequest(id="../x"), [("id", "INVALID_FIELD")]),
    "view": (run_service_pb2.GetRunRequest(id=RUN, view=7), [("view", "INVALID_FIELD")]),  # type: ignore[arg-type]
    "resource alone": (run_service_pb2.ListRunsRequest(resource="web"), [("resource", "INVALID_FIELD")]),
    "resource alone in a watch": (run_service_pb2.WatchRunsRequest(resource="web"), [("resource", "INVALID_FIELD")]),
    "state": (
        run_service_pb2.ListRunsRequest(states=[run_pb2.RUN_STATE_RUNNING, 99]),  # type: ignore[list-item]
        [("states[1]", "INVALID_FIELD")],
    ),
    "time": (
        run_service_pb2.ListRunsRequest(create_time_from={"seconds": 1 << 60}),
        [("create_time_from", "INVALID_FIELD")],
    ),
    "cancel message": (run_service_pb2.CancelRunRequest(id=RUN, message="x" * 1025), [("message", "TOO_LARGE")]),
    "grace": (run_service_pb2.CancelRunRequest(id=RUN, grace={"seconds": 3601}), [("grace", "INVALID_FIELD")]),
    "params": (
        run_service_pb2.StartRunRequest(definition="a", resource="b", params={"x": float("nan")}),
        [("params/x", "INVALID_FIELD")],
    ),
    "generation": (pipeline_service_pb2.GetPipelineRequest(name="a", generation=-1), [("generation", "INVALID_FIELD")]),
    "attempt alone": (log_service_pb2.ReadLogsRequest(run=RUN, attempt=1), [("attempt", "INVALID_FIELD")]),
    "tail and cursor": (log_service_pb2.ReadLogsRequest(run=RUN, tail=1, cursor="x"), [("tail", "INVALID_FIELD")]),
    "lines": (
        log_service_pb2.WriteLogsRequest(lines=[{"run": RUN, "step": "a", "attempt": 1, "seq": 1}, {"run": "x"}]),
        [(f"lines[1].{field}", "INVALID_FIELD") for field in ("run", "step", "attempt", "seq")],
    ),
    "schema too large": (
        resource_definition_service_pb2.CreateResourceDefinitionRequest(
            resource_definition={
                "name": "a",
                "schema": {"fields": {"$comment": {"string_value": "x" * 262_144}}},
            }
        ),
        [("resource_definition.schema", "TOO_LARGE")],
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_other_bad_requests(case: str) -> None:
    request, expected = REQUESTS[case]
    assert problems(request) == expected


@pytest.mark.parametrize(
    ("change", "bounds"),
    [
        (set_duration("timeout", 0), "from 1 s to 366 days; leave it out for the default"),
        (set_duration("timeout", -1), "from 1 s to 366 days"),
        (on_step(set_duration("timeout", 0)), "from 100 ms to 366 days; leave it out for the default"),
        (with_retry(initial_backoff={"seconds": -1}), "from 0 to 24 h"),
        (with_retry(multiplier=0), "from 1 to 100"),
    ],
)
def test_bounds_are_named(change: Change, bounds: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=f"must be {bounds}$"):
        check(pipeline_request(change))


def test_a_grace_of_nothing_is_taken() -> None:
    assert problems(run_service_pb2.CancelRunRequest(id=RUN, grace={})) == []


async def test_validate_names_the_namespace() -> None:
    assert await validate(resource_request()) == "default"
    assert await validate(resource_request(lambda r: setattr(r, "namespace", "team"))) == "team"


async def test_large_requests_are_checked_too() -> None:
    with pytest.raises(errors.TooLarge):
        await validate(resource_request(RESOURCES["spec too large"][0]))

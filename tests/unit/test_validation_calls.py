"""Steps that run pipelines, when these are registered: what is refused, and what is said instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from conveyor.api.validation import check
from conveyor.core import errors
from conveyor.sdk import to_struct
from conveyor.v1 import pipeline_pb2, pipeline_service_pb2
from conveyor.v1.pipeline_pb2 import Pipeline, Step, SubPipeline

ALWAYS = "runs its own pipeline, always, so that no run of it would end; give the step a condition: when"


def found(pipeline: Pipeline) -> list[tuple[str, str]]:
    """What is wrong with a pipeline, by field and description."""
    try:
        check(pipeline_service_pb2.CreatePipelineRequest(pipeline=pipeline))
    except errors.Invalid as error:
        return [(each.field.removeprefix("pipeline."), each.description) for each in error.violations]
    return []


def problems(step: Step) -> list[tuple[str, str]]:
    """The same with a step after another one."""
    pipeline = Pipeline(name="release", steps=[Step(id="build", driver="x"), step])
    pipeline.params.add(name="env")
    return [(field.removeprefix("steps[1]."), text) for field, text in found(pipeline)]


def call(name: str = "deploy", pipeline: str = "other", **fields: Any) -> Step:
    return Step(id=name, runs=SubPipeline(pipeline=pipeline), **fields)


def test_all_that_such_a_step_may_say() -> None:
    step = call(when="params.env == 'prod'", allow_failure=True, trigger_rule=pipeline_pb2.TRIGGER_RULE_ALL_DONE)
    step.runs.params.CopyFrom(to_struct({"env": "${{ params.env }}", "of": {"list": ["${{ steps.build.data.v }}", 1]}}))
    step.timeout.FromSeconds(5)
    step.retry.max_attempts = 3
    step.lock.key = "deploy"
    assert problems(step) == []


@pytest.mark.parametrize(
    ("field", "set_it", "said"),
    [
        ("queue_timeout", lambda s: s.queue_timeout.FromSeconds(5), "no worker takes a step that runs a pipeline"),
        ("params", lambda s: s.params.CopyFrom(to_struct({"a": 1})), "the pipeline's are runs.params"),
        ("worker_selector", lambda s: s.worker_selector.match_labels.update(a="b"), "no worker takes"),
        ("runs.pipeline", lambda s: s.runs.ClearField("pipeline"), "is missing; a name has"),
        ("runs.pipeline", lambda s: setattr(s.runs, "pipeline", "Deploy it"), "is no name"),
        ("runs.params", lambda s: s.runs.params.update({"a": "x" * 66_000}), "bytes as JSON; at most 65536"),
        ("runs.params.a", lambda s: s.runs.params.update({"a": "${{ params.nope }}"}), "has no parameter nope"),
        ("runs.params.a[1]", lambda s: s.runs.params.update({"a": [1, "${{ steps.deploy.state }}"]}), "itself"),
        ("runs.params", lambda s: s.runs.params.update({"${{ params.env }}": 1}), "no place in keys"),
    ],
)
def test_what_is_refused(field: str, set_it: Callable[[Step], object], said: str) -> None:
    step = call()
    set_it(step)
    ((path, text),) = problems(step)
    assert path == field
    assert said in text


@pytest.mark.parametrize("order", [pipeline_pb2.ORDER_LIST, pipeline_pb2.ORDER_GRAPH])
def test_a_pipeline_that_runs_itself_whatever_happens(order: pipeline_pb2.Order.ValueType) -> None:
    graph = order == pipeline_pb2.ORDER_GRAPH
    again = call("again", "release", needs=["build"] if graph else [])
    assert found(Pipeline(name="release", order=order, steps=[Step(id="build", driver="x"), again])) == [
        ("steps[1].runs.pipeline", ALWAYS)
    ]
    last = [Step(id="build", driver="x")]
    assert found(Pipeline(name="release", order=order, steps=last, finally_steps=[call("again", "release")])) == [
        ("finally[0].runs.pipeline", ALWAYS)
    ]


@pytest.mark.parametrize(
    ("first", "rule", "fine"),
    [
        ({"when": "true"}, "ALL_SUCCESS", True),
        ({"when": "true"}, "ALL_DONE", False),
        ({"when": "true"}, "NONE_FAILED", False),
        ({}, "ONE_FAILED", True),
        ({}, "ALL_SUCCESS", False),
    ],
)
def test_a_condition_of_what_goes_before_counts_too(first: dict[str, Any], rule: str, fine: bool) -> None:
    trigger = pipeline_pb2.TriggerRule.Value(f"TRIGGER_RULE_{rule}")
    steps = [Step(id="check", driver="x", **first), Step(id="work", driver="x", needs=["check"])]
    steps.append(call("again", "release", needs=["work"], trigger_rule=trigger))
    said = found(Pipeline(name="release", order=pipeline_pb2.ORDER_GRAPH, steps=steps))
    if rule in ("ALL_DONE", "NONE_FAILED"):
        assert said == [("steps[2].runs.pipeline", ALWAYS)]
    else:
        assert said == ([] if fine else [("steps[2].runs.pipeline", ALWAYS)])


def test_a_circle_of_needs_is_said_once() -> None:
    steps = [call("a", "release", needs=["b"]), call("b", "release", needs=["a"])]
    fields = [field for field, _ in found(Pipeline(name="release", order=pipeline_pb2.ORDER_GRAPH, steps=steps))]
    assert fields == ["steps", "steps[0].runs.pipeline"]

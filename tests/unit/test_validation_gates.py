"""Gates in pipelines that are registered, and decisions: what is refused, and what is said instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conveyor.api.validation import check
from conveyor.core import errors
from conveyor.sdk import to_struct
from conveyor.v1 import pipeline_pb2, pipeline_service_pb2, run_service_pb2
from conveyor.v1.pipeline_pb2 import Gate, Lock, Pipeline, Step

RUN = "01890000-0000-7000-8000-000000000000"
APPROVED = pipeline_pb2.DECISION_APPROVED


def problems(step: Step) -> list[tuple[str, str]]:
    """What is wrong with a step after another one, by field and description."""
    pipeline = Pipeline(name="release", steps=[Step(id="build", driver="x"), step])
    pipeline.params.add(name="env")
    try:
        check(pipeline_service_pb2.CreatePipelineRequest(pipeline=pipeline))
    except errors.Invalid as error:
        return [(each.field.removeprefix("pipeline.steps[1]."), each.description) for each in error.violations]
    return []


def test_all_that_a_gate_may_say() -> None:
    gate = Gate(approvals=100, default_decision=APPROVED, message="Deploy ${{ steps.build.data.v }} to $${{?")
    gate.timeout.seconds = 60
    rule = pipeline_pb2.TRIGGER_RULE_ALL_DONE
    step = Step(id="ask", gate=gate, when="params.env == 'prod'", allow_failure=True, trigger_rule=rule)
    assert problems(step) == []
    assert problems(Step(id="ask", gate=Gate())) == []


@pytest.mark.parametrize(
    ("field", "set_it", "said"),
    [
        ("timeout", lambda s: s.timeout.FromSeconds(5), "a gate has no attempts; gate.timeout bounds its wait"),
        ("queue_timeout", lambda s: s.queue_timeout.FromSeconds(5), "no worker takes a gate; gate.timeout bounds"),
        ("retry", lambda s: s.retry.SetInParent(), "people are asked once"),
        (
            "worker_selector",
            lambda s: s.worker_selector.match_labels.update({"os": "linux"}),
            "no worker takes a gate",
        ),
        ("lock", lambda s: s.lock.CopyFrom(Lock(key="x")), "a gate holds no lock; put it on the step that does"),
        ("params", lambda s: s.params.CopyFrom(to_struct({"a": 1})), "a gate has no driver that takes them"),
    ],
)
def test_what_means_nothing_at_a_gate(field: str, set_it: Callable[[Step], object], said: str) -> None:
    step = Step(id="ask", gate=Gate())
    set_it(step)
    ((path, text),) = problems(step)
    assert path == field
    assert said in text


@pytest.mark.parametrize(
    ("gate", "field", "said"),
    [
        (Gate(approvals=101), "gate.approvals", "is 101; at most 100, and 0 means 1"),
        (Gate(default_decision=APPROVED), "gate.default_decision", "needs timeout too: it is what is decided when"),
        (Gate(timeout={"nanos": 1}), "gate.timeout", ""),  # type: ignore[arg-type]
        (Gate(message="x" * 1025), "gate.message", "1024"),
        (Gate(message="${{ params.nope }}"), "gate.message", "line 1, column 11: the pipeline has no parameter nope"),
        (Gate(message="Is ${{ steps.ask.state }}?"), "gate.message", "column 8: step ask refers to itself"),
        (Gate(message="${{ [1] }}"), "gate.message", "comes to list, which has no place within other text"),
        (Gate(message="${{ params.env"), "gate.message", "${{ has no }}"),
    ],
)
def test_what_a_gate_must_not_say(gate: Gate, field: str, said: str) -> None:
    ((path, text),) = problems(Step(id="ask", gate=gate))
    assert path == field
    assert said in text


def test_where_a_gate_is_not_optional() -> None:
    optional = Step(id="ask", gate=Gate(optional=True))
    assert problems(optional) == [
        ("gate.optional", "only with order GRAPH; in order LIST nothing goes on while people decide")
    ]
    graph = Pipeline(name="p", order=pipeline_pb2.ORDER_GRAPH, steps=[optional], finally_steps=[optional])
    graph.finally_steps[0].id = "last"
    with pytest.raises(errors.Invalid) as caught:
        check(pipeline_service_pb2.CreatePipelineRequest(pipeline=graph))
    (violation,) = caught.value.violations
    assert violation.field == "pipeline.finally[0].gate.optional"


def test_a_step_without_anything_to_do() -> None:
    assert problems(Step(id="ask")) == [
        ("driver", "is missing; a step names its driver, is a gate (gate: {} at the least), or runs a pipeline")
    ]


@pytest.mark.parametrize(
    ("changed", "field", "said"),
    [
        ({"decision": 0}, "decision", "is missing"),
        ({"decision": 7}, "decision", ""),
        ({"by": ""}, "by", "is missing"),
        ({"by": " \t"}, "by", "is missing"),
        ({"by": " ann"}, "by", "must be one line of printable text, without white space at its ends"),
        ({"by": "an\nn"}, "by", "must be one line of printable text, without white space at its ends"),
        ({"by": "x" * 129}, "by", "128"),
        ({"comment": "x" * 1025}, "comment", "1024"),
        ({"step": ""}, "step", "is missing"),
        ({"step": "A"}, "step", "is no name"),
        ({"id": "x"}, "id", ""),
    ],
)
def test_decisions_that_are_none(changed: dict[str, object], field: str, said: str) -> None:
    fields: dict[str, object] = {"id": RUN, "step": "ask", "decision": APPROVED, "by": "ann", **changed}
    with pytest.raises(errors.Invalid) as caught:
        check(run_service_pb2.DecideStepRequest(**fields))  # type: ignore[arg-type]
    (violation,) = caught.value.violations
    assert violation.field == field
    assert said in violation.description


def test_a_decision_at_an_instance_of_a_matrix() -> None:
    check(run_service_pb2.DecideStepRequest(id=RUN, step="ask[3]", decision=APPROVED, by="Ann Ó <ann@x.example>"))

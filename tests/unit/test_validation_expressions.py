"""Expressions and parameters of a pipeline that is registered: what is refused, and where."""

from __future__ import annotations

import pytest

from conveyor.api.validation import check
from conveyor.core import errors, limits
from conveyor.core.params import resolve
from conveyor.sdk import to_struct
from conveyor.v1 import pipeline_pb2, pipeline_service_pb2
from conveyor.v1.pipeline_pb2 import Pipeline

NUMBER = pipeline_pb2.PARAM_TYPE_NUMBER
BOOLEAN = pipeline_pb2.PARAM_TYPE_BOOLEAN


def graph() -> Pipeline:
    """a, then b-1 and c beside each other, then d; e at the end."""
    pipeline = Pipeline(name="release", order=pipeline_pb2.ORDER_GRAPH)
    for name, needs in (("a", []), ("b-1", ["a"]), ("c", ["a"]), ("d", ["b-1"])):
        pipeline.steps.add(id=name, driver="x", needs=needs)
    pipeline.finally_steps.add(id="e", driver="x")
    pipeline.params.add(name="env")
    pipeline.params.add(name="n", type=NUMBER)
    return pipeline


def problems(pipeline: Pipeline) -> list[tuple[str, str]]:
    """The violations, by field and description."""
    try:
        check(pipeline_service_pb2.CreatePipelineRequest(pipeline=pipeline))
    except errors.Invalid as error:
        return [(each.field, each.description) for each in error.violations]
    return []


@pytest.mark.parametrize(
    ("step", "text", "said"),
    [
        (3, 'steps.a.state == "X" || steps["b-1"].state == "X"', ""),
        (1, "steps.a.data.x", ""),
        (3, "steps.c.state == ''", "line 1, column 1: step c does not end before step d begins; it must be among its"),
        (3, "true ||\n  steps.d.state == ''", "line 2, column 3: step d refers to itself"),
        (0, "steps.a.state == ''", "line 1, column 1: step a refers to itself"),
        (0, "has(steps.d)", "line 1, column 5: step d does not end before step a begins"),
        (1, "steps.?nope.state.orValue('') == ''", "line 1, column 1: there is no step nope"),
        (1, "steps['e'].state == ''", "step e does not end before step b-1 begins"),
        (1, "steps.all(s, true)", "line 1, column 1: steps must be followed by the id of a step"),
        (1, "steps[params.env].state == ''", "steps must be followed by the id of a step"),
        (1, "[1].exists(steps, steps == 1)", ""),
        (1, "params.env", "line 1, column 1: a condition is true or false; this is text"),
        (1, "params.n + 1.5", "this is a number"),
        (1, "size(params.env)", "a condition is true or false; this is a number"),
        (1, "[params.env]", "a condition is true or false; this is list"),
        (1, "${{ params.env == 'a' }}", "leave out the ${{ }}"),
        (1, "run.state == 'FAILED'", "line 1, column 4: there is no field state here"),
        (1, " ", "is empty"),
        (1, "x" * 4097, "has 4097 bytes; at most 4096"),
        (4, "run.state == 'FAILED' && steps.d.reason == ''", ""),
        (4, "steps.e.state == ''", "step e refers to itself"),
    ],
)
def test_conditions(step: int, text: str, said: str) -> None:
    pipeline = graph()
    where = pipeline.steps[step] if step < 4 else pipeline.finally_steps[0]
    where.when = text
    found = problems(pipeline)
    if not said:
        assert found == []
        return
    ((field, description),) = found
    assert field == (f"pipeline.steps[{step}].when" if step < 4 else "pipeline.finally[0].when")
    assert said in description


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({"a": "${{ params.env }}", "b": [{"c": "x ${{ steps.a.data.y }}"}]}, []),
        ({"a": "no $ {{ here }}", "b": 1}, []),
        (
            {"b": [{"c": "x\n ${{ params.nope }}"}]},
            [("params.b[0].c", "line 2, column 12: the pipeline has no parameter nope; it has env, n")],
        ),
        (
            {"a": "${{ steps.d.state }}"},
            [("params.a", "line 1, column 5: step d does not end before step c begins")],
        ),
        ({"a": "x ${{ params.env"}, [("params.a", "line 1, column 3: ${{ has no }}")]),
        ({"a": "${{ }}"}, [("params.a", "line 1, column 5: is empty")]),
        ({"a": "${{ b'x' }}"}, [("params.a", "line 1, column 5: comes to bytes, which is no JSON")]),
        ({"a": "${{ resource.spec.?x }}"}, [("params.a", ".orValue() gives it a value")]),
        (
            {"a": "x ${{ [1] }}"},
            [("params.a", "line 1, column 7: comes to list, which has no place")],
        ),
        ({"a": "x ${{ resource }}"}, [("params.a", "comes to a map, which has no place within other text")]),
        ({"${{ params.env }}": 1}, [("params", "expressions have no place in keys")]),
        ({"a": [{"${{": 1}]}, [("params", "expressions have no place in keys")]),
        ({"a": "${{ 1 + }} ${{ 2 + }}"}, [("params.a", "column 8"), ("params.a", "column 19")]),
    ],
)
def test_params(params: dict[str, object], wanted: list[tuple[str, str]]) -> None:
    pipeline = graph()
    pipeline.steps[2].params.CopyFrom(to_struct(params))
    found = problems(pipeline)
    assert [field for field, _ in found] == [f"pipeline.steps[2].{field}" for field, _ in wanted]
    for (_, description), (_, said) in zip(found, wanted, strict=True):
        assert said in description


def test_a_list_refers_to_all_before() -> None:
    pipeline = Pipeline(name="release")
    for name in ("a", "b", "c"):
        pipeline.steps.add(id=name, driver="x")
    pipeline.steps[2].when = "steps.a.data.x == 1"
    pipeline.steps[1].when = "steps.c.data.x == 1"
    assert problems(pipeline) == [
        ("pipeline.steps[1].when", "line 1, column 1: step c does not end before step b begins")
    ]


def param(pipeline: Pipeline, **fields: object) -> pipeline_pb2.Param:
    """One more parameter."""
    default, enum = fields.pop("default", None), fields.pop("enum", [])
    made = pipeline.params.add(**fields)  # type: ignore[arg-type]
    values = to_struct({"default": default, "enum": enum}).fields
    if default is not None:
        made.default.CopyFrom(values["default"])
    made.enum.extend(values["enum"].list_value.values)
    return made


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"name": "x", "type": NUMBER, "default": 1, "enum": [1, 2]}, "", ""),
        ({"name": "x", "default": "${{ params.env }}"}, "", ""),
        ({"name": ""}, ".name", "must be a letter"),
        ({"name": "a-b"}, ".name", "must be a letter"),
        ({"name": "é"}, ".name", "must be a letter"),
        ({"name": "x" * 64}, ".name", "at most 63"),
        ({"name": "env"}, ".name", "env is the name of pipeline.params[0] already"),
        ({"name": "x", "required": True, "default": "a"}, ".required", "has no meaning"),
        ({"name": "x", "default": 1}, ".default", "must be text, not a number"),
        ({"name": "x", "type": BOOLEAN, "default": "true"}, ".default", "must be true or false, not text"),
        ({"name": "x", "type": NUMBER, "enum": [1, True]}, ".enum[1]", "must be a number, not true"),
        ({"name": "x", "default": "c", "enum": ["a", "b"]}, ".default", 'must be one of "a", "b"'),
        ({"name": "x", "description": "y" * 1025}, ".description", "at most 1024"),
        ({"name": "x", "type": 9}, ".type", "9 is not a value"),
    ],
)
def test_declarations(fields: dict[str, object], field: str, said: str) -> None:
    pipeline = graph()
    param(pipeline, **fields)
    found = problems(pipeline)
    if not said:
        assert found == []
        return
    assert found[0][0] == f"pipeline.params[2]{field}"
    assert said in found[0][1]


def test_too_many_parameters() -> None:
    pipeline = graph()
    for i in range(limits.PARAMS):
        pipeline.params.add(name=f"p{i}")
    assert problems(pipeline) == [("pipeline.params", "has 102 entries; at most 100")]


def test_what_is_given_goes_over_defaults() -> None:
    pipeline = Pipeline()
    param(pipeline, name="a", default="d")
    param(pipeline, name="b", type=NUMBER)
    param(pipeline, name="c", default="d")
    values, violations = resolve(
        pipeline.params, [("resource.params", to_struct({"a": "r", "b": 1})), ("params", to_struct({"b": 2}))]
    )
    assert (values, violations) == (to_struct({"a": "r", "b": 2, "c": "d"}), [])
    # Where a value came from is said, also when another one went over the rest.
    _, violations = resolve(
        pipeline.params, [("resource.params", to_struct({"a": 1, "x": 1})), ("params", to_struct({"b": None}))]
    )
    assert [(each.field, each.description) for each in violations] == [
        ("resource.params.x", "the pipeline has no such parameter; it has a, b, c"),
        ("resource.params.a", "must be text, not a number"),
        ("params.b", "must be a number, not null"),
    ]


def test_a_thousand_steps_with_expressions() -> None:
    pipeline = Pipeline(name="release")
    pipeline.params.add(name="env")
    for i in range(limits.STEPS):
        step = pipeline.steps.add(id=f"s-{i}", driver="x", when=f"params.env != 'v{i}'")
        step.params.update({"a": f"${{{{ params.env + '{i}' }}}}", "b": f"x ${{{{ resource.spec.a{i} }}}}"})
    assert problems(pipeline) == []

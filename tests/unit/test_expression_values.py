"""What expressions are given, and how what they come to is written."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.core import limits
from conveyor.core.inputs import Seen, Verdict
from conveyor.core.plan import compile_plan
from conveyor.expressions import results
from conveyor.expressions.errors import NoRoom, NoValue, TooLarge
from conveyor.expressions.expression import compile_expression, evaluated
from conveyor.expressions.layout import Layout
from conveyor.expressions.program import Program, RunInputs
from conveyor.expressions.values import RunValues, pick, wanted
from conveyor.sdk import to_struct
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2
from conveyor.v1.pipeline_pb2 import Pipeline, Step

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)
SPEC = to_struct({"a": {"b": {"c": 1, "d": "x"}, "e": [1, {"f": None}]}, "g": "text", "big": {"k": "y" * 1000}})


def what(*texts: str) -> Any:
    """What the expressions need."""
    return wanted(reference for text in texts for reference in compile_expression(text).outline.references)


@pytest.mark.parametrize(
    ("texts", "needed"),
    [
        (["1 + 1"], {}),
        (["context.a.b.c == 1"], {"context": {"a": {"b": {"c": None}}}}),
        (["context.a.b.c", "context.a.e"], {"context": {"a": {"b": {"c": None}, "e": None}}}),
        (["context.a.b.c", "context.a"], {"context": {"a": None}}),
        (["context.a", "context.a.b.c"], {"context": {"a": None}}),
        (["context.a[params.k]"], {"context": {"a": None}, "params": {"k": None}}),
        (["has(context.a.x) && context.?y.orValue('') == ''"], {"context": {"a": {"x": None}, "y": None}}),
        (["context.a.e.map(x, x.f)"], {"context": {"a": {"e": None}}}),
        (['context["a"].b.exists(k, k in context.g)'], {"context": {"a": {"b": None}, "g": None}}),
    ],
)
def test_what_expressions_need(texts: list[str], needed: object) -> None:
    assert what(*texts) == needed


@pytest.mark.parametrize(
    ("texts", "picked"),
    [
        (["context.a.b.c"], {"a": {"b": {"c": 1.0}}}),
        (["context.a.e", "context.nope.x", "context.a.b.nope"], {"a": {"b": {}, "e": [1.0, {"f": None}]}}),
        # Of what is no map there are no parts: that is what the expression finds out.
        (["context.g.x", "context.a.e.x"], {"g": "text", "a": {"e": [1.0, {"f": None}]}}),
    ],
)
def test_nothing_else_is_given(texts: list[str], picked: object) -> None:
    assert pick(SPEC, what(*texts)["context"]) == picked


def test_all_of_it_when_all_is_needed() -> None:
    assert what("context")["context"] is None
    assert pick(SPEC, None)["a"] == {"b": {"c": 1.0, "d": "x"}, "e": [1.0, {"f": None}]}


def test_a_step_is_given_what_it_refers_to() -> None:
    plan = compile_plan(Pipeline(name="p", steps=[Step(id="a", driver="x"), Step(id="b", driver="x")]))
    record = storage_pb2.StepRecord(step="a")
    record.result.data = to_struct({"image": "web:7", "log": "z" * 1000}).SerializeToString()
    spec = storage_pb2.RunSpec(params=to_struct({"env": "prod", "n": 3}).SerializeToString())
    spec.resource.name = "web"
    spec.resource.spec.CopyFrom(SPEC)
    states = bytes([run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_STATE_PENDING])
    seen = Seen(plan, storage_pb2.RunHead(id="r"), states, bytes(2), [record, None])
    needed = what("params.n > 1 && resource.spec.a.b.d == resource.name", "steps.a.data.image", "has(steps.b)")
    assert RunValues(spec).of(needed, 1, seen) == {
        "params": {"n": 3.0},
        "resource": {"spec": {"a": {"b": {"d": "x"}}}, "name": "web"},
        "steps": {"a": {"state": "SUCCEEDED", "reason": "", "data": {"image": "web:7"}}},
    }


def encoded(text: str, room: int = limits.STEP_PARAMS_BYTES, **values: object) -> bytes:
    return results.encode(compile_expression(text).evaluate(values), results.Room(room))


@given(JSON)
@settings(deadline=None)
def test_what_comes_out_is_what_went_in(value: object) -> None:
    holder = Struct()
    holder.update({"v": value})
    assert Value.FromString(encoded("params.v", 1 << 20, params=pick(holder, None))) == holder.fields["v"]


@given(st.dictionaries(st.text(), JSON, max_size=3), st.text().filter(lambda text: "\0" not in text))
@settings(deadline=None, max_examples=30)
def test_what_stands_around_expressions_stays(values: dict[str, object], text: str) -> None:
    marked = to_struct({"fixed": values, "list": [values, "${{ params.v }}", {"at": "${{ params.v }}!", "k": values}]})
    layout = Layout.of(marked, compile_expression)
    made = Struct.FromString(layout.render(evaluated(layout.expressions(), {"params": {"v": text}})))
    assert made == to_struct({"fixed": values, "list": [values, text, {"at": f"{text}!", "k": values}]})


def test_text_with_a_nul_is_whole() -> None:
    spec = storage_pb2.RunSpec(params=to_struct({"t": "a\0b", "m": {"k\0": "v"}}).SerializeToString())
    spec.resource.labels.update({"l": "c\0d", "m\0n": ""})
    plan = compile_plan(Pipeline(name="p", steps=[Step(id="a", driver="x")]))
    seen = Seen(plan, storage_pb2.RunHead(id="r"), b"\1", b"\0", [None])
    text = "[params.t, params.t + 'x', params.m, resource.labels, params.t.size(), params.t == 'a\\u0000b']"
    given = RunValues(spec).of(what(text), 0, seen)
    holder = to_struct({"v": ["a\0b", "a\0bx", {"k\0": "v"}, {"l": "c\0d", "m\0n": ""}, 3, True]})
    assert Value.FromString(encoded(text, **given)) == holder.fields["v"]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 60_000])
def test_sizes_of_all_lengths(size: int) -> None:
    layout = Layout.of(to_struct({"a": ["${{ params.v }}"]}), compile_expression)
    made = Struct.FromString(layout.render(evaluated(layout.expressions(), {"params": {"v": "x" * size}})))
    assert made == to_struct({"a": ["x" * size]})


def test_what_would_take_too_much_is_not_written_first() -> None:
    """Many times the same text are one in memory, until they are written."""
    values = {"l": [0.0] * 200, "t": "x" * 1000}
    with pytest.raises(NoRoom):
        encoded("params.l.map(x, params.t)", params=values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[optional.of(1)]", "it is an optional"),
        ("{'a': optional.none()}", "it is an optional"),
        ("[type(1)]", "it is a type, which JSON does not have"),
        ("{1: 'x'}", "a map has a key that is no text"),
        ("[b'x']", "it is a bytes, which JSON does not have"),
    ],
)
def test_what_is_no_json_within_a_value(text: str, said: str) -> None:
    with pytest.raises(NoValue, match=said):
        encoded(text)


def test_levels_are_counted() -> None:
    nested: object = "x"
    for _ in range(limits.STRUCT_NESTING - 1):
        nested = [nested]
    assert encoded("params.v", params={"v": nested})
    with pytest.raises(TooLarge, match="nested deeper"):
        encoded("params.v", params={"v": [nested]})


def judged(spec: dict[str, object], **fields: Any) -> Verdict:
    """What becomes of a step with these fields."""
    pipeline = Pipeline(name="p", steps=[Step(id="a", driver="x", **fields)])
    plan = compile_plan(pipeline)
    run = storage_pb2.RunSpec(pipeline=pipeline)
    run.resource.spec.CopyFrom(to_struct(spec))
    seen = Seen(plan, storage_pb2.RunHead(id="r"), b"\1", b"\0", [None])
    return RunInputs(Program(pipeline, plan), run).judge(0, seen)


def test_a_step_may_not_do_in_many_expressions_what_it_may_not_in_one() -> None:
    numbers = {"l": list(range(1500))}
    copies = "${{ resource.spec.l.map(x, x).size() }}"
    assert judged(numbers, params=to_struct({"a": copies, "b": copies})).params
    many = judged(numbers, params=to_struct({"all": [copies] * 30}))
    assert many.reason == run_pb2.STEP_REASON_INPUT_INVALID
    assert many.message.startswith("the expressions of the step would take too much work together")
    skipped = judged(numbers, when="resource.spec.l.size() == 0", params=to_struct({"all": [copies] * 30}))
    assert skipped.reason == run_pb2.STEP_REASON_CONDITION_FALSE

"""Expressions: what they come to, what is wrong with them, and that none of them takes long."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.core import limits
from conveyor.core.params import check_params
from conveyor.expressions import results
from conveyor.expressions.declarations import Declarations
from conveyor.expressions.errors import MissingValue, NotAnExpression, NoValue, TooLarge
from conveyor.expressions.expression import check_expression, compile_expression, evaluated
from conveyor.expressions.layout import Layout
from conveyor.expressions.template import compile_text
from conveyor.expressions.values import pick
from conveyor.v1 import pipeline_pb2

PARAMS = [
    pipeline_pb2.Param(name="env"),
    pipeline_pb2.Param(name="n", type=pipeline_pb2.PARAM_TYPE_NUMBER),
    pipeline_pb2.Param(name="on", type=pipeline_pb2.PARAM_TYPE_BOOLEAN),
    pipeline_pb2.Param(name="list", type=pipeline_pb2.PARAM_TYPE_ARRAY),
    pipeline_pb2.Param(name="map", type=pipeline_pb2.PARAM_TYPE_OBJECT),
    pipeline_pb2.Param(name="foo_bar"),
    pipeline_pb2.Param(name="fooBar"),
]
DECLARED = Declarations.of(PARAMS)


def struct(**values: object) -> Struct:
    """Values as they are stored."""
    made = Struct()
    made.update(values)
    return made


VALUES: dict[str, object] = {
    "params": struct(env="prod", n=3, half=2.5, on=True, list=[1, 2, "x"], map={"a": {"b": 1}}, nothing=None),
    "context": struct(registry="r.example.org"),
    "resource": {"name": "web", "labels": {"team": "a"}, "spec": struct(files=["a.py", "b.go"])},
    "run": {"id": "0199", "create_time": Timestamp(seconds=1_700_000_000)},
    "steps": {
        "build": {"state": "SUCCEEDED", "reason": "", "data": struct(image="web:7", size=9)},
        "unit-tests": {"state": "SKIPPED", "reason": "CONDITION_FALSE", "data": Struct()},
    },
}


def value(text: str, **values: object) -> object:
    """What an expression comes to, as JSON."""
    given = values or VALUES
    room = results.Room(limits.STEP_PARAMS_BYTES)
    return plain(Value.FromString(results.encode(compile_expression(text).evaluate(picked(given)), room)))


def picked(values: dict[str, object]) -> dict[str, Any]:
    """All of the values, as expressions are given them."""
    return {
        key: pick(each, None) if isinstance(each, Struct) else picked(each) if isinstance(each, dict) else each
        for key, each in values.items()
    }


def plain(each: Value) -> object:
    """A value of Python."""
    kind = each.WhichOneof("kind")
    if kind == "list_value":
        return [plain(item) for item in each.list_value.values]
    if kind == "struct_value":
        return {key: plain(item) for key, item in each.struct_value.fields.items()}
    return None if kind == "null_value" else getattr(each, str(kind))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("params.env", "prod"),
        ("params.n == 3", True),
        ("params.n == 3.0 && 3 == params.n && params.n in [1, 3]", True),
        ("params.n > 2 && params.n <= 3.5", True),
        ("params.n + 1", 4.0),
        ("1 + params.n * 2 - params.half / 2", 5.75),
        ("params.n / 2", 1.5),
        ("7 / 2", 3.0),
        ("size(params.list) == params.n", True),
        ("params.list[params.n - 1]", "x"),
        ("string(params.n) + '/' + string(params.half)", "3/2.5"),
        ("params.nothing == null", True),
        ("params.map", {"a": {"b": 1.0}}),
        ("params.map.a.b == 1", True),
        ("[params.env, 1, null, {'k': true}]", ["prod", 1.0, None, {"k": True}]),
        ("has(params.zzz)", False),
        ("has(params.env) && !has(params.map.zzz)", True),
        ("params.?zzz.orValue('none')", "none"),
        ("steps.build.data.image", "web:7"),
        ('steps["unit-tests"].state', "SKIPPED"),
        ('steps["unit-tests"].data.?coverage.orValue(0)', 0.0),
        ("steps.build.state == 'SUCCEEDED' && steps.build.data.size > 5", True),
        ("resource.spec.files.filter(f, f.endsWith('.py'))", ["a.py"]),
        ("resource.spec.files.exists(f, f == 'b.go')", True),
        ("resource.spec.files.map(f, 'src/' + f)", ["src/a.py", "src/b.go"]),
        ("resource.labels.team + context.registry", "ar.example.org"),
        ("run.create_time", "2023-11-14T22:13:20Z"),
        ("run.create_time < timestamp('2024-01-01T00:00:00Z')", True),
        ("duration('90s')", "90s"),
        ("'ünï😀' + '\\u00e9'", "ünï😀é"),
        (
            "params",
            {
                "env": "prod",
                "n": 3.0,
                "half": 2.5,
                "on": True,
                "list": [1.0, 2.0, "x"],
                "map": {"a": {"b": 1.0}},
                "nothing": None,
            },
        ),
    ],
)
def test_values(text: str, wanted: object) -> None:
    assert value(text) == wanted


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("params.zzz", MissingValue, "params.zzz is not there"),
        ("params.map.a.zzz.y", MissingValue, "params.map.a.zzz is not there"),
        ('steps["unit-tests"].data.coverage > 1', MissingValue, 'steps["unit-tests"].data.coverage is not there'),
        ("params.map['q']", MissingValue, "params.map.q is not there"),
        ("context[params.env]", MissingValue, "the key prod is not there"),
        ("1 / 0", NoValue, "divide by zero"),
        ("params.n / 0", NoValue, "inf, which JSON does not have"),
        ("0.0 / 0.0", NoValue, "nan"),
        ("9007199254740993", NoValue, "a double cannot hold"),
        ("9223372036854775807 + 1", NoValue, "overflow"),
        ("params.env + params.n", NoValue, "No matching overloads"),
        ("params.n ? 1 : 2", NoValue, "neither true nor false"),
        ("params.list[9]", NoValue, "index=9"),
        ("int(params.env)", NoValue, "cannot convert"),
        ("b'x'", NoValue, "JSON does not have"),
        ("{1: 2}", NoValue, "no text"),
        ("params.?zzz", NoValue, "orValue"),
        ("params.env.matches('(')", NoValue, "regular expression"),
        ("params.n.x", NoValue, "no map"),
        ("type(1)", NoValue, "JSON does not have"),
    ],
)
def test_no_value(text: str, error: type[NoValue], said: str) -> None:
    with pytest.raises(error) as raised:
        value(text)
    assert type(raised.value) is error
    assert said in str(raised.value)


def faults(text: str, declared: Declarations = DECLARED) -> list[str]:
    """What is wrong with an expression as it is written."""
    try:
        check_expression(text, declared)
    except NotAnExpression as error:
        return [str(fault) for fault in error.faults]
    return []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 +", "line 1, column 4: Syntax error: mismatched input '<EOF>'"),
        ("params.nope", "line 1, column 7: the pipeline has no parameter nope; it has env, n, on, list, map, foo_bar"),
        ("has(params.nope)", "line 1, column 4: the pipeline has no parameter nope"),
        ("params.env ==\n  foo", "line 2, column 3: there is no variable or function foo"),
        ("'é😀' + foo", "line 1, column 8: there is no variable or function foo"),
        ("matrix.os == 'x'", "line 1, column 7: there is no variable or function matrix"),
        ("params.env == 3", "line 1, column 12: found no matching overload for '_==_' applied to '(string, int)'"),
        ("params.on + 1", "found no matching overload for '_+_' applied to '(bool, int)'"),
        ("run.state", "there is no field state here, but namespace, id, pipeline, parent_run, create_time, labels"),
        ("resource.nme", "there is no field nme here, but namespace, name, definition, labels, spec"),
        ("steps.build.result", "there is no field result here, but state, reason, data"),
        ("nope(1)", "there is no variable or function nope"),
        ("", "is empty"),
        (" \n ", "is empty"),
        ("\ud800", "no part of UTF-8"),
        ("x" * (1 << 20), "has 1048576 bytes; at most 4096"),
        ("(" * 1000 + "1" + ")" * 1000, "recursion"),
        ("[" * 1000 + "]" * 1000, "recursion"),
        ("params" + ".a" * 1000, "recursion"),
        ("1" + "+1" * 1000, "recursion"),
        ("size(" * 600 + "''" + ")" * 600, "recursion"),
        ("[1]" + ".map(x, x)" * 300, "recursion"),
    ],
)
def test_what_cannot_be_compiled(text: str, said: str) -> None:
    assert said in "; ".join(faults(text))


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert len(faults("params.zz == 1 || run.zz == 'x' || zz")) == 3


def test_names_that_json_would_take_for_one() -> None:
    assert faults("params.foo_bar == params.fooBar") == []


def test_a_finally_step_knows_how_the_run_went() -> None:
    assert faults("run.state == 'FAILED'", Declarations.of(PARAMS, after_all=True)) == []


def test_the_axes_of_a_matrix() -> None:
    declared = Declarations.of(PARAMS, matrix=["os"])
    assert faults("matrix.os == 'mac'", declared) == []
    assert "no field arch" in faults("matrix.arch == 'arm'", declared)[0]


def test_numbers_and_deep_signs_do_no_harm() -> None:
    for text in ("!" * 4000 + "true", "-" * 4000 + "1", "true&&" * 600 + "true", "'" + "a" * 4000 + "'"):
        assert faults(text) == []


MANY = struct(l=list(range(3000)), t="x" * 100_000, s=[str(i) for i in range(3000)])


@pytest.mark.parametrize(
    "text",
    [
        "params.l.all(x, params.l.all(y, params.l.all(z, true)))",
        "params.l.all(x, params.l == params.l)",
        "params.l.map(x, params.t + params.t).size() > 0",
        "params.s.map(x, params.s.map(y, params.t + y)).size() > 0",
        "['aaaaaaaaaaaaaaaa']" + ".map(s, s + s)" * 25,
        "params.l.all(x, " + " && ".join(["x*1>=0"] * 200) + ")",
        "params.l.all(x, " + " && ".join(["{'a': x, 'b': x}.b>=0"] * 150) + ")",
        "params.t.matches('x*') && params.l.all(x, params.s.all(y, params.t.matches(y)))",
    ],
)
def test_what_would_take_long_is_not_done(text: str) -> None:
    assert (
        faults(text.replace("params.l", "params.list").replace("params.s", "params.list").replace(".t", ".env")) == []
    )
    with pytest.raises(NoValue, match=r"too much work|more than 10,000 items"):
        value(text, params=MANY)


def test_what_takes_a_while_is_done() -> None:
    assert value("params.l.all(x, x >= 0) && params.s.exists(x, x.startsWith('29'))", params=MANY) is True


def rendered(source: Struct, values: dict[str, object] | None = None) -> dict[str, object]:
    """What params with expressions come to."""
    given = picked(values or VALUES)
    layout = Layout.of(source, compile_expression)
    made = Struct.FromString(layout.render(evaluated(layout.expressions(), given)))
    return {key: plain(each) for key, each in made.fields.items()}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("${{ params.n }}", 3.0),
        ("${{params.list}}", [1.0, 2.0, "x"]),
        ("${{ [] }}", []),
        ("${{ {'m': {}, 'l': [[], {}]} }}", {"m": {}, "l": [[], {}]}),
        ("v${{ params.n }}", "v3"),
        ("${{ params.env }}-${{ params.half }}${{ params.on }}", "prod-2.5true"),
        ("${{ {'a': {'b': '}}'}}.a.b }}", "}}"),
        ("${{ \"}}\" + '\\'}}' + r'\\d' }}!", "}}'}}\\d!"),
        ("$${{ params.n }}", "${{ params.n }}"),
        ("$${{ a }} ${{ params.env }}", "${{ a }} prod"),
        ("${{ '$' + '{{ params.n }}' }}", "${{ params.n }}"),
        (" ${{ params.env }}\n", " prod\n"),
        ("{{ params.n }} $ {", "{{ params.n }} $ {"),
    ],
)
def test_text_with_expressions(text: str, wanted: object) -> None:
    assert rendered(struct(a=[{"b": text}], c=1)) == {"a": [{"b": wanted}], "c": 1.0}


def test_what_a_value_contains_is_not_evaluated() -> None:
    values = {"resource": {"spec": struct(s="${{ params.secret }}", m={"${{ x }}": "${{ y }}"})}}
    source = struct(whole="${{ resource.spec.s }}", part="a ${{ resource.spec.s }}", m="${{ resource.spec.m }}")
    assert rendered(source, values) == {
        "whole": "${{ params.secret }}",
        "part": "a ${{ params.secret }}",
        "m": {"${{ x }}": "${{ y }}"},
    }


@pytest.mark.parametrize("text", ["a ${{ params.list }}", "a ${{ params.map }}", "a ${{ params.nothing }}"])
def test_what_has_no_place_in_text(text: str) -> None:
    with pytest.raises(NoValue, match=r"^params\.a\[0\]: it is .*within other text"):
        rendered(struct(a=[text]))


@pytest.mark.parametrize(
    "source",
    [
        struct(a="${{ params.t }}"),
        struct(a="${{ params.half + params.half }}"),
        struct(a="${{ params.l }}"),
        struct(a=["${{ params.half }}", "${{ params.half }}"]),
        struct(a="${{ params.half }}", b="y" * 40_000),
        struct(a="${{ params.list.map(x, params.half) }}"),
    ],
)
def test_what_comes_to_too_much(source: Struct) -> None:
    values: dict[str, object] = {
        "params": struct(t="x" * 70_000, half="x" * 40_000, l=list(range(1, 7000)), list=[1, 2])
    }
    with pytest.raises(TooLarge, match=r"params.* 65536 bytes|at most 65536"):
        rendered(source, values)


def test_text_that_has_no_end() -> None:
    with pytest.raises(NotAnExpression, match=r"line 2, column 3: \$\{\{ has no \}\}"):
        compile_text("a\nb ${{ params.n }", compile_expression)


def test_places_within_the_whole_text() -> None:
    with pytest.raises(NotAnExpression) as raised:
        compile_text("a ${{ params.env }}\n  ${{\n  1 + }}", lambda text: check_expression(text, DECLARED))
    assert [str(fault) for fault in raised.value.faults] == ["line 3, column 6: Syntax error: mismatched input '<EOF>'"]


@pytest.mark.parametrize("name", ["in", "true", "false", "null"])
def test_names_that_no_expression_can_write_are_no_names_of_parameters(name: str) -> None:
    assert "Syntax error" in faults(f"params.{name}", Declarations.of([pipeline_pb2.Param(name=name)]))[0]
    (fault,) = check_params([pipeline_pb2.Param(name=name)], "params")
    assert (fault.field, fault.description) == (
        "params[0].name",
        f"must not be {name}: expressions have that word for themselves and cannot write it after a dot",
    )


@pytest.mark.parametrize("name", ["if", "for", "import", "as", "package", "has", "size", "True", "None", "matrix"])
def test_all_other_names_can_be_written(name: str) -> None:
    named = [pipeline_pb2.Param(name=name)]
    assert (faults(f"params.{name}", Declarations.of(named)), list(check_params(named, "params"))) == ([], [])

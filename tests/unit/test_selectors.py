"""Label selectors: what fulfils them, how they are said, what is refused, and what comes of their expressions."""

from __future__ import annotations

import itertools

import pytest

from conveyor.api.validation import check
from conveyor.core import errors, limits
from conveyor.core.events import RunCreated
from conveyor.core.model import new_run
from conveyor.core.plan import compile_plan
from conveyor.core.selectors import ANY, compile_selector, fulfils, spell, spell_connected
from conveyor.core.transitions import apply
from conveyor.expressions.program import Program, RunInputs
from conveyor.sdk import to_struct
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_service_pb2
from conveyor.v1.pipeline_pb2 import LabelOperator, LabelRequirement, LabelSelector, Pipeline, Step

IN, NOT_IN, EXISTS, ABSENT = (
    LabelOperator.Value(f"LABEL_OPERATOR_{name}") for name in ("IN", "NOT_IN", "EXISTS", "DOES_NOT_EXIST")
)


def term(key: str, operator: LabelOperator.ValueType, *values: str) -> LabelRequirement:
    return LabelRequirement(key=key, operator=operator, values=values)


def on(*terms: LabelRequirement, **labels: str) -> LabelSelector:
    return LabelSelector(match_labels=labels, match_expressions=terms)


# The cases of TestRequirementSelectorMatching in Kubernetes' labels package, and what its documentation says.
@pytest.mark.parametrize(
    ("selector", "labels", "fits"),
    [
        (on(), {}, True),
        (on(), {"x": "foo"}, True),
        (on(term("x", IN, "foo")), {"x": "foo"}, True),
        (on(term("x", IN, "foo")), {"x": "bar"}, False),
        (on(term("x", IN, "foo")), {}, False),
        (on(term("x", IN, "foo", "bar")), {"x": "bar", "y": "z"}, True),
        (on(term("x", IN, "")), {"x": ""}, True),
        (on(term("x", IN, "")), {}, False),
        (on(term("x", NOT_IN, "foo")), {"x": "foo"}, False),
        (on(term("x", NOT_IN, "foo")), {"x": "bar"}, True),
        (on(term("x", NOT_IN, "foo")), {}, True),
        (on(term("x", NOT_IN, "foo", "bar")), {"y": "foo"}, True),
        (on(term("x", NOT_IN, "")), {"x": ""}, False),
        (on(term("x", EXISTS)), {"x": ""}, True),
        (on(term("x", EXISTS)), {"y": "x"}, False),
        (on(term("x", ABSENT)), {"y": "x"}, True),
        (on(term("x", ABSENT)), {"x": ""}, False),
        (on(x="foo"), {"x": "foo", "y": "bar"}, True),
        (on(x="foo"), {"x": "Foo"}, False),
        (on(x="foo", y="bar"), {"x": "foo"}, False),
        (on(term("y", IN, "a", "b"), term("z", EXISTS), x="foo"), {"x": "foo", "y": "b", "z": "1"}, True),
        (on(term("y", IN, "a", "b"), term("z", EXISTS), x="foo"), {"x": "foo", "y": "b"}, False),
        (on(term("x", IN, "foo"), x="bar"), {"x": "foo"}, False),
    ],
)
def test_what_fulfils_a_selector(selector: LabelSelector, labels: dict[str, str], fits: bool) -> None:
    assert fulfils(labels, compile_selector(selector)) is fits


def test_selectors_that_say_the_same_are_one() -> None:
    terms = [term("a", IN, "1", "2"), term("b", EXISTS), term("c", IN, "x")]
    compiled = {compile_selector(on(*order)) for order in itertools.permutations(terms)}
    assert compiled == {compile_selector(on(term("a", IN, "2", "1", "2"), term("b", EXISTS), c="x"))}
    assert compile_selector(on()) == ANY


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        (on(os="arm64"), "os=arm64"),
        (on(term("tier", IN, "b", "a"), term("x", NOT_IN, "1")), "tier in (a, b), x!=1"),
        (on(term("y", NOT_IN, "1", "2")), "y notin (1, 2)"),
        (on(term("gpu", EXISTS), term("spot", ABSENT)), "!spot, gpu"),
        (on(term("n", IN, *map(str, range(9)))), "n in (0, 1, 2, 3, 4, 5, 6, 7, …)"),
    ],
)
def test_how_a_selector_is_said(selector: LabelSelector, said: str) -> None:
    assert spell(compile_selector(selector)) == said


def test_how_those_who_do_not_fit_are_said() -> None:
    selector = compile_selector(on(term("gpu", EXISTS), os="arm64"))
    amd = {"os": "amd64", "zone": "a"}
    assert spell_connected(selector, [amd, amd]) == "2 connected: no gpu, os=amd64"
    said = spell_connected(selector, [amd, {"gpu": "", "os": "x"}, amd, {}])
    assert said == "4 connected: 2 with no gpu, os=amd64; 1 with gpu=, os=x; 1 with no gpu, no os"
    many = spell_connected(selector, [{"os": f"{i:02}"} for i in range(20)])
    assert many == "20 connected: " + "; ".join(f"1 with no gpu, os={i:02}" for i in range(5)) + "; 15 others"
    assert len(spell_connected(selector, [{"os": "x" * 10_000}] * 2)) < 400


def problems(selector: LabelSelector) -> list[tuple[str, str]]:
    pipeline = Pipeline(name="p", steps=[Step(id="a", driver="x", worker_selector=selector)])
    try:
        check(pipeline_service_pb2.CreatePipelineRequest(pipeline=pipeline))
    except errors.Invalid as error:
        prefix = "pipeline.steps[0].worker_selector"
        return [(each.field.removeprefix(prefix), each.description) for each in error.violations]
    return []


@pytest.mark.parametrize(
    ("selector", "path", "said"),
    [
        (on(term("", IN, "x")), ".match_expressions[0].key", "is empty"),
        (on(term("os", IN)), ".match_expressions[0].values", "is empty; IN needs at least one"),
        (on(term("os", NOT_IN)), ".match_expressions[0].values", "is empty; NOT_IN needs at least one"),
        (on(term("os", EXISTS, "x")), ".match_expressions[0].values", "must be empty with EXISTS"),
        (on(term("os", ABSENT, "x")), ".match_expressions[0].values", "must be empty with DOES_NOT_EXIST"),
        (on(LabelRequirement(key="os")), ".match_expressions[0].operator", "is missing: IN, NOT_IN, EXISTS or"),
        (on(LabelRequirement(key="os", operator=9)), ".match_expressions[0].operator", "9 is not a value"),  # type: ignore[arg-type]
        (on(term("os", IN, *map(str, range(65)))), ".match_expressions[0].values", "has 65 entries; at most 64"),
        (on(*[term("os", EXISTS)] * 65), ".match_expressions", "has 65 entries; at most 64"),
        (on(**{f"k{i}": "" for i in range(65)}), ".match_labels", "has 65 entries; at most 64"),
        (on(**{"": "x"}), ".match_labels", "has a key that is empty"),
        (on(**{"k" * 129: "x"}), f'.match_labels["{"k" * 64}"]', "has a key that has 129 bytes; at most 128"),
        (on(term("k" * 129, EXISTS)), ".match_expressions[0].key", "has 129 bytes; at most 128"),
        (on(os="x" * 257), '.match_labels["os"]', "has a value of 257 bytes; at most 256"),
        (on(term("os", IN, "a", "x" * 257)), ".match_expressions[0].values[1]", "has a value of 257 bytes"),
        (on(**{"${{ params.x }}": "x"}), '.match_labels["${{ params.x }}"]', "has a key that has an expression"),
        (on(term("${{ 1 }}", EXISTS)), ".match_expressions[0].key", "has an expression; they have their place"),
        (on(os="${{ params.x }}"), '.match_labels["os"]', "line 1, column 11: the pipeline has no parameter x"),
        (
            on(
                term("os", IN, "a", "${{ 1 +"),
            ),
            ".match_expressions[0].values[1]",
            "${{ has no }}",
        ),
        (on(os="${{ [1] }}"), '.match_labels["os"]', "comes to list, which has no place within other text"),
        (on(os="${{ steps.b.state }}"), '.match_labels["os"]', "there is no step b"),
        (on(os="${{ '" + "x" * limits.SELECTOR_BYTES + "' }}"), "", "bytes; at most 16384"),
    ],
)
def test_what_is_refused(selector: LabelSelector, path: str, said: str) -> None:
    found = problems(selector)
    assert any(field == path and said in description for field, description in found), found


def test_what_is_fine() -> None:
    assert not problems(on())
    assert not problems(on(term("a", IN, ""), term("b", EXISTS), os="${{ resource.spec.os }}-$${{ x }}", n="é" * 128))


def begun(step: Step, spec: dict[str, object]) -> storage_pb2.StepRecord:
    """The record of a step of a run that begins."""
    pipeline = Pipeline(name="p", steps=[step])
    run_spec = storage_pb2.RunSpec(pipeline=pipeline)
    run_spec.resource.spec.CopyFrom(to_struct(spec))
    plan = compile_plan(pipeline)
    state = new_run(
        plan, storage_pb2.RunHead(id="r", create_time=1), inputs=RunInputs(Program(pipeline, plan), run_spec)
    )
    record = apply(state, RunCreated(), 2).state.steps[0]
    assert record is not None
    return record


def test_what_comes_of_expressions_is_kept_with_the_step() -> None:
    selector = on(
        term("zone", NOT_IN, "$${{ x", "${{ resource.spec.zone }}"), os="${{ resource.spec.os }}-x", n="${{ 2.0 + 1 }}"
    )
    record = begun(Step(id="a", driver="x", worker_selector=selector), {"zone": "b", "os": "arm"})
    assert record.worker_selector == on(term("zone", NOT_IN, "${{ x", "b"), os="arm-x", n="3")
    assert not record.params


def test_of_one_without_expressions_nothing_is_kept() -> None:
    step = Step(id="a", driver="x", when="true", worker_selector=on(os="arm"), params=to_struct({"a": 1}))
    record = begun(step, {})
    assert not record.HasField("worker_selector")
    assert compile_plan(Pipeline(name="p", steps=[step])).steps[0].selector == compile_selector(on(os="arm"))


def test_what_comes_to_too_much_fails_the_step() -> None:
    terms = [term("zone", IN, *["${{ resource.spec.zone }}"] * 30)] * 3
    record = begun(Step(id="a", driver="x", worker_selector=on(*terms)), {"zone": "z" * 250})
    assert record.message == "worker_selector takes 22803 bytes; at most 16384"

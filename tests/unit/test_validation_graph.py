"""Whether steps can ever run: ids, needs, and cycles, which are named."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conveyor.core.graph_check import check_graph, find_cycle
from conveyor.v1 import errors_pb2, pipeline_pb2


def graph(needs: dict[str, Iterable[str]], finally_ids: Iterable[str] = ()) -> pipeline_pb2.Pipeline:
    pipeline = pipeline_pb2.Pipeline(order=pipeline_pb2.ORDER_GRAPH)
    for step, its in needs.items():
        pipeline.steps.add(id=step, driver="x", needs=its)
    for step in finally_ids:
        pipeline.finally_steps.add(id=step, driver="x")
    return pipeline


def described(pipeline: pipeline_pb2.Pipeline) -> list[tuple[str, str]]:
    return [(violation.field, violation.description) for violation in check_graph(pipeline)]


@pytest.mark.parametrize(
    ("needs", "way"),
    [
        ({"a": ["a"]}, "a -> a"),
        ({"a": ["b"], "b": ["a"]}, "a -> b -> a"),
        ({"x": [], "a": ["x", "c"], "b": ["a"], "c": ["b"]}, "a -> c -> b -> a"),
        ({"x": ["a"], "a": ["b"], "b": ["a"]}, "a -> b -> a"),
    ],
)
def test_cycles_are_named(needs: dict[str, list[str]], way: str) -> None:
    violations = check_graph(graph(needs))
    assert [(v.field, v.reason) for v in violations] == [("pipeline.steps", errors_pb2.ERROR_REASON_CYCLE)]
    assert violations[0].description == f"the steps need each other in a circle: {way}"


def test_a_cycle_of_six_in_a_graph_of_forty() -> None:
    needs: dict[str, list[str]] = {f"s{i}": [f"s{i - 1}"] if i else [] for i in range(40)}
    needs["s10"].append("s15")
    cycle = find_cycle(graph(needs))
    assert sorted(cycle) == [f"s{i}" for i in range(10, 16)]


def test_a_long_cycle_is_shown_in_part() -> None:
    needs = {f"s{i}": [f"s{(i + 1) % 1000}"] for i in range(1000)}
    (violation,) = check_graph(graph(needs))
    assert violation.description.endswith("s0 -> s1 -> s2 -> s3 -> s4 -> s5 -> s6 -> s7 -> s8 -> (991 more) -> s0")


def test_layers_of_a_thousand_steps_have_no_cycle() -> None:
    layers = [[f"l{layer}-{i}" for i in range(100)] for layer in range(10)]
    needs: dict[str, list[str]] = {}
    for layer, ids in enumerate(layers):
        for step in ids:
            needs[step] = layers[layer - 1] if layer else []
    assert check_graph(graph(needs)) == []


def test_a_chain_of_a_thousand_steps_needs_no_deep_stack() -> None:
    assert check_graph(graph({f"s{i}": [f"s{i + 1}"] if i < 999 else [] for i in range(1000)})) == []


def test_unknown_needs() -> None:
    assert described(graph({"a": [], "b": ["a", "tpyo"]})) == [("pipeline.steps[1].needs[1]", "there is no step tpyo")]
    assert described(graph({"a": ["z"]}, ["z"])) == [
        ("pipeline.steps[0].needs[0]", "z is a finally step, which starts last")
    ]


def test_a_repeated_need_counts_once_and_no_needs_is_a_root() -> None:
    assert check_graph(graph({"a": [], "b": ["a", "a"]})) == []


def test_ids_are_unique_finally_steps_included() -> None:
    pipeline = graph({"a": [], "b": []}, ["a"])
    pipeline.steps.add(id="b", driver="x")
    assert described(pipeline) == [
        ("pipeline.steps[2].id", "b is the id of pipeline.steps[1] already"),
        ("pipeline.finally[0].id", "a is the id of pipeline.steps[0] already"),
    ]


@pytest.mark.parametrize("order", [pipeline_pb2.ORDER_UNSPECIFIED, pipeline_pb2.ORDER_LIST])
def test_a_list_takes_no_needs(order: pipeline_pb2.Order.ValueType) -> None:
    pipeline = graph({"a": [], "b": ["a"]})
    pipeline.order = order
    assert [field for field, _ in described(pipeline)] == ["pipeline.steps[1].needs"]


def test_finally_steps_take_neither_needs_nor_rule() -> None:
    pipeline = graph({"a": []}, ["z"])
    pipeline.finally_steps[0].needs.append("a")
    pipeline.finally_steps[0].trigger_rule = pipeline_pb2.TRIGGER_RULE_ALL_DONE
    assert [field for field, _ in described(pipeline)] == [
        "pipeline.finally[0].needs",
        "pipeline.finally[0].trigger_rule",
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(st.integers(0, 11), max_size=4), min_size=1, max_size=12).map(
        lambda rows: {str(i): [str(n) for n in needs] for i, needs in enumerate(rows)}
    )
)
def test_a_cycle_is_found_if_and_only_if_there_is_no_order(needs: dict[str, list[str]]) -> None:
    cycle = find_cycle(graph(needs))
    # Take away what needs nothing that is left, as long as there is such a step.
    left = {step: {need for need in its if need in needs} for step, its in needs.items()}
    while free := {step for step, its in left.items() if not its}:
        left = {step: its - free for step, its in left.items() if step not in free}
    assert bool(cycle) == bool(left)
    for step, need in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        assert need in needs[step]

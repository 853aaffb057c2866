"""The combinations of a matrix, what is wrong with how one is written, and what its expressions come to."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from conveyor.api.validation import check
from conveyor.core import errors, limits
from conveyor.core.combinations import TooManyCombinations, combinations
from conveyor.core.inputs import Expansion, Seen
from conveyor.core.plan import compile_plan
from conveyor.expressions.program import Program, RunInputs
from conveyor.sdk import from_struct, to_struct
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import errors_pb2, pipeline_pb2, pipeline_service_pb2, resource_pb2, run_pb2
from tests.support.belt import matrix, step


def made(
    axes: dict[str, list[Any]], include: list[dict[str, Any]] | None = None, exclude: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The combinations, as plain values."""
    given = matrix(axes, include=include, exclude=exclude)
    lists = {name: value.list_value.values for name, value in given.axes.items()}
    return [from_struct(each) for each in combinations(lists, given.include, given.exclude)]


# Combinations


def test_the_last_axis_by_name_varies_fastest() -> None:
    assert made({"os": ["linux", "mac"], "arch": ["arm", "x86"]}) == [
        {"arch": "arm", "os": "linux"},
        {"arch": "arm", "os": "mac"},
        {"arch": "x86", "os": "linux"},
        {"arch": "x86", "os": "mac"},
    ]


def test_one_that_names_some_axes_leaves_out_all_with_these_values() -> None:
    axes = {"os": ["linux", "mac"], "py": [1, 2], "x": [True]}
    assert made(axes, exclude=[{"os": "mac"}, {"py": 1, "x": True, "os": "linux"}]) == [
        {"os": "linux", "py": 2, "x": True}
    ]


def test_values_are_compared_whole() -> None:
    values = [{"a": 1, "b": [2]}, {"b": [2], "a": 1, "c": None}, [1], 1, "1", None, True]
    assert made({"v": values}, exclude=[{"v": {"b": [2], "a": 1}}, {"v": "1"}, {"v": None}]) == [
        {"v": each} for each in ({"b": [2], "a": 1, "c": None}, [1], 1, True)
    ]


def test_what_is_included_is_added_as_it_is_and_stays() -> None:
    included = [{"os": "mac"}, {"os": "linux", "extra": [1]}]
    assert made({"os": ["linux", "mac"]}, include=included, exclude=[{"os": "mac"}]) == [{"os": "linux"}, *included]


@pytest.mark.parametrize("axes", [{}, {"a": []}, {"a": [], "b": list(range(2000))}])
def test_no_axes_and_empty_ones_have_no_combinations(axes: dict[str, list[Any]]) -> None:
    assert made(axes) == []
    assert made(axes, include=[{"z": 1}]) == [{"z": 1}]


def test_what_is_there_twice_runs_twice() -> None:
    assert made({"a": [1, 1]}, include=[{"a": 1}]) == [{"a": 1}] * 3


def test_too_many() -> None:
    with pytest.raises(TooManyCombinations, match="comes to 257 instances; at most 256"):
        made({"a": list(range(256))}, include=[{"a": 1}])
    with pytest.raises(TooManyCombinations, match="comes to 1000000000000 combinations before its excludes"):
        made({name: list(range(1000)) for name in "abcd"}, exclude=[{"a": 1}])
    assert len(made({"a": list(range(32)), "b": list(range(32))}, exclude=[{"b": n} for n in range(24)])) == 256


# What is refused when a pipeline is applied


def refused(given: pipeline_pb2.Matrix, **fields: Any) -> list[tuple[str, str]]:
    """All that is wrong with a step with this matrix."""
    before, after = step("plan"), step("after", params=fields.pop("after", None))
    pipeline = pipeline_pb2.Pipeline(name="p", steps=[before, step("test", matrix=given, **fields), after])
    pipeline.params.add(name="list", type=pipeline_pb2.PARAM_TYPE_ARRAY)
    pipeline.params.add(name="text")
    try:
        check(pipeline_service_pb2.CreatePipelineRequest(pipeline=pipeline))
    except errors.DomainError as error:
        return [(each.field.removeprefix("pipeline.steps[1]."), each.description) for each in error.violations]
    return []


NO_NAME = 'is no name of an axis, which must be a letter, then letters, digits and "_"; at most 63 characters'
NO_LIST = "must be a list, or an expression in ${{ }} that yields one"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (matrix(), [("matrix", "has neither axes nor combinations to include")]),
        (matrix({"py-version": [1]}), [("matrix.axes.py-version", NO_NAME)]),
        (matrix({"in": [1]}), [("matrix.axes.in", "is no name of an axis, which must not be in: expressions have ")]),
        (matrix({"a": [1]}, include=[{"null": 1}]), [("matrix.include[0].null", "is no name of an axis, which must ")]),
        (matrix({"a": "linux", "b": 3, "c": {"x": 1}}), [(f"matrix.axes.{name}", NO_LIST) for name in "abc"]),
        (matrix({"a": None}), [("matrix.axes.a", NO_LIST)]),
        (matrix({"a": [1]}, include=[{}]), [("matrix.include[0]", "is empty")]),
        (matrix({"a": [1]}, include=[{"": 1}]), [("matrix.include[0].", NO_NAME)]),
        (matrix({"a": [1]}, exclude=[{"a": 1}, {}]), [("matrix.exclude[1]", "is empty")]),
        (
            matrix({"a": [1], "b": [2]}, exclude=[{"o": 1}]),
            [("matrix.exclude[0].o", "the matrix has no such axis; it has a, b")],
        ),
        (matrix({"a": [1]}, max_parallel=257), [("matrix.max_parallel", "must be from 0 to 256")]),
        (matrix({"a": list(range(257))}), [("matrix", "comes to 257 instances; at most 256")]),
        (
            matrix({"a": list(range(1025)), "b": "${{ params.list }}"}),
            [("matrix", "comes to 1025 combinations before its excludes; at most 1024")],
        ),
        (matrix(include=[{"a": n} for n in range(257)]), [("matrix", "comes to 257 instances; at most 256")]),
        (
            matrix({"a": [1]}, exclude=[{"a": n} for n in range(1025)]),
            [("matrix", "has 1025 excludes; at most 1024")],
        ),
        (
            matrix({"a": ["x" * 2000], "b": list(range(66))}),
            [("matrix", f"the values of its instances take 133848 bytes; at most {limits.MATRIX_BYTES}")],
        ),
        (matrix({"a": "${{ params.nope }}"}), [("matrix.axes.a", "line 1, column 11: the pipeline has no parameter ")]),
        (matrix({"a": "${{ params.text }}"}), [("matrix.axes.a", "must be a list, or one expression in ${{ }} that ")]),
        (matrix({"a": "${{ params.list }}!"}), [("matrix.axes.a", "line 1, column 5: comes to list, which has no ")]),
        (
            matrix({"a": "v${{ params.text }}"}),
            [("matrix.axes.a", "must be a list, or one expression in ${{ }} that ")],
        ),
        (matrix({"a": "${{ 1 + }}"}), [("matrix.axes.a", "line 1, column 8: Syntax error")]),
        (
            matrix({"a": ["${{ matrix.b }}"], "b": [1]}),
            [("matrix.axes.a[0]", "line 1, column 11: there is no variable")],
        ),
        (
            matrix({"a": ["${{ steps.after.data.x }}"]}),
            [("matrix.axes.a[0]", "line 1, column 5: step after does not end before step test begins")],
        ),
        (matrix({"a": [{"${{ x }}": 1}]}), [("matrix", "has the key ${{ x }}; expressions have no place in keys")]),
    ],
)
def test_a_matrix_that_is_refused(given: pipeline_pb2.Matrix, wanted: list[tuple[str, str]]) -> None:
    found = refused(given)
    assert [field for field, _ in found] == [field for field, _ in wanted]
    for (_, said), (_, start) in zip(found, wanted, strict=True):
        assert said.startswith(start)


def test_nan_is_refused_with_its_path() -> None:
    given = matrix({"a": [1]}, include=[{"a": 1}])
    given.axes["a"].list_value.values[0].number_value = float("nan")
    given.include[0].fields["a"].number_value = float("inf")
    assert [field for field, _ in refused(given)] == ["matrix.axes.a/0", "matrix.include[0].a"]


def test_a_size_has_a_reason_of_its_own() -> None:
    pipeline = pipeline_pb2.Pipeline(name="p", steps=[step("test", matrix=matrix({"a": list(range(300))}))])
    with pytest.raises(errors.TooLarge) as raised:
        check(pipeline_service_pb2.CreatePipelineRequest(pipeline=pipeline))
    assert raised.value.violations[0].reason == errors_pb2.ERROR_REASON_TOO_LARGE


OS = matrix({"os": ["a"]}, include=[{"os": "b", "extra": 1}])


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"when": "matrix.os == 'a' && has(matrix.extra)"}, []),
        ({"when": "matrix.arch == 'a'"}, [("when", "line 1, column 7: there is no field arch here, but extra, os")]),
        ({"params": to_struct({"a": "${{ matrix.oss }}"})}, [("params.a", "line 1, column 11: there is no field oss")]),
        ({"after": to_struct({"a": "${{ steps.test.data[0].x }}", "n": "${{ size(steps.test.data) }}"})}, []),
        (
            {"after": to_struct({"a": "${{ steps.test.data.x }}"})},
            [("pipeline.steps[2].params.a", "line 1, column 20: expression of type 'list(dyn)' cannot be")],
        ),
        ({"after": to_struct({"a": "${{ steps.plan.data.x }} ${{ steps.test.data[0] == steps.plan.data }}"})}, []),
        (
            {"after": to_struct({"a": "${{ steps.plan.data + 1 }}"})},
            [("pipeline.steps[2].params.a", "line 1, column 21: found no matching overload")],
        ),
        (
            {"after": to_struct({"a": "${{ steps['test[0]'].data.x }}"})},
            [
                (
                    "pipeline.steps[2].params.a",
                    "line 1, column 5: there is no step test[0]; the data of an instance is steps.test.data[0]",
                )
            ],
        ),
        (
            {"after": to_struct({"a": "${{ matrix.os }}"})},
            [("pipeline.steps[2].params.a", "line 1, column 11: there is no variable")],
        ),
    ],
)
def test_what_refers_to_a_matrix(fields: dict[str, Any], wanted: list[tuple[str, str]]) -> None:
    found = refused(OS, **fields)
    assert [field for field, _ in found] == [field for field, _ in wanted]
    for (_, said), (_, start) in zip(found, wanted, strict=True):
        assert said.startswith(start)


# What expressions come to


def expanded(given: pipeline_pb2.Matrix, when: str = "", **params: Any) -> Expansion:
    """What becomes of a step with this matrix after one that resulted in a list."""
    pipeline = pipeline_pb2.Pipeline(name="p", steps=[step("plan"), step("test", when=when, matrix=given)])
    plan = compile_plan(pipeline)
    spec = storage_pb2.RunSpec(
        pipeline=pipeline, resource=resource_pb2.Resource(name="web"), params=to_struct(params).SerializeToString()
    )
    result = storage_pb2.StoredResult(data=to_struct({"list": ["x", {"y": [1]}]}).SerializeToString())
    first = storage_pb2.StepRecord(step="plan", state=run_pb2.STEP_STATE_SUCCEEDED, result=result)
    states = bytes([run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_STATE_PENDING])
    seen = Seen(plan, storage_pb2.RunHead(id="r"), states, bytes(2), [first, None])
    return RunInputs(Program(pipeline, plan), spec).expand(1, seen)


def test_a_list_of_an_earlier_step() -> None:
    got = expanded(matrix({"a": "${{ steps.plan.data.list }}", "b": ["${{ params.n }}", "n${{ params.n }}"]}), n=7)
    assert [from_struct(Struct.FromString(each)) for each in got.instances] == [
        {"a": "x", "b": 7},
        {"a": "x", "b": "n7"},
        {"a": {"y": [1]}, "b": 7},
        {"a": {"y": [1]}, "b": "n7"},
    ]


def test_expressions_in_what_is_added_and_left_out() -> None:
    given = matrix(
        {"a": [1, 2]},
        include=[{"a": "${{ params.n }}", "m": {"x": ["${{ params.m }}"]}}],
        exclude=[{"a": "${{ params.m }}"}],
    )
    got = expanded(given, n=5, m=2)
    assert [from_struct(Struct.FromString(each)) for each in got.instances] == [{"a": 1}, {"a": 5, "m": {"x": [2]}}]


@pytest.mark.parametrize(
    ("given", "when", "params", "wanted"),
    [
        (matrix({"a": "${{ params.l }}"}), "", {"l": []}, ("UNSPECIFIED", "")),
        (matrix({"a": "${{ params.l }}"}), "", {}, ("INPUT_MISSING", "matrix.axes.a: params.l is not there")),
        (matrix({"a": "${{ params.l }}"}), "", {"l": {"x": 1}}, ("INPUT_INVALID", "matrix.axes.a: it is no list")),
        (matrix({"a": "${{ params.l }}"}), "", {"l": None}, ("INPUT_INVALID", "matrix.axes.a: it is no list")),
        (
            matrix({"a": "${{ params.l }}"}),
            "",
            {"l": list(range(300))},
            ("INPUT_TOO_LARGE", "matrix: it comes to 300 instances; at most 256"),
        ),
        (
            matrix({"a": "${{ params.l }}", "b": [1]}),
            "",
            {"l": ["x" * 1000] * 131},
            ("INPUT_TOO_LARGE", "matrix.axes.a: matrix takes more than 131072 bytes"),
        ),
        (
            matrix({"a": "${{ params.l }}", "b": list(range(32))}),
            "",
            {"l": ["x" * 1000] * 8},
            ("INPUT_TOO_LARGE", "matrix: the values of its instances take"),
        ),
        (matrix({"a": [1]}), "params.on", {"on": False}, ("CONDITION_FALSE", "")),
        (matrix({"a": [1]}), "params.on", {"on": 3}, ("INPUT_INVALID", "when: it is a number, neither true nor false")),
        (matrix({"a": [1]}), "matrix.a == 2 && params.on", {}, ("UNSPECIFIED", "")),
    ],
)
def test_what_a_matrix_comes_to(
    given: pipeline_pb2.Matrix, when: str, params: dict[str, Any], wanted: tuple[str, str]
) -> None:
    got = expanded(given, when, **params)
    assert run_pb2.StepReason.Name(got.reason).removeprefix("STEP_REASON_") == wanted[0]
    assert got.message.startswith(wanted[1])
    assert bool(got.message) == bool(wanted[1])

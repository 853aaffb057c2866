"""JSON becomes messages as protobuf's mapping says, and what is wrong is told with its path."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from conveyor.core import errors
from conveyor.http.methods import methods
from conveyor.http.reader import read, read_all
from conveyor.v1 import pipeline_service_pb2, resource_service_pb2, run_service_pb2, worker_service_pb2

ListRuns = run_service_pb2.ListRunsRequest
Pipeline = pipeline_service_pb2.CreatePipelineRequest
Resource = resource_service_pb2.CreateResourceRequest


def told(kind: Any, body: str | bytes) -> list[tuple[str, str]]:
    """What is said of a body: the path and the text of each mistake."""
    with pytest.raises(errors.InvalidRequest) as caught:
        read(kind, body if isinstance(body, bytes) else body.encode())
    return [(each.field, each.description) for each in caught.value.violations] or [("", caught.value.message)]


def spec(text: str) -> list[tuple[str, str]]:
    """What is said of a spec."""
    return told(Resource, f'{{"resource": {{"spec": {text}}}}}')


def test_every_kind_of_field() -> None:
    document = {
        "pipeline": {
            "name": "release",
            "labels": {"a": "b"},
            "order": "ORDER_GRAPH",
            "generation": "7",
            "createTime": "2026-01-31T12:00:00.5Z",
            "context": {"n": 1.5, "whole": 3, "none": None, "list": [True, {"x": []}], "text": "ü"},
            "steps": [
                {
                    "id": "a",
                    "driver": "d",
                    "timeout": "3.5s",
                    "allowFailure": True,
                    "retry": {"maxAttempts": 3, "multiplier": 2},
                }
            ],
        },
        "validateOnly": False,
    }
    text = json.dumps(document).encode()
    assert read(Pipeline, text) == json_format.Parse(text, Pipeline())
    snake = json.dumps({"pipeline": {"create_time": "2026-01-31T12:00:00Z", "failurePolicy": 2}, "validate_only": True})
    assert read(Pipeline, snake.encode()) == json_format.Parse(snake, Pipeline())
    assert read(ListRuns, b'\xef\xbb\xbf {"pageSize": 5.0, "states": ["RUN_STATE_RUNNING"], "pipeline": null}\n') == (
        ListRuns(page_size=5, states=[2])
    )


def test_null_is_a_value_where_anything_may_stand() -> None:
    assert read(Resource, b'{"resource": {"spec": {"a": null}}}') == (
        json_format.Parse('{"resource": {"spec": {"a": null}}}', Resource())
    )


def test_whole_numbers_stand_with_quotes_or_without() -> None:
    for text in ("9007199254740993", '"9007199254740993"'):
        found = read(resource_service_pb2.GetResourceRequest, f'{{"generation": {text}}}'.encode())
        assert found.generation == 9007199254740993  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "the body is empty"),
        (" \n", "the body is empty"),
        ("{", "line 1, column 2"),
        ("{}{}", "more follows"),
        ("{'a': 1}", "no JSON"),
        ('{"a": 1,}', "no JSON"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json(body: str | bytes, text: str) -> None:
    ((path, message),) = told(ListRuns, body)
    assert path == ""
    assert text in message


@pytest.mark.parametrize(
    ("body", "path", "text"),
    [
        ('{"pipline": "x"}', "pipline", "ListRunsRequest has no such field"),
        ('{"a b": "x"}', '["a b"]', "no such field"),
        ('{"pageSize": 1, "page_size": 2}', "page_size", "excludes pageSize"),
        ('{"pageSize": 1, "pageSize": 1}', "pageSize", "stands twice"),
        ('{"pageSize": "x"}', "pageSize", 'must be a whole number, not "x"'),
        ('{"pageSize": 1.5}', "pageSize", "must be a whole number, not 1.5"),
        ('{"pageSize": true}', "pageSize", "must be a whole number, not true"),
        ('{"pageSize": 4294967296}', "pageSize", "must be from 0 to 4294967295"),
        (f'{{"pageSize": {"9" * 5000}}}', "pageSize", "does not fit"),
        ('{"pageSize": NaN}', "pageSize", "JSON has no NaN"),
        ('{"pipeline": 1}', "pipeline", "must be a string, not 1"),
        ('{"pipeline": {"x": 1}}', "pipeline", "must be a string, not an object"),
        ('{"pipeline": "\\ud800"}', "pipeline", "is not Unicode"),
        ('{"states": "RUN_STATE_RUNNING"}', "states", "must be a list"),
        ('{"states": ["RUNNING"]}', "states[0]", "must be one of RUN_STATE_PENDING, "),
        ('{"states": [null]}', "states[0]", "must be the name of a value of RunState, not null"),
        ('{"labels": ["a"]}', "labels", "must be an object, not a list"),
        ('{"labels": {"a": 1}}', "labels.a", "must be a string, not 1"),
        ('{"labels": {"\\udfff": ""}}', 'labels["\\udfff"]', "is not Unicode"),
        ('{"createTimeFrom": "yesterday"}', "createTimeFrom", 'must be like "2030-01-31T12:00:00Z"'),
    ],
)
def test_what_does_not_fit_a_field(body: str, path: str, text: str) -> None:
    ((where, message),) = told(ListRuns, body)
    assert where == path
    assert text in message


def test_all_mistakes_are_told_with_the_path_as_written() -> None:
    body = '{"pipeline": {"steps": [{"id": "a"}, {"timeout": "1h", "drivr": "d"}, 3]}, "validateOnly": "yes"}'
    assert [path for path, _ in told(Pipeline, body)] == [
        "pipeline.steps[1].timeout",
        "pipeline.steps[1].drivr",
        "pipeline.steps[2]",
        "validateOnly",
    ]
    many = json.dumps({str(i): i for i in range(1000)})
    assert len(told(ListRuns, many)) == 100


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ('{"a": 9007199254740993}', "resource.spec/a", "the integer does not fit a double; send it as a string"),
        ('{"a": [1, {"b-c": -9007199254740993}]}', "resource.spec/a/1/b-c", "send it as a string"),
        (f'{{"a": {"1" * 350}}}', "resource.spec/a", "send it as a string"),
        (f'{{"a": {"1" * 5000}}}', "resource.spec/a", "send it as a string"),
        ('{"a": 1e999}', "resource.spec/a", "the number does not fit a double"),
        ('{"a": Infinity}', "resource.spec/a", "JSON has no Infinity"),
        ('{"a": {"b": 1, "b": 2}}', "resource.spec/a/b", "stands twice"),
        ('{"a": "\\ud800"}', "resource.spec/a", "is not Unicode"),
        ('{"\\ud800": 1}', "resource.spec/\\ud800", "is not Unicode"),
        (f'{{"a": {"[" * 32 + "]" * 32}}}', "resource.spec/a" + "/0" * 31, "more than 32 levels"),
        ('{"a/b~": NaN}', "resource.spec/a~1b~0", "JSON has no NaN"),
        ("[1]", "resource.spec", "must be an object, not a list"),
        ("null", "", ""),
    ],
)
def test_what_would_not_arrive_as_it_is(text: str, path: str, said: str) -> None:
    if not said:
        assert read(Resource, f'{{"resource": {{"spec": {text}}}}}'.encode()) == Resource(resource={})
        return
    ((where, message),) = spec(text)
    assert where == path
    assert said in message


def test_what_a_double_holds_arrives() -> None:
    text = f'{{"resource": {{"spec": {{"a": 9007199254740992, "b": 1e300, "c": {"[" * 31 + "]" * 31}}}}}}}'
    assert read(Resource, text.encode()) == json_format.Parse(text, Resource(), max_recursion_depth=200)


def test_one_object_after_another() -> None:
    body = b'{"namespace": "a"}\n{"namespace":\n "b"} {"namespace": "c"}'
    found = list(read_all(worker_service_pb2.ReportResultsRequest, body))
    assert [each.namespace for each in found] == ["a", "b", "c"]  # type: ignore[attr-defined]
    assert list(read_all(worker_service_pb2.ReportResultsRequest, b"")) == []


def test_every_type_of_the_api_can_be_read() -> None:
    readable = {
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BOOL,
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_DOUBLE,
        FieldDescriptor.TYPE_ENUM,
        FieldDescriptor.TYPE_MESSAGE,
    }
    free = {f"google.protobuf.{name}" for name in ("Struct", "Value", "Timestamp", "Duration")}
    seen: set[str] = set()

    def look(message: Descriptor) -> None:
        if message.full_name in seen or message.full_name in free:
            return
        seen.add(message.full_name)
        assert message.full_name.startswith("conveyor.v1.")
        for field in message.fields:
            assert field.type in readable, field.full_name
            if field.message_type is not None:
                look(field.message_type)

    for method in methods():
        look(method.request.DESCRIPTOR)
    assert len(seen) > 30

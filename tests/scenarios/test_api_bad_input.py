"""Bad input over a socket: each kind by its status code and its reason, and nothing stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from conveyor.core import limits
from conveyor.store.port import Exhausted, StoreError, Unavailable, Uncertain
from conveyor.v1 import (
    driver_service_pb2,
    log_service_pb2,
    pipeline_pb2,
    run_service_pb2,
)
from conveyor.v1 import pipeline_service_pb2 as pipelines
from conveyor.v1 import resource_definition_service_pb2 as definitions
from conveyor.v1 import resource_service_pb2 as resources
from conveyor.v1.pipeline_pb2 import Decision
from tests.support.api import Api, pipeline, refused, resource, served

NO_RUN = "01890000-0000-7000-8000-000000000000"
INVALID = ("INVALID_ARGUMENT", "INVALID_FIELD")


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with served(tmp_path) as started:
        await started.setup(schema={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
        yield started


async def stored_names(api: Api) -> list[str]:
    """Of everything but what the fixture made."""
    listed = [
        *(
            await api.definitions.ListResourceDefinitions(definitions.ListResourceDefinitionsRequest())
        ).resource_definitions,
        *(await api.pipelines.ListPipelines(pipelines.ListPipelinesRequest())).pipelines,
        *(await api.resources.ListResources(resources.ListResourcesRequest())).resources,
        *(await api.runs.ListRuns(run_service_pb2.ListRunsRequest())).runs,
    ]
    return [getattr(item, "name", "run") for item in listed if getattr(item, "name", "run") not in ("app", "main")]


def graph(**needs: list[str]) -> pipeline_pb2.Pipeline:
    item = pipeline_pb2.Pipeline(name="bad", order=pipeline_pb2.ORDER_GRAPH)
    for step, its in needs.items():
        item.steps.add(id=step, driver="x", needs=its)
    return item


def changed(change: Callable[[Any], object]) -> pipeline_pb2.Pipeline:
    item = pipeline("bad")
    change(item)
    return item


PIPELINES: dict[str, tuple[pipeline_pb2.Pipeline, tuple[str, str], str, str]] = {
    "name": (pipeline("a.b"), INVALID, "pipeline.name", "a-z, 0-9"),
    "no steps": (pipeline_pb2.Pipeline(name="bad"), INVALID, "pipeline.steps", "at least one step"),
    "cycle": (
        graph(a=["c"], b=["a"], c=["b"]),
        ("INVALID_ARGUMENT", "CYCLE"),
        "pipeline.steps",
        "a -> c -> b -> a",
    ),
    "needs itself": (graph(a=["a"]), ("INVALID_ARGUMENT", "CYCLE"), "pipeline.steps", "a -> a"),
    "unknown need": (graph(a=[], b=["tpyo"]), INVALID, "pipeline.steps[1].needs[0]", "tpyo"),
    "two of one id": (
        changed(lambda p: p.steps.add(id="s0", driver="x")),
        INVALID,
        "pipeline.steps[2].id",
        "s0 is the id",
    ),
    "needs in a list": (
        changed(lambda p: p.steps[1].needs.append("s0")),
        INVALID,
        "pipeline.steps[1].needs",
        "order GRAPH",
    ),
    "unknown enum number": (
        changed(lambda p: setattr(p.steps[0], "trigger_rule", 42)),
        INVALID,
        "pipeline.steps[0].trigger_rule",
        "42",
    ),
    "when": (
        changed(lambda p: setattr(p.steps[1], "when", "1 +")),
        INVALID,
        "pipeline.steps[1].when",
        "line 1, column 4: Syntax error",
    ),
    "matrix": (
        changed(lambda p: p.steps[1].matrix.SetInParent()),
        INVALID,
        "pipeline.steps[1].matrix",
        "has neither axes nor combinations to include",
    ),
    "nan": (
        changed(lambda p: p.context.update({"a": {"b": [float("nan")]}})),
        INVALID,
        "pipeline.context/a/b/0",
        "nan",
    ),
    "too many steps": (
        pipeline("bad", *(["x"] * 1001)),
        ("INVALID_ARGUMENT", "TOO_LARGE"),
        "pipeline.steps",
        "1001",
    ),
    "too large": (
        changed(lambda p: p.context.update({"k": "x" * limits.PIPELINE_BYTES})),
        ("INVALID_ARGUMENT", "TOO_LARGE"),
        "pipeline",
        "458752",
    ),
    "timeout": (changed(lambda p: p.timeout.SetInParent()), INVALID, "pipeline.timeout", "1 s to 366 days"),
}


@pytest.mark.parametrize("case", PIPELINES)
async def test_pipelines(api: Api, case: str) -> None:
    item, kind, field, words = PIPELINES[case]
    for call in (
        api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=item)),
        api.pipelines.ApplyPipeline(pipelines.ApplyPipelineRequest(pipeline=item)),
    ):
        found = await refused(call)
        assert found.kind == kind
        assert found.fields == [field]
        assert words in found.message
    assert await stored_names(api) == []


async def test_a_thousand_steps_are_fine(api: Api) -> None:
    await api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=pipeline("large", *(["x"] * 1000))))


async def test_all_violations_of_a_schema_with_their_pointers(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "required": ["url"],
        "properties": {"tags": {"items": {"type": "string"}}, "a/b": {"type": "integer"}},
        "additionalProperties": False,
    }
    async with served(tmp_path) as api:
        await api.setup(schema)
        found = await refused(api.create(spec={"tags": ["x", 1, "y", 2], "a/b": 0.5, "more": True}))
        assert found.kind == ("INVALID_ARGUMENT", "SCHEMA_VIOLATION")
        assert sorted(found.fields) == [
            "resource.spec",
            "resource.spec",
            "resource.spec/a~1b",
            "resource.spec/tags/1",
            "resource.spec/tags/3",
        ]
        assert found.metadata == {"definition": "app", "generation": "1"}
        assert "app" in found.message
        many = await refused(api.create(spec={"url": "u", "tags": list(range(1000))}))
        assert len(many.violations) > 10
        assert many.violations[-1][1].startswith("and ")


async def test_whole_numbers_are_integers_and_small_specs_and_large_ones_are_held_to_the_schema(api: Api) -> None:
    await api.create("whole", spec={"n": 3})
    assert (await refused(api.create(spec={"n": 3.5}))).kind == ("INVALID_ARGUMENT", "SCHEMA_VIOLATION")
    assert (await refused(api.create(spec={"n": "x" * 100_000}))).kind == ("INVALID_ARGUMENT", "SCHEMA_VIOLATION")


SCHEMAS: dict[str, tuple[dict[str, Any], str]] = {
    "remote": ({"$ref": "https://example.com/s.json"}, "/$ref"),
    "file": ({"items": {"$ref": "file:///etc/passwd"}}, "/items/$ref"),
    "relative": ({"allOf": [{"$ref": "other.json"}]}, "/allOf/0/$ref"),
    "to nowhere": ({"$ref": "#/$defs/nope"}, ""),
    "type": ({"properties": {"a": {"type": "objekt"}}}, "/properties/a/type"),
    "draft": ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema"),
    "pattern that looks around": ({"properties": {"a": {"pattern": "(?=x)y"}}}, "/properties/a/pattern"),
    "pattern that grows": ({"pattern": "((a{100}){100}){100}"}, "/pattern"),
    "expands without bound": (
        {
            "$ref": "#/$defs/a30",
            "$defs": {"a0": {"type": "string"}}
            | {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i - 1}"}] * 2} for i in range(1, 31)},
        },
        "",
    ),
}


@pytest.mark.parametrize("case", SCHEMAS)
async def test_schemas_that_cannot_be_used(api: Api, case: str) -> None:
    schema, pointer = SCHEMAS[case]
    request = definitions.ApplyResourceDefinitionRequest()
    request.resource_definition.name = "bad"
    request.resource_definition.schema.update(schema)
    found = await refused(api.definitions.ApplyResourceDefinition(request))
    assert found.kind == ("INVALID_ARGUMENT", "INVALID_SCHEMA")
    assert found.fields == [f"resource_definition.schema{pointer}"]
    assert await stored_names(api) == []


async def test_a_schema_may_speak_of_references_and_refer_to_itself(api: Api) -> None:
    request = definitions.CreateResourceDefinitionRequest()
    request.resource_definition.name = "tree"
    request.resource_definition.schema.update(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$defs": {"node": {"properties": {"left": {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}}}},
            "properties": {"$ref": {"type": "string"}, "root": {"$ref": "#/$defs/node"}, "self": {"$ref": "#"}},
            "default": {"$ref": "https://example.com/data"},
        }
    )
    await api.definitions.CreateResourceDefinition(request)
    await api.create(definition="tree", spec={"$ref": "x", "root": {"left": {"right": {}}}, "self": {"self": {}}})


async def test_a_schema_that_branches_at_each_level_does_not_keep_the_server_busy(api: Api) -> None:
    """Each level of the spec doubles the ways through the schema; the spec is wrong at the bottom."""
    request = definitions.CreateResourceDefinitionRequest()
    request.resource_definition.name = "bush"
    both = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}
    request.resource_definition.schema.update({"properties": {"x": {"type": "string"}, "a": both}})
    await api.definitions.CreateResourceDefinition(request)
    spec: dict[str, Any] = {"x": 1}
    for _ in range(30):
        spec = {"a": spec}
    found = await refused(api.create(definition="bush", spec=spec))
    assert found.kind == ("INVALID_ARGUMENT", "SCHEMA_VIOLATION")


RESOURCES: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "unknown definition": ({"definition": "nope", "spec": {"n": 1}}, ("FAILED_PRECONDITION", "UNKNOWN_DEFINITION")),
    "unknown pipeline": ({"pipeline": "nope", "spec": {"n": 1}}, ("FAILED_PRECONDITION", "UNKNOWN_PIPELINE")),
    "schema": ({"spec": {"n": "x"}}, ("INVALID_ARGUMENT", "SCHEMA_VIOLATION")),
    "no spec": ({}, ("INVALID_ARGUMENT", "SCHEMA_VIOLATION")),
    "nan": ({"spec": {"n": float("nan")}}, INVALID),
    "infinity": ({"spec": {"n": float("-inf")}}, INVALID),
    "too large": ({"spec": {"n": 1, "k": "x" * limits.SPEC_BYTES}}, ("INVALID_ARGUMENT", "TOO_LARGE")),
    "many numbers": ({"spec": {"n": 1, "k": [1] * 100_000}}, ("INVALID_ARGUMENT", "TOO_LARGE")),
    "params": (
        {"spec": {"n": 1}, "params": {"fields": {"a": {"bool_value": True}}}},
        INVALID,
    ),
    "namespace": ({"spec": {"n": 1}, "namespace": "other"}, INVALID),
}


@pytest.mark.parametrize("case", RESOURCES)
async def test_resources(api: Api, case: str) -> None:
    fields, kind = RESOURCES[case]
    for call in (
        api.create(**fields),
        api.resources.ApplyResource(resources.ApplyResourceRequest(resource=resource(**fields))),
    ):
        assert (await refused(call)).kind == kind
    assert await stored_names(api) == []


async def test_a_pipeline_of_another_definition(api: Api) -> None:
    await api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=pipeline("images", definition="image")))
    found = await refused(api.create(pipeline="images", spec={"n": 1}))
    assert found.kind == ("FAILED_PRECONDITION", "DEFINITION_MISMATCH")
    await api.create(spec={"n": 1})
    start = run_service_pb2.StartRunRequest(definition="app", resource="web", pipeline="images")
    assert (await refused(api.runs.StartRun(start))).kind == ("FAILED_PRECONDITION", "DEFINITION_MISMATCH")


@pytest.mark.parametrize(("levels", "reason"), [(33, "TOO_LARGE"), (34, "INVALID_FIELD"), (500, "INVALID_FIELD")])
async def test_nesting(api: Api, levels: int, reason: str) -> None:
    """Beyond the limit protobuf itself cannot read the request, and gRPC's own answer would have no reason.

    Nor can it write it, so that the bytes are put together here.
    """

    def field(number: int, data: bytes) -> bytes:
        size = len(data)
        return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + data

    value = field(3, b"leaf")
    for _ in range(levels):
        spec = field(1, field(1, b"k") + field(2, value))  # Struct.fields {key, value}
        value = field(5, spec)  # Value.struct_value
    request = field(2, resource().SerializeToString() + field(12, spec))  # CreateResourceRequest.resource.spec
    call = api.channel.unary_unary("/conveyor.v1.ResourceService/CreateResource")
    assert (await refused(call(request))).kind == ("INVALID_ARGUMENT", reason)
    assert await stored_names(api) == []


async def test_a_message_beyond_the_limit_of_grpc(api: Api) -> None:
    found = await refused(api.create(spec={"n": 1, "k": "x" * limits.MESSAGE_BYTES}))
    assert found.code == "RESOURCE_EXHAUSTED"
    await api.create(spec={"n": 1})


async def test_bytes_that_are_no_request(api: Api) -> None:
    call = api.channel.unary_unary("/conveyor.v1.RunService/GetRun")
    assert (await refused(call(b"\xff\xff\xff"))).kind == INVALID
    stream = api.channel.unary_stream("/conveyor.v1.RunService/WatchRun")
    assert (await refused(stream(b"\x0a\xff"))).kind == INVALID


async def test_what_is_not_there(api: Api) -> None:
    missing = ("NOT_FOUND", "NOT_FOUND")
    decision: dict[str, Any] = {"id": NO_RUN, "step": "ask", "by": "ann", "decision": Decision.DECISION_APPROVED}
    for call in (
        api.definitions.GetResourceDefinition(definitions.GetResourceDefinitionRequest(name="nope")),
        api.pipelines.GetPipeline(pipelines.GetPipelineRequest(name="nope")),
        api.pipelines.GetPipeline(pipelines.GetPipelineRequest(name="main", generation=2)),
        api.resources.GetResource(resources.GetResourceRequest(definition="app", name="nope")),
        api.runs.StartRun(run_service_pb2.StartRunRequest(definition="app", resource="nope")),
        api.runs.GetRun(run_service_pb2.GetRunRequest(id=NO_RUN)),
        api.runs.WatchRun(run_service_pb2.WatchRunRequest(id=NO_RUN)),
        api.runs.CancelRun(run_service_pb2.CancelRunRequest(id=NO_RUN)),
        api.runs.CancelRun(run_service_pb2.CancelRunRequest(id=NO_RUN, request_id="x")),
        api.runs.RetryRun(run_service_pb2.RetryRunRequest(id=NO_RUN)),
        api.runs.DecideStep(run_service_pb2.DecideStepRequest(**decision)),
        api.runs.DecideStep(run_service_pb2.DecideStepRequest(request_id="x", **decision)),
        api.runs.DeleteRun(run_service_pb2.DeleteRunRequest(id=NO_RUN)),
        api.logs.ReadLogs(log_service_pb2.ReadLogsRequest(run=NO_RUN)),
        api.driver_calls.GetDriver(driver_service_pb2.GetDriverRequest(name="nope")),
    ):
        found = await refused(call)
        assert found.kind == missing, found


async def test_bad_names_and_ids_are_told_apart_from_missing_ones(api: Api) -> None:
    for call in (
        api.pipelines.GetPipeline(pipelines.GetPipelineRequest(name="../main")),
        api.runs.GetRun(run_service_pb2.GetRunRequest(id="nope")),
        api.runs.ListRuns(run_service_pb2.ListRunsRequest(namespace="*")),
        api.runs.WatchRuns(run_service_pb2.WatchRunsRequest(resource="web")),
        api.driver_calls.ListDrivers(driver_service_pb2.ListDriversRequest(namespace=">")),
    ):
        assert (await refused(call)).kind == INVALID


async def test_cursors_that_cannot_be_read(api: Api) -> None:
    run = (await api.create(spec={"n": 1})).run.id
    for call in (
        api.runs.WatchRun(run_service_pb2.WatchRunRequest(id=run, cursor="?")),
        api.runs.WatchRuns(run_service_pb2.WatchRunsRequest(cursor="?")),
    ):
        assert (await refused(call)).kind == ("INVALID_ARGUMENT", "INVALID_CURSOR")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unavailable("10.0.0.7"), ("UNAVAILABLE", "STORE_UNAVAILABLE")),
        (Uncertain("10.0.0.7"), ("UNAVAILABLE", "OUTCOME_UNKNOWN")),
        (Exhausted("10.0.0.7"), ("RESOURCE_EXHAUSTED", "STORE_EXHAUSTED")),
    ],
    ids=["away", "lost", "full"],
)
async def test_a_store_that_fails(api: Api, error: StoreError, kind: tuple[str, str]) -> None:
    real = api.store.commit

    async def commit(*_: object) -> int:
        raise error

    api.store.commit = commit  # type: ignore[method-assign]
    found = await refused(api.create(spec={"n": 1}))
    assert found.kind == kind
    assert "10.0.0.7" not in found.message
    api.store.commit = real  # type: ignore[method-assign]
    await api.create(spec={"n": 1})


async def test_a_store_that_cannot_be_read_is_away_and_nothing_is_missing(api: Api) -> None:
    async def away(_: object) -> None:
        raise Unavailable("gone")

    api.store.get = away  # type: ignore[method-assign, assignment]
    api.store.ranges = away  # type: ignore[method-assign, assignment]
    for call in (
        api.pipelines.GetPipeline(pipelines.GetPipelineRequest(name="main")),
        api.runs.GetRun(run_service_pb2.GetRunRequest(id=NO_RUN)),
        api.runs.WatchRun(run_service_pb2.WatchRunRequest(id=NO_RUN)),
    ):
        assert (await refused(call)).kind == ("UNAVAILABLE", "STORE_UNAVAILABLE")

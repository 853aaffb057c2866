"""Schemas are compiled once per generation, and no way through them is endless."""

from __future__ import annotations

import contextlib
from typing import Any

import jsonschema_rs
import pytest

from conveyor.core import errors
from conveyor.state import schemas
from conveyor.state.schemas import Schemas
from conveyor.v1 import resource_definition_pb2, resource_pb2


def definition(generation: int, schema: dict[str, Any]) -> resource_definition_pb2.ResourceDefinition:
    made = resource_definition_pb2.ResourceDefinition(name="app", uid="u", generation=generation)
    made.schema.update(schema)
    return made


def spec(document: dict[str, Any]) -> Any:
    resource = resource_pb2.Resource()
    resource.spec.update(document)
    return resource.spec


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The schemas that are compiled."""
    seen: list[dict[str, Any]] = []
    real = jsonschema_rs.Draft202012Validator

    def compile_one(document: dict[str, Any], **options: Any) -> Any:
        seen.append(document)
        return real(document, **options)

    monkeypatch.setattr(schemas.jsonschema_rs, "Draft202012Validator", compile_one)
    return seen


async def test_a_schema_is_compiled_once_per_generation(compiled: list[dict[str, Any]]) -> None:
    known = Schemas()
    for _ in range(3):
        await known.check_spec(definition(1, {"required": ["a"]}), spec({"a": 1}), "spec")
    assert compiled == [{"required": ["a"]}]
    with pytest.raises(errors.SchemaViolation):
        await known.check_spec(definition(2, {"required": ["b"]}), spec({"a": 1}), "spec")
    assert compiled[1:] == [{"required": ["b"]}]


async def test_the_schemas_that_were_used_last_are_kept(
    compiled: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas, "_VALIDATORS_KEPT", 2)
    known = Schemas()
    for generation in (1, 2, 1, 3, 1, 2):
        await known.check_spec(
            definition(generation, {"minProperties": generation}), spec({"a": 1, "b": 1, "c": 1}), ""
        )
    assert [document["minProperties"] for document in compiled] == [1, 2, 3, 2]


async def test_an_empty_schema_accepts_everything_and_compiles_nothing(compiled: list[dict[str, Any]]) -> None:
    known = Schemas()
    await known.check_schema(definition(1, {}).schema, "schema")
    await known.check_spec(definition(1, {}), spec({"a": 1}), "spec")
    assert compiled == []


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"not": {"$ref": "#/$defs/a"}, "$defs": {"a": {"not": {"$ref": "#"}}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$dynamicRef": "#x", "$defs": {"a": {"$dynamicAnchor": "x", "items": {"$dynamicRef": "#x"}}}},
    ],
)
async def test_schemas_that_go_round_in_circles_come_to_an_end(schema: dict[str, Any]) -> None:
    known = Schemas()
    await known.check_schema(definition(1, schema).schema, "schema")
    with contextlib.suppress(errors.SchemaViolation):
        await known.check_spec(definition(1, schema), spec({"a": [1, {"b": 2}]}), "spec")


@pytest.mark.parametrize(("copies", "depth", "fits"), [(2, 12, True), (2, 20, False), (10, 3, True), (10, 5, False)])
async def test_what_a_schema_expands_to_is_bounded(copies: int, depth: int, fits: bool) -> None:
    schema: dict[str, Any] = {"$ref": f"#/$defs/a{depth}", "$defs": {"a0": {"type": "string"}}}
    for i in range(1, depth + 1):
        schema["$defs"][f"a{i}"] = {"allOf": [{"$ref": f"#/$defs/a{i - 1}"}] * copies}
    check = Schemas().check_schema(definition(1, schema).schema, "schema")
    if fits:
        await check
    else:
        with pytest.raises(errors.InvalidSchema, match="20000"):
            await check


@pytest.mark.parametrize(
    ("reference", "keyword"), [("#a{}", "$anchor"), ("#a{}", "$dynamicAnchor"), ("#/%24defs/x{}", "$comment")]
)
async def test_no_way_of_referring_gets_round_the_bound(reference: str, keyword: str) -> None:
    schema: dict[str, Any] = {"$ref": reference.format(30), "$defs": {"x0": {keyword: "a0"}}}
    for i in range(1, 31):
        schema["$defs"][f"x{i}"] = {keyword: f"a{i}", "allOf": [{"$ref": reference.format(i - 1)}] * 2}
    with pytest.raises(errors.InvalidSchema, match="20000"):
        await Schemas().check_schema(definition(1, schema).schema, "schema")


async def test_an_id_stands_at_the_top_only() -> None:
    top = {"$id": "https://example.com/app", "properties": {"$id": {"type": "string"}}}
    await Schemas().check_schema(definition(1, top).schema, "schema")
    within = {"properties": {"a": {"$id": "https://example.com/a", "allOf": [{"$ref": "#"}]}}}
    with pytest.raises(errors.InvalidSchema) as refused:
        await Schemas().check_schema(definition(1, within).schema, "schema")
    assert [violation.field for violation in refused.value.violations] == ["schema/properties/a/$id"]

"""The schema of manifests, as editors get it."""

import json
from collections.abc import Callable
from typing import Any

Conveyor = Callable[..., Any]


def test_the_schema_of_all_kinds(conveyor: Conveyor) -> None:
    done = conveyor("schema")
    assert (done.code, done.err) == (0, "")
    schema = json.loads(done.out)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "failurePolicy" in schema["definitions"]["Pipeline"]["properties"]


def test_the_schema_of_one_kind(conveyor: Conveyor) -> None:
    schema = json.loads(conveyor("schema", "pipelines").out)
    assert (schema["title"], schema["allOf"]) == ("Pipeline", [{"$ref": "#/definitions/Pipeline"}])
    refused = conveyor("schema", "run")
    assert (refused.code, refused.out) == (2, "")
    assert "they hold definition, pipeline, resource" in refused.err

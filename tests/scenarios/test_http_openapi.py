"""The OpenAPI document: valid, complete, served, and true of what the server answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

import conveyor.http
from conveyor.http.methods import methods
from tests.support.behaviour import ok
from tests.support.belt import Belt, step
from tests.support.http import Http, http_url

DOCUMENT: dict[str, Any] = json.loads((Path(conveyor.http.__path__[0]) / "openapi.json").read_text())


def validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    """A validator for a message, refusing what the document doesn't know."""
    whole = json.loads(json.dumps(DOCUMENT["components"]))
    for each in whole["schemas"].values():
        if "properties" in each:
            each["additionalProperties"] = False
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{schema}", "components": whole}, validate_formats=True
    )


def test_it_is_valid() -> None:
    validate(DOCUMENT, cls=OpenAPIV31SpecValidator)


def test_it_has_every_call_that_is_served() -> None:
    served = {m.path: {"get", "post"} if m.reads else {"post"} for m in methods() if not m.converses}
    assert {path: set(operations) for path, operations in DOCUMENT["paths"].items()} == served
    for method in methods():
        if not method.converses:
            answer = DOCUMENT["paths"][method.path]["post"]["responses"]["200"]["content"]
            assert ("text/event-stream" in answer) == method.server_streams


def test_everything_is_described() -> None:
    bare = [name for name, schema in DOCUMENT["components"]["schemas"].items() if not schema.get("description")]
    assert bare == []
    assert all(each["post"]["description"] for each in DOCUMENT["paths"].values())


async def test_it_is_served_and_answers_keep_it(belt: Belt) -> None:
    belt.drive("build", ok)
    await belt.pipeline(step("build", attempts=2), labels={"a": "b"}, context={"x": [1, None]})
    run = await belt.start(size=3)
    await belt.ended(run)
    async with Http(http_url(belt.site.server), belt.namespace) as http:
        assert (await http.client.get("/openapi.json")).json() == DOCUMENT
        about = (await http.client.get("/")).json()
        assert set(about["calls"]) == set(DOCUMENT["paths"])
        calls: dict[str, dict[str, Any]] = {
            "RunService/GetRun": {"id": run.id},
            "RunService/ListRuns": {},
            "PipelineService/GetPipeline": {"name": "release"},
            "ResourceService/ListResources": {"definition": "app"},
            "DriverService/ListDrivers": {},
        }
        for method, request in calls.items():
            answer = await http.call(method, **request)
            validator(f"{method.partition('/')[2]}Response").validate(answer)
        validator("GetServerInfoResponse").validate((await http.post("ServerService/GetServerInfo", "{}")).json())
        refused = (await http.post("RunService/GetRun", {"id": "x"})).json()
        validator("Error").validate(refused)
        async with asyncio.timeout(60), http.stream("RunService/WatchRun", {"id": run.id}) as stream:
            async for line in stream.aiter_lines():
                validator("WatchRunResponse").validate(json.loads(line))

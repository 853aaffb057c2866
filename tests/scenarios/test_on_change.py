"""A resource whose changes start no run: it is checked and stored, and moves when it is told to."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from conveyor.sdk import Job, to_struct
from conveyor.sdk.errors import ConveyorError, FailedPrecondition, InvalidArgument
from conveyor.v1.pipeline_pb2 import Param
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from conveyor.v1.resource_pb2 import Resource
from tests.support.belt import Belt, on_both_stores, state, step
from tests.support.cli import Cli

FILES = """
kind: Resource
definition: app
name: shop
pipeline: release
onChange: false
spec: {url: u}
---
kind: Resource
definition: app
name: loud
onChange: true
"""


async def done(job: Job) -> None:
    pass


def shop(**fields: object) -> Resource:
    return Resource(definition="app", name="shop", pipeline="release", on_change=False, **fields)  # type: ignore[arg-type]


@on_both_stores
async def test_changes_start_nothing_and_a_start_does(belt: Belt) -> None:
    belt.drive("pack", done)
    await belt.pipeline(step("pack"))
    resources = belt.client.resources
    again = str(uuid.uuid4())
    for _ in range(2):
        created = await resources.create(shop(spec=to_struct({"url": "u"})), request_id=again)
        assert (created.run, created.resource.generation) == (None, 1)
    updated = await resources.update(shop(spec=to_struct({"url": "v"})))
    assert (updated.run, updated.resource.generation) == (None, 2)
    applied = await resources.apply(shop())
    assert (applied.run, applied.object.generation) == (None, 3)
    assert [run async for run in belt.client.runs.list()] == []
    run = await belt.ended(await belt.client.runs.start("app", "shop"))
    assert (state(run), run.resource_generation) == ("SUCCEEDED", 3)
    # Without the field its changes start runs again, and taking it away is the first of them.
    loud = await resources.apply(Resource(definition="app", name="shop", pipeline="release"))
    assert loud.run is not None


async def test_what_does_not_fit_is_refused_all_the_same(belt: Belt) -> None:
    await belt.pipeline(step("pack"), params=[Param(name="env", required=True)])
    await belt.pipeline(step("pack"), name="other", definition="site")
    schema = to_struct({"properties": {"url": {"type": "string"}}})
    await belt.client.definitions.apply(ResourceDefinition(name="app", schema=schema))

    async def refused(item: Resource) -> ConveyorError:
        with pytest.raises((FailedPrecondition, InvalidArgument)) as error:
            await belt.client.resources.create(item)
        return error.value

    assert "resource.params.env" in str(await refused(shop()))
    assert "no pipeline" in str(await refused(Resource(definition="app", name="a", pipeline="x", on_change=False)))
    assert "of site" in str(await refused(Resource(definition="app", name="a", pipeline="other", on_change=False)))
    assert "no resource definition" in str(await refused(Resource(definition="x", name="a", on_change=False)))
    wrong = shop(params=to_struct({"env": "prod"}), spec=to_struct({"url": 1}))
    assert "url" in str(await refused(wrong))


async def test_the_command_line_says_that_no_run_began(belt: Belt) -> None:
    await belt.pipeline(step("pack"))
    cli = Cli(belt.address, belt.namespace)
    said = [
        ("apply", "created, no run: on_change is false\n", "created, run "),
        ("apply", "unchanged\n", "unchanged\n"),
        ("apply --dry-run", "unchanged (dry run)\n", "unchanged (dry run)\n"),
    ]
    for command, shop, loud in said:
        applied = await asyncio.to_thread(cli, *command.split(), "-f", "-", stdin=FILES)
        assert applied.code == 0, applied.err
        assert f"resource/app/shop {shop}" in applied.out
        assert f"resource/app/loud {loud}" in applied.out
    got = await asyncio.to_thread(cli, "get", "resource", "app/shop")
    assert "On change:  starts no run" in " ".join(got.out.split(" ")), got.out

"""Pipelines that cannot work are refused when they are applied, by the command line and by grpcurl alike."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from conveyor.sdk import InvalidArgument
from conveyor.v1.pipeline_pb2 import Pipeline
from tests.support.behaviour import Counted
from tests.support.belt import Belt, state, step
from tests.support.cli import Cli
from tests.support.grpcurl import call, refused

A, B = {"id": "a", "driver": "x"}, {"id": "b", "driver": "x"}


def ring(size: int) -> list[dict[str, Any]]:
    """A cycle of six steps in a graph of `size`."""
    chain = [{"id": f"s{n}", "driver": "x", "needs": [f"s{n - 1}"] if n else []} for n in range(size)]
    chain[10]["needs"].append("s15")
    return chain


IMPOSSIBLE: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "two need each other": ([{**A, "needs": ["b"]}, {**B, "needs": ["a"]}], ["a", "b"]),
    "itself": ([{**A, "needs": ["a"]}], ["a"]),
    "an unknown step": ([A, {**B, "needs": ["tpyo"]}], ["tpyo"]),
    "two of one name": ([A, A], ["a"]),
    "a cycle among many": (ring(40), [f"s{n}" for n in range(10, 16)]),
    "no steps": ([], ["steps"]),
    "no driver": ([{"id": "a"}], ["driver"]),
}


def applied(belt: Belt, steps: list[dict[str, Any]], **fields: Any) -> Any:
    text = json.dumps({"kind": "Pipeline", "name": "p", "order": "GRAPH", "steps": steps, **fields})
    return Cli(belt.address, belt.namespace)("apply", "-f", "-", stdin=text)


@pytest.mark.parametrize("case", IMPOSSIBLE)
async def test_f14_impossible_graphs_are_refused(belt: Belt, case: str) -> None:
    steps, named = IMPOSSIBLE[case]
    pipeline = {"name": "p", "order": "ORDER_GRAPH", "steps": steps}
    request = {"namespace": belt.namespace, "pipeline": pipeline}
    by_command, by_grpcurl = (
        applied(belt, steps),
        refused(belt.address, "conveyor.v1.PipelineService/ApplyPipeline", request),
    )
    assert (by_command.code, by_command.out) == (1, "")
    assert "InvalidArgument" in by_grpcurl
    for text in (by_command.err, by_grpcurl):
        for name in named:
            assert re.search(rf"\b{name}\b", text)
    assert [each async for each in belt.client.pipelines.list()] == []


async def test_f14_no_needs_and_repeated_needs_are_fine(belt: Belt) -> None:
    steps = [{**A, "needs": []}, {**B, "needs": ["a", "a"]}]
    assert applied(belt, steps).code == 0
    counted = Counted()
    belt.drive("x", counted)
    await belt.pipeline(step("z", "x"), name="unused")
    assert state(await belt.ended(await belt.start("p"))) == "SUCCEEDED"
    assert counted.steps == ["a", "b"]


async def test_f15_a_pipeline_without_steps(belt: Belt) -> None:
    with pytest.raises(InvalidArgument):
        await belt.client.pipelines.create(Pipeline(name="empty"))


@pytest.mark.parametrize(
    ("steps", "fields", "path"),
    [
        ([{**A, "retires": 3}], {}, "steps[0].retires"),
        ([A, {**B, "timeOut": "5s"}], {}, "steps[1].timeOut"),
        ([{**A, "maxAttempts": 3}], {}, "steps[0].maxAttempts"),
        ([{**A, "retry": {"max": 3}}], {}, "steps[0].retry.max"),
        ([A], {"failfast": True}, "failfast"),
    ],
)
async def test_f16_unknown_fields_are_refused(
    belt: Belt, steps: list[dict[str, Any]], fields: dict[str, Any], path: str
) -> None:
    done = applied(belt, steps, **fields)
    assert (done.code, done.out) == (1, "")
    assert path in done.err
    request = {"namespace": belt.namespace, "pipeline": {"name": "p", "steps": steps, **fields}}
    assert path.rpartition(".")[2] in refused(belt.address, "conveyor.v1.PipelineService/ApplyPipeline", request)
    assert [each async for each in belt.client.pipelines.list()] == []


@pytest.mark.parametrize("name", ["img.build", "a b", "*", ">", "a..b", "a.", "A", "-a", "a-", "a/b", "x" * 64, ""])
async def test_f22_names_that_would_break_subjects_and_keys(belt: Belt, name: str) -> None:
    for pipeline in (Pipeline(name=name, steps=[step("a")]), Pipeline(name="p", steps=[step("a", "x")])):
        if pipeline.name == "p":
            pipeline.steps[0].driver = name
        with pytest.raises(InvalidArgument) as caught:
            await belt.client.pipelines.create(pipeline)
        assert caught.value.reason == "INVALID_FIELD"
        if name:
            assert "a-z" in caught.value.message
    with pytest.raises(InvalidArgument):
        await belt.client.pipelines.create(Pipeline(name="p", steps=[step("ok"), step(name, "x")]))


@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
async def test_f22_f24_neighbours_by_prefix_are_apart(belt: Belt, transport: str) -> None:
    short, long = Counted(), Counted()
    belt.drive("build", short, transport=transport)
    belt.drive("build-image", long, transport=transport)
    await belt.pipeline(step("test", "build"), step("test-2", "build-image"), name="build")
    await belt.pipeline(step("test-2", "build-image"), name="build-image")
    run, other = await belt.start("build"), await belt.start("build-image")
    assert state(await belt.ended(run)) == state(await belt.ended(other)) == "SUCCEEDED"
    assert (short.steps, sorted(long.steps)) == (["test"], ["test-2", "test-2"])
    assert [each.id async for each in belt.client.runs.list(pipeline="build")] == [run.id]
    await belt.client.pipelines.delete("build")
    assert [each.name async for each in belt.client.pipelines.list()] == ["build-image"]
    await belt.client.runs.delete(run.id)
    assert [each.id async for each in belt.client.runs.list()] == [other.id]
    assert state(await belt.ended(await belt.start("build-image"))) == "SUCCEEDED"


async def test_grpcurl_sends_what_the_command_line_sends(belt: Belt) -> None:
    """So that the two are compared on something that is accepted."""
    pipeline = {"name": "p", "steps": [A]}
    request = {"namespace": belt.namespace, "pipeline": pipeline}
    call(belt.address, "conveyor.v1.PipelineService/ApplyPipeline", request)
    done = Cli(belt.address, belt.namespace)("apply", "-f", "-", stdin=json.dumps({"kind": "Pipeline", **pipeline}))
    assert done.out == "pipeline/p unchanged\n"

"""Definitions, pipelines and resources over a socket: written, read back, listed, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from conveyor.core import limits
from conveyor.v1 import apply_pb2, run_pb2, run_service_pb2
from conveyor.v1 import pipeline_service_pb2 as pipelines
from conveyor.v1 import resource_definition_service_pb2 as definitions
from conveyor.v1 import resource_service_pb2 as resources
from tests.support.api import Api, pipeline, refused, resource, served


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with served(tmp_path) as started:
        yield started


async def test_definitions(api: Api) -> None:
    request = definitions.CreateResourceDefinitionRequest()
    request.resource_definition.name = "app"
    request.resource_definition.schema.update({"type": "object", "required": ["url"]})
    created = (await api.definitions.CreateResourceDefinition(request)).resource_definition
    assert (created.namespace, created.generation, bool(created.uid), bool(created.etag)) == ("default", 1, True, True)
    get = definitions.GetResourceDefinitionRequest(name="app")
    assert (await api.definitions.GetResourceDefinition(get)).resource_definition == created
    assert (await refused(api.definitions.CreateResourceDefinition(request))).kind == (
        "ALREADY_EXISTS",
        "ALREADY_EXISTS",
    )
    update = definitions.UpdateResourceDefinitionRequest(resource_definition=created)
    update.resource_definition.description = "an app"
    updated = (await api.definitions.UpdateResourceDefinition(update)).resource_definition
    assert (updated.generation, updated.uid) == (2, created.uid)
    assert updated.etag != created.etag
    stale = await refused(api.definitions.UpdateResourceDefinition(update))
    assert stale.kind == ("ABORTED", "ETAG_MISMATCH")
    apply = definitions.ApplyResourceDefinitionRequest(resource_definition=updated)
    applied = await api.definitions.ApplyResourceDefinition(apply)
    assert (applied.outcome, applied.resource_definition) == (apply_pb2.APPLY_OUTCOME_UNCHANGED, updated)
    old = definitions.GetResourceDefinitionRequest(name="app", generation=1)
    assert (await api.definitions.GetResourceDefinition(old)).resource_definition == created
    listed = await api.definitions.ListResourceDefinitions(definitions.ListResourceDefinitionsRequest())
    assert list(listed.resource_definitions) == [updated]
    delete = definitions.DeleteResourceDefinitionRequest(name="app", etag=updated.etag)
    assert (await api.definitions.DeleteResourceDefinition(delete)).resource_definition == updated
    assert (await refused(api.definitions.GetResourceDefinition(get))).kind == ("NOT_FOUND", "NOT_FOUND")
    assert (await refused(api.definitions.DeleteResourceDefinition(delete))).kind == ("NOT_FOUND", "NOT_FOUND")


async def test_pipelines(api: Api) -> None:
    wanted = pipeline("main", labels={"team": "a"})
    wanted.context.update({"whole": 3, "part": 0.1, "minus": -0.0, "text": "no", "none": None, "list": [{}, []]})
    wanted.steps[0].retry.SetInParent()
    applied = await api.pipelines.ApplyPipeline(pipelines.ApplyPipelineRequest(pipeline=wanted))
    assert applied.outcome == apply_pb2.APPLY_OUTCOME_CREATED
    stored = (await api.pipelines.GetPipeline(pipelines.GetPipelineRequest(name="main"))).pipeline
    assert stored == applied.pipeline
    for field in ("namespace", "uid", "generation", "etag", "create_time", "update_time"):
        stored.ClearField(field)  # type: ignore[arg-type]
    assert stored == wanted
    # What was read is what can be applied again.
    again = await api.pipelines.ApplyPipeline(pipelines.ApplyPipelineRequest(pipeline=applied.pipeline))
    assert again.outcome == apply_pb2.APPLY_OUTCOME_UNCHANGED
    wanted.steps.add(id="more", driver="x")
    changed = await api.pipelines.ApplyPipeline(pipelines.ApplyPipelineRequest(pipeline=wanted))
    assert (changed.outcome, changed.pipeline.generation) == (apply_pb2.APPLY_OUTCOME_CHANGED, 2)
    match = await api.pipelines.ListPipelines(pipelines.ListPipelinesRequest(labels={"team": "a"}))
    assert [item.name for item in match.pipelines] == ["main"]
    none = await api.pipelines.ListPipelines(pipelines.ListPipelinesRequest(labels={"team": "b"}))
    assert (list(none.pipelines), none.next_page_token) == ([], "")
    missing = pipelines.UpdatePipelineRequest(pipeline=pipeline("nope"))
    assert (await refused(api.pipelines.UpdatePipeline(missing))).kind == ("NOT_FOUND", "NOT_FOUND")


async def test_a_resource_and_its_runs(api: Api) -> None:
    await api.setup()
    created = await api.create(spec={"url": "u"}, labels={"a": "b"})
    assert created.run.state == run_pb2.RUN_STATE_RUNNING
    assert (created.run.resource, created.run.resource_generation, created.run.pipeline) == ("web", 1, "main")
    assert dict(created.run.labels) == {"a": "b"}
    run = (await api.runs.GetRun(run_service_pb2.GetRunRequest(id=created.run.id))).run
    assert run.resource_snapshot.spec == created.resource.spec
    assert [step.id for step in run.pipeline_snapshot.steps] == ["s0", "s1"]
    same = await api.resources.UpdateResource(resources.UpdateResourceRequest(resource=created.resource))
    assert not same.HasField("run")
    assert same.resource == created.resource
    changed = resource(spec={"url": "v"})
    updated = await api.resources.UpdateResource(resources.UpdateResourceRequest(resource=changed))
    assert updated.run.resource_generation == 2
    generations = await api.resources.ListResourceGenerations(
        resources.ListResourceGenerationsRequest(definition="app", name="web")
    )
    assert list(generations.resources) == [updated.resource, created.resource]
    first = resources.GetResourceRequest(definition="app", name="web", generation=1)
    assert (await api.resources.GetResource(first)).resource == created.resource
    in_use = definitions.DeleteResourceDefinitionRequest(name="app")
    assert (await refused(api.definitions.DeleteResourceDefinition(in_use))).kind == ("FAILED_PRECONDITION", "IN_USE")
    # Neither delete touches the runs, which hold snapshots.
    await api.resources.DeleteResource(resources.DeleteResourceRequest(definition="app", name="web"))
    await api.pipelines.DeletePipeline(pipelines.DeletePipelineRequest(name="main"))
    assert (await api.runs.GetRun(run_service_pb2.GetRunRequest(id=run.id))).run == run
    gone = resources.ListResourceGenerationsRequest(definition="app", name="web")
    assert (await refused(api.resources.ListResourceGenerations(gone))).kind == ("NOT_FOUND", "NOT_FOUND")


async def test_a_resource_without_a_pipeline_whom_nobody_hears(api: Api) -> None:
    await api.setup()
    created = await api.create(pipeline="")
    assert (created.run.state, created.run.reason) == (run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_REASON_NO_DRIVER)


async def test_namespaces_do_not_meet(api: Api) -> None:
    await api.setup()
    await api.create()
    other = resources.ListResourcesRequest(namespace="other")
    assert list((await api.resources.ListResources(other)).resources) == []
    elsewhere = resources.CreateResourceRequest(namespace="other", resource=resource())
    assert (await refused(api.resources.CreateResource(elsewhere))).kind == (
        "FAILED_PRECONDITION",
        "UNKNOWN_DEFINITION",
    )


async def test_prefixes_of_names_are_not_neighbours(api: Api) -> None:
    """`build` and `build-image`, as pipelines and as resources."""
    await api.setup()
    for name in ("build", "build-image"):
        await api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=pipeline(name)))
        await api.create(name, pipeline=name)
    for wanted in (
        run_service_pb2.ListRunsRequest(pipeline="build"),
        run_service_pb2.ListRunsRequest(definition="app", resource="build"),
    ):
        found = await api.runs.ListRuns(wanted)
        assert [run.resource for run in found.runs] == ["build"]
    await api.pipelines.DeletePipeline(pipelines.DeletePipelineRequest(name="build"))
    left = await api.pipelines.ListPipelines(pipelines.ListPipelinesRequest())
    assert [item.name for item in left.pipelines] == ["build-image", "main"]


async def test_twenty_creates_at_once(api: Api) -> None:
    await api.setup()

    async def create(i: int) -> str:
        try:
            return (await api.create(spec={"from": i})).run.id
        except grpc.aio.AioRpcError as error:
            return error.code().name

    done = await asyncio.gather(*(create(i) for i in range(20)))
    assert done.count("ALREADY_EXISTS") == 19
    runs = (await api.runs.ListRuns(run_service_pb2.ListRunsRequest())).runs
    assert [run.id for run in runs] == [run for run in done if run != "ALREADY_EXISTS"]


async def test_twenty_updates_of_what_all_have_read(api: Api) -> None:
    await api.setup()
    etag = (await api.create()).resource.etag

    async def update(i: int) -> str:
        request = resources.UpdateResourceRequest(resource=resource(spec={"from": i}, etag=etag))
        try:
            await api.resources.UpdateResource(request)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    done = await asyncio.gather(*(update(i) for i in range(20)))
    assert sorted(done) == ["ABORTED"] * 19 + ["OK"]


async def test_a_request_id_and_its_answer(api: Api) -> None:
    await api.setup()
    request = resources.CreateResourceRequest(resource=resource(), request_id="one")
    first = await api.resources.CreateResource(request)
    assert await api.resources.CreateResource(request) == first
    request.namespace = "default"  # the same by another name
    assert await api.resources.CreateResource(request) == first
    request.resource.spec.update({"a": 1})
    assert (await refused(api.resources.CreateResource(request))).kind == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    # Another method has ids of its own.
    update = resources.UpdateResourceRequest(resource=request.resource, request_id="one")
    assert (await api.resources.UpdateResource(update)).resource.generation == 2


async def test_validate_only(api: Api) -> None:
    await api.setup()
    request = resources.CreateResourceRequest(resource=resource(), validate_only=True, request_id="one")
    answer = await api.resources.CreateResource(request)
    assert (answer.resource.generation, answer.resource.etag, answer.run.resource) == (1, "", "web")
    assert list((await api.resources.ListResources(resources.ListResourcesRequest())).resources) == []
    assert list((await api.runs.ListRuns(run_service_pb2.ListRunsRequest())).runs) == []
    request.validate_only = False
    await api.resources.CreateResource(request)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
async def test_pages(api: Api, size: int) -> None:
    names = sorted(f"p{i}" for i in range(7))
    for name in names:
        await api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=pipeline(name)))
    seen: list[str] = []
    request = pipelines.ListPipelinesRequest(page_size=size)
    while True:
        page = await api.pipelines.ListPipelines(request)
        seen += [item.name for item in page.pipelines]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
        assert len(page.pipelines) == size
    assert seen == names


async def test_the_token_of_another_query(api: Api) -> None:
    for name in ("a", "b"):
        await api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=pipeline(name)))
    token = (await api.pipelines.ListPipelines(pipelines.ListPipelinesRequest(page_size=1))).next_page_token
    for request in (
        pipelines.ListPipelinesRequest(page_token=token, namespace="other"),
        pipelines.ListPipelinesRequest(page_token=token, labels={"a": "b"}),
        pipelines.ListPipelinesRequest(page_token=token[:-2]),
        pipelines.ListPipelinesRequest(page_token="nonsense"),
    ):
        found = await refused(api.pipelines.ListPipelines(request))
        assert found.kind == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")


async def test_whatever_is_accepted_can_be_read_back(api: Api) -> None:
    """The largest pipeline, the largest spec, the deepest values, in objects, lists, runs, and watches."""
    await api.setup()
    large = pipeline("large", *(["d" * 63] * 1000))
    for i, step in enumerate(large.steps):
        step.id = f"{i:063}"
    large.context.update({"deep": deep(31)})
    large.context.update({"k": "x" * (limits.PIPELINE_BYTES - large.ByteSize() - 40)})
    await api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=large))
    spec = {"deep": deep(31), "text": "x" * (limits.SPEC_BYTES - 400)}
    created = await api.create(spec=spec, labels={"k" * 128: "v" * 256}, pipeline="large")
    assert created.resource.spec["text"] == spec["text"]
    got = await api.resources.GetResource(resources.GetResourceRequest(definition="app", name="web"))
    assert got.resource == created.resource
    assert len((await api.resources.ListResources(resources.ListResourcesRequest())).resources) == 1
    assert len((await api.pipelines.ListPipelines(pipelines.ListPipelinesRequest())).pipelines) == 2
    run = (await api.runs.GetRun(run_service_pb2.GetRunRequest(id=created.run.id))).run
    assert run.pipeline_snapshot.context == large.context
    assert run.resource_snapshot.spec == created.resource.spec
    full = run_service_pb2.ListRunsRequest(view=run_pb2.RUN_VIEW_FULL)
    assert len((await api.runs.ListRuns(full)).runs) == 1
    async for response in api.runs.WatchRun(run_service_pb2.WatchRunRequest(id=run.id)):
        assert response.snapshot.runs[0].resource_snapshot == run.resource_snapshot
        break


async def test_all_limits_at_once_are_too_much_for_one_commit(api: Api) -> None:
    """The largest pipeline and spec fit together, but not with the most labels, of which each copy has its own."""
    await api.setup()
    large = pipeline("large")
    large.context.update({"k": "x" * (limits.PIPELINE_BYTES - 1000)})
    await api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=large))
    labels = {f"{i:0128}": "v" * 256 for i in range(64)}
    spec = {"text": "x" * (limits.SPEC_BYTES - 100)}
    found = await refused(api.create(spec=spec, labels=labels, pipeline="large"))
    assert found.kind == ("INVALID_ARGUMENT", "TOO_LARGE")
    assert "1310720" in found.message
    assert list((await api.resources.ListResources(resources.ListResourcesRequest())).resources) == []
    await api.create(spec=spec, labels=labels)


def deep(levels: int) -> dict[str, object]:
    """An object of so many levels."""
    document: dict[str, object] = {"x": "end"}
    for _ in range(levels - 1):
        document = {"x": document}
    return document

"""Locks of a pipeline that is registered: what is refused, and where; and what their keys come to."""

from __future__ import annotations

import pytest

from conveyor.api.validation import check
from conveyor.core import errors
from conveyor.core.inputs import Seen, Verdict
from conveyor.core.plan import compile_plan
from conveyor.expressions.errors import NoValue
from conveyor.expressions.program import Program, RunInputs
from conveyor.sdk import to_struct
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, pipeline_service_pb2, resource_pb2, result_pb2, run_pb2
from conveyor.v1.pipeline_pb2 import Lock, Pipeline


def release(**fields: object) -> Pipeline:
    """A step, one that can look at it, and a finally step."""
    pipeline = Pipeline(name="release", **fields)
    pipeline.steps.add(id="a", driver="x")
    pipeline.steps.add(id="b", driver="x")
    pipeline.finally_steps.add(id="f", driver="x")
    pipeline.params.add(name="env")
    pipeline.params.add(name="list", type=pipeline_pb2.PARAM_TYPE_ARRAY)
    return pipeline


def problems(pipeline: Pipeline) -> list[tuple[str, str]]:
    """The violations, by field and description."""
    try:
        check(pipeline_service_pb2.CreatePipelineRequest(pipeline=pipeline))
    except errors.DomainError as error:
        return [(each.field, each.description) for each in error.violations]
    return []


@pytest.mark.parametrize(
    ("lock", "field", "said"),
    [
        (Lock(key="deploy", limit=1000), "", ""),
        (Lock(key="ü" * 128), "", ""),
        (Lock(key="deploy-${{ params.env }}-${{ steps.a.state }}"), "", ""),
        (Lock(key="${{ params.env }}"), "", ""),
        (Lock(), "key", "is missing"),
        (Lock(key="x" * 257), "key", "has 257 bytes; at most 256"),
        (Lock(key="x", limit=0), "limit", "must be from 1 to 1000"),
        (Lock(key="x", limit=1001), "limit", "must be from 1 to 1000"),
        (Lock(key="a ${{ params.nope }}"), "key", "line 1, column 13: the pipeline has no parameter nope"),
        (Lock(key="${{ params.list }}"), "key", "comes to list"),
        (Lock(key="${{ steps.f.state }}"), "key", "step f does not end before step b begins"),
        (Lock(key="${{ run.state }}"), "key", "there is no field state here"),
        (Lock(key="a ${{ params.env"), "key", "line 1, column 3: ${{ has no }}"),
    ],
    ids=lambda each: str(each)[:40].replace("\n", " "),
)
def test_the_lock_of_a_step(lock: Lock, field: str, said: str) -> None:
    pipeline = release()
    pipeline.steps[1].lock.CopyFrom(lock)
    found = problems(pipeline)
    assert [path for path, _ in found] == ([f"pipeline.steps[1].lock.{field}"] if field else [])
    assert all(said in text for _, text in found)


@pytest.mark.parametrize(
    ("lock", "field", "said"),
    [
        (Lock(key="${{ params.env }} ${{ resource.name }} ${{ run.id }} ${{ context.x }}"), "", ""),
        (Lock(key="x", limit=0), "limit", "must be from 1 to 1000"),
        (
            Lock(key="x ${{ steps.a.state }}"),
            "key",
            "line 1, column 7: none of the steps has ended",
        ),
        (Lock(key="${{ run.state }}"), "key", "there is no field state here"),
        (Lock(key="${{ matrix.os }}"), "key", "there is no variable or function matrix"),
    ],
    ids=lambda each: str(each)[:40].replace("\n", " "),
)
def test_the_lock_of_a_pipeline(lock: Lock, field: str, said: str) -> None:
    found = problems(release(lock=lock))
    assert [path for path, _ in found] == ([f"pipeline.lock.{field}"] if field else [])
    assert all(said in text for _, text in found)


def test_a_step_cannot_wait_for_the_lock_of_its_own_run() -> None:
    pipeline = release(lock=Lock(key="deploy-${{ params.env }}", limit=2))
    pipeline.finally_steps[0].lock.key = pipeline.lock.key
    ((field, said),) = problems(pipeline)
    assert field == "pipeline.finally[0].lock.key"
    assert "the step would wait for its own run" in said
    pipeline.finally_steps[0].lock.key = "another"
    assert problems(pipeline) == []


def inputs(pipeline: Pipeline, **params: object) -> RunInputs:
    """The expressions of a run."""
    spec = storage_pb2.RunSpec(
        pipeline=pipeline, resource=resource_pb2.Resource(name="web"), params=to_struct(params).SerializeToString()
    )
    return RunInputs(Program(pipeline, compile_plan(pipeline)), spec)


def judged(lock: str, **params: object) -> Verdict:
    """What becomes of step b with such a lock, after step a."""
    pipeline = release()
    pipeline.steps[1].lock.key = lock
    result = storage_pb2.StoredResult(
        outcome=result_pb2.OUTCOME_SUCCEEDED, data=to_struct({"place": "eu"}).SerializeToString()
    )
    first = storage_pb2.StepRecord(step="a", state=run_pb2.STEP_STATE_SUCCEEDED, result=result)
    states = bytes([run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_STATE_PENDING, run_pb2.STEP_STATE_PENDING])
    seen = Seen(compile_plan(pipeline), storage_pb2.RunHead(id="r"), states, bytes(3), [first, None, None])
    return inputs(pipeline, **params).judge(1, seen)


@pytest.mark.parametrize(
    ("lock", "verdict"),
    [
        ("deploy-${{ params.env }}", Verdict(lock="deploy-prod")),
        ("${{ steps.a.data.place }}", Verdict(lock="eu")),
        ("n${{ size(params.list) }} $${{ x }}", Verdict(lock="n2 ${{ x }}")),
        ("${{ params.list[7] }}", Verdict(run_pb2.STEP_REASON_INPUT_INVALID)),
        ("${{ context.x }}", Verdict(run_pb2.STEP_REASON_INPUT_MISSING, "lock.key: context.x is not there")),
        ("${{ params.list[0] }}", Verdict(lock="1")),
        (
            "${{ params.empty }}",
            Verdict(run_pb2.STEP_REASON_INPUT_INVALID, "lock.key: it has 0 bytes; a key has 1 to 256"),
        ),
        (
            "${{ params.long }}",
            Verdict(run_pb2.STEP_REASON_INPUT_INVALID, "lock.key: it has 257 bytes; a key has 1 to 256"),
        ),
    ],
)
def test_what_the_key_of_a_step_comes_to(lock: str, verdict: Verdict) -> None:
    found = judged(lock, env="prod", list=[1, 2], empty="", long="x" * 257)
    assert (found.reason, found.lock) == (verdict.reason, verdict.lock)
    assert found.message.startswith(verdict.message or ("lock.key: " if verdict.reason else ""))


def test_what_the_key_of_a_run_comes_to() -> None:
    head = storage_pb2.RunHead(id="r", pipeline="release")
    assert inputs(release(lock=Lock(key="plain"))).run_lock(head) == "plain"
    pipeline = release(lock=Lock(key="${{ resource.name }}-${{ run.id }}-${{ params.env }}"))
    assert inputs(pipeline, env="prod").run_lock(head) == "web-r-prod"
    with pytest.raises(NoValue, match=r"params\.env is not there"):
        inputs(pipeline).run_lock(head)

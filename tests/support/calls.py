"""Steps that run pipelines, in tests."""

from __future__ import annotations

from typing import Any

from conveyor.sdk import NotFound, to_struct
from conveyor.v1.pipeline_pb2 import Param, ParamType, Step, SubPipeline
from conveyor.v1.run_pb2 import Run
from tests.support.belt import Belt, step
from tests.support.wait import until


def call(name: str, pipeline: str, *needs: str, params: dict[str, Any] | None = None, **fields: Any) -> Step:
    """A step that runs a pipeline."""
    made = step(name, "none", *needs, **fields)
    made.runs.CopyFrom(SubPipeline(pipeline=pipeline, params=to_struct(params or {})))
    return made


def text(name: str, **fields: Any) -> Param:
    """A parameter that takes text."""
    return Param(name=name, type=ParamType.PARAM_TYPE_STRING, **fields)


async def there(belt: Belt, run: str) -> Run:
    """The run, which is made soon after its step has its id."""

    async def made() -> Run | None:
        try:
            return await belt.client.runs.get(run)
        except NotFound:
            return None

    return await until(made, "the run of the step to be made")


async def children(belt: Belt, run: Run) -> list[Run]:
    """The runs that the steps of a run started, newest first."""
    return [child async for child in belt.client.runs.list(caller_run=run.id)]

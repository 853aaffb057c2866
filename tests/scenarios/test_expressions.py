"""Parameters, conditions and expressions on a real server, over both transports."""

from __future__ import annotations

import pytest

from conveyor.sdk import Job, to_struct
from conveyor.v1.pipeline_pb2 import Param, ParamType
from conveyor.v1.run_pb2 import Run
from tests.support.belt import Belt, on_both_stores, states, step, step_reason


class Given:
    """Keeps the params of each job, and answers with what it was made with."""

    def __init__(self, **output: object) -> None:
        self.params: dict[str, dict[str, object]] = {}
        self._output = output

    async def __call__(self, job: Job) -> dict[str, object]:
        self.params[job.step] = job.params
        return self._output


def param(name: str, kind: ParamType.ValueType = ParamType.PARAM_TYPE_STRING, **fields: object) -> Param:
    """A parameter."""
    default = fields.pop("default", None)
    made = Param(name=name, type=kind, **fields)  # type: ignore[arg-type]
    if default is not None:
        made.default.CopyFrom(to_struct({"v": default}).fields["v"])
    return made


def reasons(run: Run) -> dict[str, str]:
    """The reason of each step."""
    return {each.step: step_reason(each) for each in run.steps}


TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "jetstream"])


@on_both_stores
@TRANSPORTS
async def test_params_reach_the_driver(belt: Belt, transport: str) -> None:
    given = Given(image="web:7")
    for name in ("build", "ship"):
        belt.drive(name, given, transport=transport)
    await belt.pipeline(
        step("build", params=to_struct({"env": "${{ params.env }}", "n": "${{ params.n }}", "plain": [1, "x"]})),
        step(
            "ship",
            when="params.n == 3 && steps.build.state == 'SUCCEEDED'",
            params=to_struct(
                {"text": "to ${{ params.env }}: ${{ steps.build.data.image }}, ${{ params.n }}", "raw": "$${{ x }}"}
            ),
        ),
        params=[param("env", default="test"), param("n", ParamType.PARAM_TYPE_NUMBER, default=3)],
    )
    ended = await belt.ended(await belt.start())
    assert states(ended) == {"build": "SUCCEEDED", "ship": "SUCCEEDED"}
    assert given.params == {
        "build": {"env": "test", "n": 3, "plain": [1, "x"]},
        "ship": {"text": "to test: web:7, 3", "raw": "${{ x }}"},
    }
    assert ended.params == to_struct({"env": "test", "n": 3})

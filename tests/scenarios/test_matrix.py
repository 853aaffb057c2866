"""Steps with a matrix on a real server, over both transports and with both stores."""

from __future__ import annotations

from typing import Any

import pytest

from conveyor.sdk import Job, to_struct
from conveyor.v1.pipeline_pb2 import Matrix, TriggerRule
from conveyor.v1.run_pb2 import Run
from tests.support.belt import Belt, on_both_stores, one, states, step

TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "jetstream"])
NONE_FAILED = TriggerRule.TRIGGER_RULE_NONE_FAILED


def matrix(
    axes: dict[str, Any] | None = None,
    *,
    include: list[dict[str, Any]] | None = None,
    exclude: list[dict[str, Any]] | None = None,
    **fields: Any,
) -> Matrix:
    """A matrix from plain values."""
    made = Matrix(include=map(to_struct, include or ()), exclude=map(to_struct, exclude or ()), **fields)
    for name, value in to_struct(axes or {}).fields.items():
        made.axes[name].CopyFrom(value)
    return made


def values(run: Run) -> dict[str, str]:
    """What each instance shows of its values."""
    return {
        each.step: " ".join(f"{name}={each.matrix[name]}" for name in sorted(each.matrix))
        for each in run.steps
        if each.matrix_step
    }


@on_both_stores
@TRANSPORTS
async def test_a_list_of_an_earlier_step(belt: Belt, transport: str) -> None:
    async def plan(job: Job) -> dict[str, object]:
        return {"versions": ["3.11", "3.12", "3.13"]}

    async def test(job: Job) -> dict[str, object]:
        return {"tested": job.params["version"]}

    async def ship(job: Job) -> dict[str, object]:
        return {"results": {name: result.data for name, result in job.results.items()}, "params": job.params}

    for name, handler in (("plan", plan), ("test", test), ("ship", ship)):
        belt.drive(name, handler, transport=transport)
    await belt.pipeline(
        step("plan"),
        step(
            "test",
            matrix=matrix({"py": "${{ steps.plan.data.versions }}"}),
            params=to_struct({"version": "${{ matrix.py }}"}),
        ),
        step("ship", params=to_struct({"first": "${{ steps.test.data[0].tested }}", "all": "${{ steps.test.data }}"})),
    )
    ended = await belt.ended(await belt.start())
    assert states(ended) == dict.fromkeys(["plan", "test", "ship", "test[0]", "test[1]", "test[2]"], "SUCCEEDED")
    assert list(states(ended))[3:] == ["test[0]", "test[1]", "test[2]"]
    assert values(ended) == {"test[0]": "py=3.11", "test[1]": "py=3.12", "test[2]": "py=3.13"}
    assert (one(ended.steps, "test").instances, one(ended.steps, "test[2]").matrix_step) == (3, "test")
    data = one(ended.steps, "ship").result.data
    tested = [{"tested": each} for each in ("3.11", "3.12", "3.13")]
    assert data["params"] == to_struct({"first": "3.11", "all": tested})
    assert {name: data["results"][name] for name in ("test[0]", "test[1]", "test[2]")} == {
        f"test[{i}]": to_struct(each) for i, each in enumerate(tested)
    }

"""docs/pipelines.md: each of its pipelines is read as `conveyor apply` reads it, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conveyor.cli.manifest import load
from conveyor.cli.sources import Source
from conveyor.core.plan import SECOND
from conveyor.v1.pipeline_pb2 import Pipeline
from tests.support.core import Run

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def documented() -> dict[str, Pipeline]:
    """The pipelines of the page by their first step; names stand twice."""
    found = {}
    for block in BLOCKS:
        (manifest,) = load([Source("pipelines.md", block.encode())])
        assert isinstance(manifest.object, Pipeline)
        found[" ".join(step.id for step in manifest.object.steps)] = manifest.object
    return found


PIPELINES = documented()


def test_page_has_pipelines() -> None:
    assert len(PIPELINES) == len(BLOCKS) == 9


@pytest.mark.parametrize("source", PIPELINES.values(), ids=PIPELINES)
def test_succeeds_when_all_drivers_do(source: Pipeline) -> None:
    run = Run(source)
    run.start()
    while not run.state.terminal:
        run.report(next(name for name, state in run.steps().items() if state == "QUEUED"))
    assert run.run == "SUCCEEDED"


def test_handled_failure_fails_the_run() -> None:
    run = Run(PIPELINES["deploy roll-back report"])
    run.start()
    run.report("deploy", "FAILED")
    run.report("roll-back")
    run.report("report")
    assert run.run == "FAILED STEP_FAILED"


def test_allowed_failure() -> None:
    run = Run(PIPELINES["audit publish"])
    run.start()
    run.report("audit", "FAILED")
    run.report("publish")
    assert run.run == "SUCCEEDED"


def test_other_branch_goes_on() -> None:
    run = Run(PIPELINES["linux mac publish-linux publish-mac"])
    run.start()
    run.report("linux", "FAILED")
    run.report("mac")
    run.report("publish-mac")
    assert run.step("publish-linux") == "SKIPPED NEED_FAILED"
    assert run.run == "FAILED STEP_FAILED"


def test_waits_between_attempts() -> None:
    plan = Run(PIPELINES["integration"]).plan
    retry = plan.steps[0].retry
    assert retry.max_attempts == 4
    assert [retry.backoff(n, 0.5) / SECOND for n in (1, 2, 3)] == [2, 4, 8]


def test_bounds() -> None:
    plan = Run(PIPELINES["build sign"]).plan
    build, sign = plan.steps
    assert (build.timeout, build.queue_timeout, sign.timeout) == (1200 * SECOND, 300 * SECOND, 90 * SECOND)
    assert plan.timeout == 7200 * SECOND

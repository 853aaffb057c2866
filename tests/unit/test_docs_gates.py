"""docs/gates.md: each of its pipelines is taken, and does what the page says."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from conveyor.api.validation import check
from conveyor.cli.manifest import load
from conveyor.cli.sources import Source
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.pipeline_service_pb2 import CreatePipelineRequest
from tests.support.core import Run

PAGE = Path(__file__).parents[2] / "docs" / "gates.md"
BLOCKS = re.findall(r"^ *```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def documented() -> dict[str, Pipeline]:
    """The pipelines of the page, by name."""
    found = {}
    for block in BLOCKS:
        (manifest,) = load([Source("gates.md", textwrap.dedent(block).encode())])
        assert isinstance(manifest.object, Pipeline)
        found[manifest.object.name] = manifest.object
    return found


PIPELINES = documented()


@pytest.mark.parametrize("name", ["release", "tell", "nightly", "nightly-with-time", "nightly-as-asked"])
def test_is_taken(name: str) -> None:
    check(CreatePipelineRequest(pipeline=PIPELINES[name]))


def test_no_other_is_there() -> None:
    assert len(PIPELINES) == len(BLOCKS) == 5


def test_a_manual_job_holds_nobody_back() -> None:
    run = Run(PIPELINES["nightly"])
    run.start()
    for name in ("build", "test", "publish"):
        run.report(name)
    assert run.run == "SUCCEEDED"
    assert (run.step("want-benchmark"), run.step("benchmark")) == ("SKIPPED NOT_DECIDED", "SKIPPED NEED_SKIPPED")

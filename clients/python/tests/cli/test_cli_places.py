"""The lines at which `conveyor apply` and `diff` tell what the server refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from conveyor.cli.manifest import load
from conveyor.cli.sources import Source

Conveyor = Callable[..., Any]

RELEASE = """\
# The first line.
kind: Pipeline
name: release
x-again: &again
  maxAttempts: 500
  maxBackoff: 1s
x-common: &common
  timeout: 900h
labels:
  a.b: "\\n"
steps:
- id: build
  driver: make
  lock:
    key: here
    limit: 2000
  workerSelector:
    match_labels:
      os: ${{ nope }}
- <<: *common
  id: test
  driver: make
  retry: *again
  params:
    list:
      - a
      - x.y: 1
        x.y.z: ${{ nope }}
        dry-run/fast: 2
  matrix:
    axes:
      os:
        - linux
        - ${{ nope }}
finally:
- {id: tidy, driver: make}
- id: tell
  driver: make
  when: nope
finallyTimeout: 1s
"""
OTHERS = """\
kind: Schedule
name: nightly
definition: app
resource: shop
cron: 61 * * * *
runLabels:
  a: b
---
kind: Resource
name: shop
definition: app
pipeline: release
spec:
  images:
  - name: a
  - tag/x~y: 7
---
kind: ResourceDefinition
name: app
schema:
  properties:
    size:
      type: nope
"""
AS_JSON = """\
{"kind": "Pipeline",
 "name": "a",
 "steps": [
  {"id": "a",
   "triggerRule": "ALL_DONE",
   "driver": "x"}]}
"""


def placed(text: str, name: str, field: str) -> str:
    """The line of a field, with the object."""
    manifests = {manifest.object.name: manifest for manifest in load([Source("f", text.encode())])}
    return manifests[name].place(field)


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("pipeline.name", 3),
        ('pipeline.labels["a.b"]', 10),
        ("pipeline.steps", 11),
        ("pipeline.steps[0]", 12),
        ("pipeline.steps[0].lock", 14),
        ("pipeline.steps[0].lock.limit", 16),
        ('pipeline.steps[0].worker_selector.match_labels["os"]', 19),
        ('pipeline.steps[0].workerSelector.matchLabels["os"]', 19),
        # What a merge key or an alias brings stands at its anchor; the alias itself, where it is.
        ("pipeline.steps[1].timeout", 8),
        ("pipeline.steps[1].retry", 23),
        ("pipeline.steps[1].retry.max_attempts", 5),
        # Free-form values, with dots in keys.
        ("pipeline.steps[1].params.list[0]", 26),
        ("pipeline.steps[1].params.list[1].x.y", 27),
        ("pipeline.steps[1].params.list[1].x.y.z", 28),
        ("pipeline.steps[1].params/list/1/dry-run~1fast", 29),
        ("pipeline.steps[1].matrix.axes.os[1]", 34),
        ("pipeline.finally[1].when", 39),
        ("pipeline.finally_steps[1].when", 39),
        ("pipeline.finally_timeout", 40),
        # What is not there has the line of the nearest that is.
        ("pipeline.steps[0].lock.keys", 14),
        ("pipeline.steps[0].params.a", 12),
        ("pipeline.steps[7].driver", 11),
        ("pipeline.steps[99999999999999].driver", 11),
        ("pipeline.steps[1].params.list[1].x", 27),
        ("pipeline.namespace", 2),
        ("pipeline", 2),
        ("validate_only", 2),
        ("pipelines.name", 2),
        ("pipeline.steps[0].lock.limi…", 14),
        # Without the name of the object.
        ("steps[0].driver", 13),
    ],
)
def test_the_line_of_a_field(field: str, line: int) -> None:
    assert placed(RELEASE, "release", field) == f"f:{line}: pipeline/release"


@pytest.mark.parametrize(
    ("name", "field", "place"),
    [
        ("nightly", "schedule.cron", "f:5: schedule/nightly"),
        ("nightly", 'schedule.run_labels["a"]', "f:7: schedule/nightly"),
        # The field of that name, not the object.
        ("nightly", "resource", "f:4: schedule/nightly"),
        ("shop", "resource.pipeline", "f:12: resource/app/shop"),
        ("shop", "resource.spec/images/1/tag~1x~0y", "f:16: resource/app/shop"),
        ("shop", "resource.spec/images/1/none", "f:16: resource/app/shop"),
        ("app", "resource_definition.schema/properties/size/type", "f:23: definition/app"),
    ],
)
def test_all_kinds_of_objects(name: str, field: str, place: str) -> None:
    assert placed(OTHERS, name, field) == place


def test_json_has_lines_too() -> None:
    assert placed(AS_JSON, "a", "pipeline.steps[0].trigger_rule") == "f:5: pipeline/a"


@pytest.mark.parametrize(("command", "code"), [(("apply",), 1), (("apply", "--dry-run"), 1), (("diff",), 2)])
def test_each_violation_has_its_line(
    conveyor: Conveyor, server: Any, refusal: Any, tmp_path: Path, command: tuple[str, ...], code: int
) -> None:
    path = tmp_path / "release.yaml"
    path.write_text(RELEASE)
    limit, when = "pipeline.steps[0].lock.limit", "pipeline.finally[1].when"
    violations = ((limit, "must be from 1 to 1000"), (when, "is no condition"), ("", "and 7 more"))
    told = f"{limit}: must be from 1 to 1000"
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    server.refusals["ApplyPipeline"] = refusal(invalid, "INVALID_FIELD", f"{told} (and 8 more)", violations)
    done = conveyor(*command, "-f", str(path))
    assert done.code == code
    assert done.err.splitlines() == [
        f"error: {path}:16: pipeline/release: {told} (and 8 more)",
        f"  {path}:39: pipeline/release: {when}: is no condition",
        "  and 7 more",
    ]
    server.refusals["ApplyPipeline"] = refusal(invalid, "INVALID_FIELD", told, violations[:1])
    assert conveyor(*command, "-f", str(path)).err == f"error: {path}:16: pipeline/release: {told}\n"
    # What is about no field has the line of the object.
    server.refusals["ApplyPipeline"] = refusal(invalid, "TOO_LARGE", "it is too large")
    assert conveyor(*command, "-f", str(path)).err == f"error: {path}:2: pipeline/release: it is too large\n"

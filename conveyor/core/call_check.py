"""Whether a pipeline that runs itself can ever end. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from conveyor.core.errors import Violation
from conveyor.v1 import errors_pb2, pipeline_pb2

_ALL_SUCCESS = frozenset({pipeline_pb2.TRIGGER_RULE_UNSPECIFIED, pipeline_pb2.TRIGGER_RULE_ALL_SUCCESS})


def check_calls(pipeline: pipeline_pb2.Pipeline, path: str) -> Iterator[Violation]:
    """The first step that runs its own pipeline whatever happens; a circle through others is found at its depth."""
    for name, steps in (("steps", pipeline.steps), ("finally", pipeline.finally_steps)):
        for i, step in enumerate(steps):
            if step.runs.pipeline and step.runs.pipeline == pipeline.name and _always_runs(pipeline, step):
                text = "runs its own pipeline, always, so that no run of it would end; give the step a condition: when"
                yield Violation(f"{path}.{name}[{i}].runs.pipeline", text, errors_pb2.ERROR_REASON_CYCLE)
                return


def _always_runs(pipeline: pipeline_pb2.Pipeline, step: pipeline_pb2.Step) -> bool:
    """Whether neither the step nor one that it stands on has a condition."""
    before = _before(pipeline)
    seen = {step.id}
    way = [step]
    while way:
        current = way.pop()
        if current.when or current.HasField("matrix") or current.trigger_rule == pipeline_pb2.TRIGGER_RULE_ONE_FAILED:
            return False
        if current.trigger_rule in _ALL_SUCCESS:
            found = [need for need in before.get(current.id, ()) if need.id not in seen]
            seen.update(need.id for need in found)
            way.extend(found)
    return True


def _before(pipeline: pipeline_pb2.Pipeline) -> dict[str, list[pipeline_pb2.Step]]:
    steps = list(pipeline.steps)
    if pipeline.order != pipeline_pb2.ORDER_GRAPH:
        return {step.id: [before] for before, step in itertools.pairwise(steps)}
    known = {step.id: step for step in steps}
    return {step.id: [known[need] for need in step.needs if need in known] for step in steps}

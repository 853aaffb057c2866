"""A second, naive reading of what a pipeline means, for the checks alone: it shares no code with the engine.

It knows of final states only: given how the needs of a step ended, whether the step had to run, and given how all
steps ended, how the run had to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict

from conveyor.v1.pipeline_pb2 import FailurePolicy, Order, Pipeline, Step, TriggerRule
from tests.faults.conditions import Condition

LOSSES = 3
"""How often a step may lose its worker and be tried again."""


@dataclass(frozen=True, slots=True)
class ModelStep:
    """One step, as its pipeline wants it."""

    name: str
    needs: tuple[str, ...]
    rule: str
    last: bool
    """Whether it is a finally step."""
    allow_failure: bool
    failures: int
    """How many attempts may fail."""
    timed: bool
    queue_timed: bool
    gate: bool
    """Whether people decide, not a driver."""
    driven: bool
    """Whether a driver does the work."""
    fans_out: bool
    """Whether it has a matrix."""
    stops_others: bool
    """Whether an instance of it that fails stops the others."""
    matrix_of: str = ""
    """Of an instance: the step that has the matrix."""


@dataclass(frozen=True, slots=True)
class Model:
    """A pipeline."""

    steps: Mapping[str, ModelStep]
    fail_fast: bool
    timed: bool
    acts: Mapping[str, list[dict[str, Any]]]
    conditions: Mapping[str, Condition]
    given: Mapping[str, Mapping[str, str]]

    def main(self) -> list[ModelStep]:
        """All that the pipeline names but the finally steps."""
        return [step for step in self.steps.values() if not step.last and not step.matrix_of]

    def runs(self, name: str, ended: Mapping[str, str]) -> bool:
        """Whether the rule of a step lets it run after its needs ended like this."""
        step = self.steps[name]
        needs = [(ended[need], self.steps[need].allow_failure) for need in step.needs]
        if step.rule == "ALL_DONE":
            return True
        if step.rule == "ONE_FAILED":
            return any(state == "FAILED" for state, _ in needs)
        if step.rule == "NONE_FAILED":
            return not any(state == "CANCELLED" or (state == "FAILED" and not allowed) for state, allowed in needs)
        return all(state == "SUCCEEDED" or (state == "FAILED" and allowed) for state, allowed in needs)

    def spoiled(self, name: str, ended: Mapping[str, str]) -> bool:
        """Whether another main step failed that must not."""
        own = (name, self.steps[name].matrix_of)
        others = (step for step in self.main() if step.name not in own and not step.allow_failure)
        return any(ended[step.name] == "FAILED" for step in others)

    def stoppable(self, name: str) -> bool:
        """Whether the failure of another step stops this one."""
        return self.fail_fast and not self.steps[name].last and self.steps[name].rule in ("ALL_SUCCESS", "NONE_FAILED")

    def end(self, ended: Mapping[str, str]) -> str:
        """How a run ends that nobody cancels and that does not time out."""
        named = (step for step in self.steps.values() if not step.matrix_of)
        bad = (ended[s.name] in ("FAILED", "CANCELLED") and not s.allow_failure for s in named)
        return "FAILED" if any(bad) else "SUCCEEDED"


def model(pipeline: Pipeline) -> Model:
    """Reads a pipeline."""
    steps: dict[str, ModelStep] = {}
    for step in pipeline.steps:
        before = list(steps)[-1:] if pipeline.order != Order.ORDER_GRAPH else step.needs
        steps[step.id] = _step(step, tuple(before), last=False)
    for step in pipeline.finally_steps:
        steps[step.id] = _step(step, (), last=True)
    context = MessageToDict(pipeline.context)
    return Model(
        steps,
        fail_fast=pipeline.failure_policy != FailurePolicy.FAILURE_POLICY_CONTINUE,
        timed=pipeline.HasField("timeout") or bool(pipeline.finally_steps),
        acts=context.get("acts", {}),
        conditions=context.get("conditions", {}),
        given=context.get("given", {}),
    )


def _step(step: Step, needs: tuple[str, ...], *, last: bool) -> ModelStep:
    rule = TriggerRule.Name(step.trigger_rule).removeprefix("TRIGGER_RULE_")
    failures = 1
    if step.HasField("retry"):
        failures = step.retry.max_attempts if step.retry.HasField("max_attempts") else 3
    return ModelStep(
        name=step.id,
        needs=needs,
        rule="ALL_SUCCESS" if rule == "UNSPECIFIED" else rule,
        last=last,
        allow_failure=step.allow_failure,
        failures=failures,
        timed=step.HasField("timeout"),
        queue_timed=step.HasField("queue_timeout"),
        gate=step.HasField("gate"),
        driven=step.HasField("driver") and not step.HasField("matrix"),
        fans_out=step.HasField("matrix"),
        stops_others=step.matrix.fail_fast or not step.matrix.HasField("fail_fast"),
    )

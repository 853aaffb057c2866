"""What a step does, and which of its other fields mean something then."""

from __future__ import annotations

from typing import Any

from conveyor.api import checks
from conveyor.api.checks import DAY, SECOND, Check, Problems
from conveyor.core import limits
from conveyor.v1 import pipeline_pb2

_NOT_AT_A_GATE = {
    "timeout": "a gate has no attempts; gate.timeout bounds its wait",
    "queue_timeout": "no worker takes a gate; gate.timeout bounds its wait",
    "retry": "people are asked once; a gate is not tried again",
    "params": "a gate has no driver that takes them; what people should know belongs into gate.message",
    "worker_selector": "no worker takes a gate",
    "lock": "a gate holds no lock; put it on the step that does the work",
}
"""Fields that mean nothing when people decide, and what is there instead."""

_NOT_WITH_A_PIPELINE = {
    "queue_timeout": "no worker takes a step that runs a pipeline; timeout bounds each attempt",
    "params": "a step that runs a pipeline has no driver that takes them; the pipeline's are runs.params",
    "worker_selector": "no worker takes a step that runs a pipeline",
}
"""The same when the step runs a pipeline."""

_MEANINGLESS = {"gate": _NOT_AT_A_GATE, "runs": _NOT_WITH_A_PIPELINE}


def action(problems: Problems, path: str, step: Any, key: str) -> None:
    """The one thing that the step does."""
    kind = step.WhichOneof("action")
    if kind is None:
        problems.add(path, "is missing; a step names its driver, is a gate (gate: {} at the least), or runs a pipeline")
    elif kind == "driver":
        checks.name(problems, path, step, key)
    parent = path.removesuffix(f".{key}")
    for name, said in _MEANINGLESS.get(kind or "", {}).items():
        if step.HasField(name):
            problems.add(f"{parent}.{name}", said)


def optional_gates(problems: Problems, path: str, pipeline: Any) -> None:
    """Gates that a run does not wait for: something else has to go on meanwhile."""
    if pipeline.order != pipeline_pb2.ORDER_GRAPH:
        for i, step in enumerate(pipeline.steps):
            if step.gate.optional:
                said = "only with order GRAPH; in order LIST nothing goes on while people decide"
                problems.add(f"{path}.steps[{i}].gate.optional", said)
    for i, step in enumerate(pipeline.finally_steps):
        if step.gate.optional:
            said = "not as a finally step; finally_timeout or gate.timeout bounds its wait"
            problems.add(f"{path}.finally[{i}].gate.optional", said)


def _only_with(other: str) -> Check:
    def check(problems: Problems, path: str, message: Any, key: str) -> None:
        if getattr(message, key) and not message.HasField(other):
            problems.add(path, f"needs {other} too: it is what is decided when that has passed")

    return check


def _approvals(problems: Problems, path: str, gate: Any, key: str) -> None:
    if gate.approvals > limits.GATE_APPROVALS:
        problems.add(path, f"is {gate.approvals}; at most {limits.GATE_APPROVALS}, and 0 means 1")


GATE = (
    ("approvals", _approvals),
    ("timeout", checks.duration(SECOND // 10, 366 * DAY)),
    ("default_decision", _only_with("timeout")),
    ("message", checks.text(limits.GATE_MESSAGE_BYTES)),
)
"""The rules of a gate's own fields."""

RUNS = (
    ("pipeline", checks.name),
    ("params", checks.struct(limits.PARAMS_BYTES)),
)
"""The rules of what a step runs."""

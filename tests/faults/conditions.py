"""Random conditions and params of steps, and a naive reading of what they come to, for the checks alone.

A pipeline's context keeps them as plain values, beside the expressions that are made of them: nothing here parses CEL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from conveyor.sdk import to_struct
from conveyor.v1.pipeline_pb2 import Step

MOST = 9
"""The parameter n of a run is from 0 to this."""

Condition = dict[str, Any]


def random_condition(rng: Random, earlier: Sequence[str]) -> Condition:
    """On the parameter n, or on an earlier step: on its state, on what it said, or on what it may not have said."""
    kind = rng.choice(["param", "state", "data", "perhaps"]) if earlier else "param"
    if kind == "param":
        return {"kind": kind, "above": rng.randint(-1, MOST)}
    step = rng.choice(earlier)
    if kind == "state":
        return {"kind": kind, "step": step, "of": rng.sample(["SUCCEEDED", "FAILED", "SKIPPED", "CANCELLED"], 2)}
    return {"kind": kind, "step": step, "below": rng.choice([2, 2, 3])}


def random_given(rng: Random, earlier: Sequence[str]) -> dict[str, str]:
    """What a step is given: by key the earlier step whose state it is, or "" for the parameter n."""
    return {f"k{number}": rng.choice(["", *earlier]) for number in range(rng.randint(1, 3))}


def write(step: Step, condition: Condition | None, given: Mapping[str, str]) -> None:
    """Put them into the step, as expressions."""
    if condition is not None:
        step.when = _expression(condition)
    if given:
        said = {key: "params.n" if not of else f"steps.{of}.state" for key, of in given.items()}
        step.params.CopyFrom(to_struct({key: f"${{{{ {text} }}}}" for key, text in said.items()}))


def _expression(condition: Condition) -> str:
    match condition["kind"]:
        case "param":
            return f"params.n > {condition['above']}"
        case "state":
            return f"steps.{condition['step']}.state in {condition['of']}".replace("'", '"')
        case "data":
            return f"steps.{condition['step']}.data.attempt < {condition['below']}"
    return f"steps.{condition['step']}.data.?attempt.orValue(1) < {condition['below']}"


def holds(condition: Condition, n: float, ended: Mapping[str, str], attempts: Mapping[str, float]) -> bool | None:
    """Whether it is true, given how steps ended and which attempt they said that they were; None: there is none."""
    match condition["kind"]:
        case "param":
            return n > float(condition["above"])
        case "state":
            return ended[condition["step"]] in condition["of"]
        case "data" if condition["step"] not in attempts:
            return None
    return attempts.get(condition["step"], 1) < float(condition["below"])


def expected(given: Mapping[str, str], n: float, ended: Mapping[str, str]) -> dict[str, object]:
    """What the driver must be given."""
    return {key: n if not of else ended[of] for key, of in given.items()}

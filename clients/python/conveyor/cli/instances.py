"""The instances of a matrix, as people read them: below their step, with their values."""

import json
from collections.abc import Iterable

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Value

from conveyor.v1.run_pb2 import StepRun

_VALUE = 40


def values(step: StepRun) -> str:
    """The values of an instance in one line: os=linux py=3.12."""
    return " ".join(f"{name}={_shown(step.matrix.fields[name])}" for name in sorted(step.matrix.fields))


def label(step: StepRun) -> str:
    """What a step is called: an instance with its values."""
    return f"{step.step} {values(step)}".rstrip() if step.matrix_step else step.step


def in_order(steps: Iterable[StepRun]) -> list[StepRun]:
    """Steps with their instances right behind them; in a run those come last."""
    instances: dict[str, list[StepRun]] = {}
    declared: list[StepRun] = []
    for step in steps:
        if step.matrix_step:
            instances.setdefault(step.matrix_step, []).append(step)
        else:
            declared.append(step)
    if not instances:
        return declared
    return [each for step in declared for each in (step, *instances.pop(step.step, ()))] + [
        each for rest in instances.values() for each in rest
    ]


def as_told(steps: Iterable[StepRun]) -> list[StepRun]:
    """Steps that changed together in the order of a story: one with a matrix ends after its instances."""
    told: list[StepRun] = []
    ended: dict[str, StepRun] = {}
    for step in in_order(steps):
        if ended and step.matrix_step not in ended:
            told.extend(ended.values())
            ended.clear()
        if step.instances and step.HasField("end_time"):
            ended[step.step] = step
        else:
            told.append(step)
    return [*told, *ended.values()]


def _shown(value: Value) -> str:
    if value.WhichOneof("kind") == "string_value":
        text = value.string_value
    elif value.WhichOneof("kind") == "number_value":
        text = f"{value.number_value:.15g}"
    else:
        text = json.dumps(MessageToDict(value), ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= _VALUE else text[: _VALUE - 1] + "…"

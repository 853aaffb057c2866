"""What expressions refer to, as plain values: of a run and its steps, as far as it is referred to, and no more.

The library converts all that it is given, anew at each evaluation: so it is given little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.core.inputs import Seen
from conveyor.core.matrix import data_of, values_of
from conveyor.core.model import TERMINAL_STEP
from conveyor.core.rules import outcome
from conveyor.expressions.declarations import FIELDS
from conveyor.expressions.syntax import Reference
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import resource_pb2, run_pb2

Wanted = dict[str, "Wanted | None"]
"""Keys, and below each what of its value; None stands for all of it."""

_NUL = "\0"
_STATES: dict[int, str] = {number: name.removeprefix("STEP_STATE_") for name, number in run_pb2.StepState.items()}
_REASONS: dict[int, str] = {number: name.removeprefix("STEP_REASON_") for name, number in run_pb2.StepReason.items()}
_REASONS[run_pb2.STEP_REASON_UNSPECIFIED] = ""

_ALL_OF_A_RESOURCE: Wanted = dict.fromkeys(FIELDS["Resource"])


def wanted(references: Iterable[Reference]) -> Wanted:
    """What the references need, variables at the top."""
    found: Wanted = {}
    for reference in references:
        _add(found, reference.names)
    return found


def _add(level: Wanted, names: Sequence[str]) -> None:
    for name, next_ in pairwise(names):
        if _NUL in next_:
            level[name] = None  # see pick
            return
        below = level.setdefault(name, {})
        if below is None:
            return  # All of it is wanted anyway.
        level = below
    level[names[-1]] = None


def pick(struct: Struct, wanted: Wanted | None) -> dict[str, object] | Struct:
    """What is wanted of a struct, as far as it is there.

    The library cuts texts of Python where they have a NUL, unlike those in messages: what has one stays a message.
    """
    fields = struct.fields
    if wanted is not None:
        return {key: _part(fields[key], below) for key, below in wanted.items() if key in fields}
    if _NUL in "".join(fields):
        return struct
    return {key: _plain(value) for key, value in fields.items()}


def _part(value: Value, wanted: Wanted | None) -> object:
    # Of what is no map there are no parts; it is for the expression to fail on that.
    return pick(value.struct_value, wanted) if wanted and value.HasField("struct_value") else _plain(value)


def _plain(value: Value) -> object:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        text: str = value.string_value
        return text if _NUL not in text else value
    if kind == "struct_value":
        return pick(value.struct_value, None)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    return None if kind is None or kind == "null_value" else getattr(value, kind)


def _labels(labels: Mapping[str, str]) -> dict[str, object] | Struct:
    struct = Struct()
    for key, value in labels.items():
        struct.fields[key].string_value = value
    return pick(struct, None)


class RunValues:
    """The values of one run."""

    def __init__(self, spec: storage_pb2.RunSpec) -> None:
        self._spec = spec
        self._params: Struct | None = None

    def of(self, wanted: Wanted, index: int, seen: Seen) -> dict[str, object]:
        """What is wanted for a step."""
        spec, values = self._spec, dict[str, object]()
        for variable, below in wanted.items():
            if variable == "params":
                if self._params is None:
                    self._params = Struct.FromString(spec.params)
                values[variable] = pick(self._params, below)
            elif variable == "context":
                values[variable] = pick(spec.pipeline.context, below)
            elif variable == "resource":
                values[variable] = _resource(spec.resource, below)
            elif variable == "run":
                values[variable] = _run(index, seen)
            elif variable == "steps":
                values[variable] = _steps(below or {}, seen)
            elif variable == "matrix":
                values[variable] = _matrix(below, index, seen)
        return values


def _resource(resource: resource_pb2.Resource, wanted: Wanted | None) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, below in (_ALL_OF_A_RESOURCE if wanted is None else wanted).items():
        if name == "spec":
            found[name] = pick(resource.spec, below)
        elif name == "labels":
            found[name] = _labels(resource.labels)
        elif name in _ALL_OF_A_RESOURCE:
            found[name] = getattr(resource, name)
    return found


def _run(index: int, seen: Seen) -> dict[str, object]:
    head, plan = seen.head, seen.plan
    created = Timestamp()
    created.FromMicroseconds(head.create_time)
    run: dict[str, object] = {
        "namespace": head.namespace,
        "id": head.id,
        "pipeline": head.pipeline,
        "parent_run": head.parent_run,
        "create_time": created,
        "labels": _labels(head.labels),
    }
    if plan.steps[index].is_finally:
        state = head.outcome or outcome(plan, bytes(seen.states[: plan.main]))[0]
        run["state"] = run_pb2.RunState.Name(state).removeprefix("RUN_STATE_")
    return run


def _matrix(wanted: Wanted | None, index: int, seen: Seen) -> dict[str, object] | Struct:
    """The values of an instance."""
    record = seen.steps[seen.plan.steps[index].matrix_step]
    return pick(Struct.FromString(values_of(record, index)), wanted) if record is not None else {}


def _steps(wanted: Wanted, seen: Seen) -> dict[str, object]:
    """The earlier steps that are wanted, as far as they have ended."""
    found: dict[str, object] = {}
    for step, below in wanted.items():
        index = seen.plan.index.get(step)
        if index is None or seen.states[index] not in TERMINAL_STEP:
            continue
        shown: dict[str, object] = {"state": _STATES[seen.states[index]], "reason": _REASONS[seen.reasons[index]]}
        if below is None or "data" in below:
            shown["data"] = _data(below["data"] if below else None, index, seen)
        found[step] = shown
    return found


def _data(wanted: Wanted | None, index: int, seen: Seen) -> object:
    """The data of a step's result, nothing for one that never ran; of one with a matrix a list of its instances'."""
    if seen.plan.steps[index].matrix is not None:
        data = data_of([seen.steps[place] for place in seen.plan.instances.get(index, ())])
        return [_plain(value) for value in data.values]
    record = seen.steps[index]
    return pick(Struct.FromString(record.result.data), wanted) if record is not None else {}

"""The parameters of a pipeline: how they are declared, and which values a run gets. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from google.protobuf.struct_pb2 import Struct, Value

from conveyor.core import limits
from conveyor.core.errors import Violation
from conveyor.v1 import errors_pb2, pipeline_pb2

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}", re.ASCII)
_RESERVED = frozenset({"false", "in", "null", "true"})
_NAME_FAULT = 'must be a letter, then letters, digits and "_"; at most 63 characters'
_SHOWN = 64

_KINDS: dict[int, tuple[str, str]] = {
    pipeline_pb2.PARAM_TYPE_STRING: ("string_value", "text"),
    pipeline_pb2.PARAM_TYPE_NUMBER: ("number_value", "a number"),
    pipeline_pb2.PARAM_TYPE_BOOLEAN: ("bool_value", "true or false"),
    pipeline_pb2.PARAM_TYPE_ARRAY: ("list_value", "a list"),
    pipeline_pb2.PARAM_TYPE_OBJECT: ("struct_value", "a map"),
}
_CALLED = dict(_KINDS.values()) | {"null_value": "null", "bool_value": "true or false"}


def name_fault(text: str) -> str:
    """Why it cannot be the name of a parameter, or of an axis of a matrix; expressions write it as it is."""
    if _NAME.fullmatch(text) is None:
        return _NAME_FAULT
    if text in _RESERVED:
        return f"must not be {text}: expressions have that word for themselves and cannot write it after a dot"
    return ""


def check_params(params: Sequence[pipeline_pb2.Param], path: str) -> Iterator[Violation]:
    """What is wrong with how parameters are declared. Their free-form values are valid JSON."""
    if len(params) > limits.PARAMS:
        text = f"has {len(params)} entries; at most {limits.PARAMS}"
        yield Violation(path, text, errors_pb2.ERROR_REASON_TOO_LARGE)
        return
    seen: dict[str, int] = {}
    for i, param in enumerate(params):
        where = f"{path}[{i}]"
        if fault := name_fault(param.name):
            yield Violation(f"{where}.name", fault)
        elif param.name in seen:
            yield Violation(f"{where}.name", f"{param.name} is the name of {path}[{seen[param.name]}] already")
        seen.setdefault(param.name, i)
        if param.required and param.HasField("default"):
            yield Violation(f"{where}.required", "has no meaning for a parameter with a default")
        for j, value in enumerate(param.enum):
            if fault := _type_fault(param, value):
                yield Violation(f"{where}.enum[{j}]", fault)
        if param.HasField("default") and (fault := _fault(param, param.default)):
            yield Violation(f"{where}.default", fault)


def resolve(
    params: Sequence[pipeline_pb2.Param], given: Sequence[tuple[str, Struct]]
) -> tuple[Struct, list[Violation]]:
    """The values of a run, and all that is wrong with what was given.

    `given` are values with the paths that they came by; the later ones go over the earlier ones.
    """
    declared = {param.name: param for param in params}
    values, sources = Struct(), dict[str, str]()
    violations: list[Violation] = []
    for path, struct in given:
        for name, value in struct.fields.items():
            if name not in declared:
                known = ", ".join(declared) or "none"
                violations.append(Violation(_join(path, name), f"the pipeline has no such parameter; it has {known}"))
                continue
            values.fields[name].CopyFrom(value)
            sources[name] = path
    for name, param in declared.items():
        if name in sources:
            if fault := _fault(param, values.fields[name]):
                violations.append(Violation(_join(sources[name], name), fault))
        elif param.HasField("default"):
            values.fields[name].CopyFrom(param.default)
        elif param.required:
            violations.append(Violation(_join(given[-1][0], name), "is missing; the pipeline requires it"))
    return values, violations


def _fault(param: pipeline_pb2.Param, value: Value) -> str:
    """Why the value does not fit, or nothing."""
    fault = _type_fault(param, value)
    if fault or not param.enum or any(value == allowed for allowed in param.enum):
        return fault
    shown = ", ".join(_shown(allowed) for allowed in param.enum[:10])
    return f"must be one of {shown}{', …' if len(param.enum) > 10 else ''}"


def _type_fault(param: pipeline_pb2.Param, value: Value) -> str:
    wanted = _KINDS.get(param.type or pipeline_pb2.PARAM_TYPE_STRING)
    kind = value.WhichOneof("kind") or "null_value"
    if wanted is None or kind == wanted[0]:
        return ""
    return f"must be {wanted[1]}, not {_CALLED[kind] if kind != 'bool_value' else _shown(value)}"


def _shown(value: Value) -> str:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        text = value.string_value
        return f'"{text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"}"'
    if kind == "number_value":
        return f"{value.number_value:.17g}"
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    return _CALLED[kind or "null_value"]


def _join(path: str, name: str) -> str:
    return f"{path}.{name[:_SHOWN]}"

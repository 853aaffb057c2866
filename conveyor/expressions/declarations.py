"""What expressions may refer to, and of which types it is: messages of CEL's own kind, made for one pipeline."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cel_expr_python import cel
from cel_expr_python.ext import ext_optional
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2, timestamp_pb2

from conveyor.v1 import pipeline_pb2

_PACKAGE = "conveyor"
_FIELD = descriptor_pb2.FieldDescriptorProto
_TEXT, _FLAG, _WHOLE = "string", "bool", "int"
ANY, LIST, OBJECT, _TIME = "Value", "ListValue", "Struct", "Timestamp"
_KINDS = {_TEXT: _FIELD.TYPE_STRING, _FLAG: _FIELD.TYPE_BOOL, _WHOLE: _FIELD.TYPE_INT64}

# A number is of no static type: to CEL a double differs from a whole number that is written out.
_PARAM_KINDS: dict[int, str] = {
    pipeline_pb2.PARAM_TYPE_STRING: _TEXT,
    pipeline_pb2.PARAM_TYPE_NUMBER: ANY,
    pipeline_pb2.PARAM_TYPE_BOOLEAN: _FLAG,
    pipeline_pb2.PARAM_TYPE_ARRAY: LIST,
    pipeline_pb2.PARAM_TYPE_OBJECT: OBJECT,
}

FIELDS: dict[str, dict[str, str]] = {
    "Resource": {"namespace": _TEXT, "name": _TEXT, "definition": _TEXT, "labels": OBJECT, "spec": OBJECT},
    "Run": {
        "namespace": _TEXT,
        "id": _TEXT,
        "pipeline": _TEXT,
        "parent_run": _TEXT,
        "create_time": _TIME,
        "labels": OBJECT,
    },
    "Step": {"state": _TEXT, "reason": _TEXT, "data": OBJECT},
}
"""The fields of what is the same for all pipelines."""

_AFTER_ALL = {"state": _TEXT}

VARIABLES = ("resource", "params", "context", "run", "steps", "matrix")
_MAP = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)


@dataclass(frozen=True, slots=True)
class Declarations:
    """What the expressions of a step may refer to besides what all may.

    `params` are the pipeline's parameters; `after_all`: it is a finally step, which knows how the run went; `matrix`
    are the names of the step's axes. `data` is of which type the data of earlier steps is.
    """

    params: tuple[tuple[str, pipeline_pb2.ParamType.ValueType], ...] = ()
    after_all: bool = False
    matrix: tuple[str, ...] = ()
    data: str = OBJECT

    @classmethod
    def of(
        cls, params: Iterable[pipeline_pb2.Param], *, after_all: bool = False, matrix: Iterable[str] = ()
    ) -> Declarations:
        """Those of a pipeline's parameters."""
        named = {param.name: param.type or pipeline_pb2.PARAM_TYPE_STRING for param in params}
        return cls(tuple(named.items()), after_all, tuple(sorted(matrix)))

    def fields(self) -> dict[str, dict[str, str]]:
        """The fields of each type."""
        found = {**FIELDS, "Params": {name: _PARAM_KINDS[kind] for name, kind in self.params}}
        if self.after_all:
            found["Run"] = {**FIELDS["Run"], **_AFTER_ALL}
        found["Step"] = {**FIELDS["Step"], "data": self.data}
        if self.matrix:
            found["Matrix"] = dict.fromkeys(self.matrix, ANY)
        return found


@functools.lru_cache(maxsize=256)
def checking(declarations: Declarations) -> cel.Env:
    """An environment that knows the types of everything, to check expressions with."""
    types = {
        "resource": _message("Resource"),
        "params": _message("Params"),
        "context": _MAP,
        "run": _message("Run"),
        "steps": cel.Type.Map(cel.Type.STRING, _message("Step")),
    }
    if declarations.matrix:
        types["matrix"] = _message("Matrix")
    return _environment(types, _pool(declarations.fields()))


@functools.cache
def evaluating() -> cel.Env:
    """The one that expressions are evaluated in: everything is a map, whichever pipeline it is of."""
    return _environment(dict.fromkeys(VARIABLES, _MAP), None)


def _message(name: str) -> cel.Type:
    return cel.Type(f"{_PACKAGE}.{name}")


def _environment(types: Mapping[str, cel.Type], pool: descriptor_pool.DescriptorPool | None) -> cel.Env:
    return cel.NewEnv(
        pool,
        config=cel.NewEnvConfigFromYaml(_WITHOUT_ARITHMETIC),
        variables=types,
        extensions=[ext_optional.ExtOptional()],
        functions=[_operator(*each) for each in _OPERATORS],
    )


def _pool(types: Mapping[str, Mapping[str, str]]) -> descriptor_pool.DescriptorPool:
    """The types as messages."""
    file = descriptor_pb2.FileDescriptorProto(name="conveyor/declared.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.extend(["google/protobuf/struct.proto", "google/protobuf/timestamp.proto"])
    for name, fields in types.items():
        message = file.message_type.add(name=name)
        # Names that differ in case or underscores only would be one in JSON, which nobody sees.
        message.options.deprecated_legacy_json_field_conflicts = True
        for number, (key, kind) in enumerate(fields.items(), start=1):
            field = message.field.add(name=key, number=number, label=_FIELD.LABEL_OPTIONAL)
            if kind in _KINDS:
                field.type = _KINDS[kind]
            else:
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".google.protobuf.{kind}"
    pool = descriptor_pool.DescriptorPool()
    for known in (struct_pb2.DESCRIPTOR, timestamp_pb2.DESCRIPTOR):
        pool.AddSerializedFile(known.serialized_pb)
    pool.Add(file)
    return pool


# Numbers of JSON are doubles, those that are written in expressions whole. CEL compares the two, but does not count
# with both; here it does, as doubles. CEL wants the whole function declared for that.

_Overloads = list[tuple[str, cel.Type, cel.Type, cel.Type]]


def _same(prefix: str, *types: tuple[str, cel.Type]) -> _Overloads:
    return [(f"{prefix}_{name}", kind, kind, kind) for name, kind in types]


_INT, _UINT, _DOUBLE = (
    ("int64", cel.Type.INT),
    ("uint64", cel.Type.UINT),
    ("double", cel.Type.DOUBLE),
)
_ANY_LIST = cel.Type.List(cel.Type.DYN)
_STAMP, _SPAN = cel.Type.TIMESTAMP, cel.Type.DURATION


def _divide(a: float, b: float) -> float:
    if b:
        return a / b
    return float("nan") if not a or a != a else float("inf") if a > 0 else float("-inf")


_OPERATORS = [
    (
        "_+_",
        "add",
        [
            *_same(
                "add",
                _INT,
                _UINT,
                _DOUBLE,
                ("string", cel.Type.STRING),
                ("bytes", cel.Type.BYTES),
                ("list", _ANY_LIST),
                ("duration_duration", _SPAN),
            ),
            ("add_timestamp_duration", _STAMP, _STAMP, _SPAN),
            ("add_duration_timestamp", _STAMP, _SPAN, _STAMP),
        ],
        lambda a, b: float(a) + float(b),
    ),
    (
        "_-_",
        "subtract",
        [
            *_same("subtract", _INT, _UINT, _DOUBLE, ("duration_duration", _SPAN)),
            ("subtract_timestamp_timestamp", _SPAN, _STAMP, _STAMP),
            ("subtract_timestamp_duration", _STAMP, _STAMP, _SPAN),
        ],
        lambda a, b: float(a) - float(b),
    ),
    ("_*_", "multiply", _same("multiply", _INT, _UINT, _DOUBLE), lambda a, b: float(a) * float(b)),
    ("_/_", "divide", _same("divide", _INT, _UINT, _DOUBLE), lambda a, b: _divide(float(a), float(b))),
]

_WITHOUT_ARITHMETIC = "name: conveyor\nstdlib:\n  exclude_functions:\n" + "".join(
    f'  - name: "{name}"\n' for name, *_ in _OPERATORS
)


def _operator(name: str, prefix: str, standard: _Overloads, mixed: object) -> cel.FunctionDecl:
    overloads = [cel.Overload(each, result, [left, right]) for each, result, left, right in standard]
    double, whole = cel.Type.DOUBLE, cel.Type.INT
    for suffix, left, right in (("double_int64", double, whole), ("int64_double", whole, double)):
        overloads.append(cel.Overload(f"{prefix}_{suffix}", double, [left, right], impl=mixed))  # type: ignore[arg-type]
    return cel.FunctionDecl(name, overloads)

"""Whether a matrix can ever be expanded, as far as it shows without its expressions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from conveyor.core import limits
from conveyor.core.combinations import TooManyCombinations, check_product, combinations
from conveyor.core.errors import Violation
from conveyor.core.params import name_fault
from conveyor.core.plan import EXPRESSION_MARK
from conveyor.v1 import errors_pb2, pipeline_pb2


def check_matrix(matrix: pipeline_pb2.Matrix, path: str) -> Iterator[Violation]:
    """What is wrong with the form of a matrix. Its free-form values are valid JSON."""
    if not matrix.axes and not matrix.include:
        yield Violation(path, "has neither axes nor combinations to include")
    faults = [
        *_axes(matrix, f"{path}.axes"),
        *_combinations(matrix.include, f"{path}.include"),
        *_combinations(matrix.exclude, f"{path}.exclude"),
    ]
    yield from faults
    for i, each in enumerate(matrix.exclude):
        for name in each.fields:
            if name not in matrix.axes:
                known = ", ".join(sorted(matrix.axes)) or "none"
                text = f"the matrix has no such axis; it has {known}"
                yield Violation(f"{path}.exclude[{i}].{name[:64]}", text)
    if matrix.max_parallel > limits.MATRIX_INSTANCES:
        yield Violation(f"{path}.max_parallel", f"must be from 0 to {limits.MATRIX_INSTANCES}")
    if not faults:
        yield from _size(matrix, path)


def _axes(matrix: pipeline_pb2.Matrix, path: str) -> Iterator[Violation]:
    for name in sorted(matrix.axes):
        value = matrix.axes[name]
        if fault := name_fault(name):
            yield Violation(f"{path}.{name[:64]}", f"is no name of an axis, which {fault}")
        elif not value.HasField("list_value") and not _is_marked(value.string_value):
            yield Violation(f"{path}.{name}", "must be a list, or an expression in ${{ }} that yields one")


def _combinations(given: Iterable[Struct], path: str) -> Iterator[Violation]:
    for i, each in enumerate(given):
        if not each.fields:
            yield Violation(f"{path}[{i}]", "is empty")
        for name in each.fields:
            if fault := name_fault(name):
                yield Violation(f"{path}[{i}].{name[:64]}", f"is no name of an axis, which {fault}")


def _size(matrix: pipeline_pb2.Matrix, path: str) -> Iterator[Violation]:
    """Whether what is written out is too much; expressions may yield any number, but then at least one."""
    axes = {name: value.list_value.values for name, value in matrix.axes.items()}
    literal = not _is_marked(*matrix.axes.values(), *matrix.include, *matrix.exclude)
    try:
        check_product({name: values for name, values in axes.items() if not _is_marked(matrix.axes[name].string_value)})
        if len(matrix.include) > limits.MATRIX_INSTANCES:
            raise TooManyCombinations(f"comes to {len(matrix.include)} instances; at most {limits.MATRIX_INSTANCES}")
        if len(matrix.exclude) > limits.MATRIX_PRODUCT:
            raise TooManyCombinations(f"has {len(matrix.exclude)} excludes; at most {limits.MATRIX_PRODUCT}")
        if literal:
            found = combinations(axes, matrix.include, matrix.exclude)
            if (size := sum(each.ByteSize() for each in found)) > limits.MATRIX_BYTES:
                said = f"the values of its instances take {size} bytes; at most {limits.MATRIX_BYTES}"
                yield Violation(path, said, errors_pb2.ERROR_REASON_TOO_LARGE)
    except TooManyCombinations as error:
        yield Violation(path, str(error), errors_pb2.ERROR_REASON_TOO_LARGE)


def _is_marked(*given: str | Value | ListValue | Struct) -> bool:
    """Whether there is an expression in any of them."""
    return any(
        EXPRESSION_MARK in (each.encode() if isinstance(each, str) else each.SerializeToString()) for each in given
    )

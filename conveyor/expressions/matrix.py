"""The axes of a matrix, and what is added and left out: values with expressions in them, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.struct_pb2 import Struct

from conveyor.core import limits
from conveyor.core.combinations import TooManyCombinations, combinations
from conveyor.expressions.errors import NoValue, TooLarge
from conveyor.expressions.expression import Expression, compile_expression
from conveyor.expressions.layout import Layout
from conveyor.expressions.template import Given
from conveyor.v1 import pipeline_pb2

ROOT = "matrix"


def as_struct(matrix: pipeline_pb2.Matrix) -> Struct:
    """All values of a matrix in one, with the keys that they have in the pipeline."""
    struct = Struct()
    axes = struct.fields["axes"].struct_value
    for name, value in matrix.axes.items():
        axes.fields[name].CopyFrom(value)
    for key, given in (("include", matrix.include), ("exclude", matrix.exclude)):
        values = struct.fields[key].list_value.values
        for each in given:
            values.add().struct_value.CopyFrom(each)
    return struct


def names(matrix: pipeline_pb2.Matrix) -> set[str]:
    """What expressions may find in `matrix`."""
    return set(matrix.axes).union(*(each.fields for each in matrix.include))


@dataclass(frozen=True, slots=True)
class MatrixCode:
    """The compiled expressions of a matrix."""

    source: Struct
    layout: Layout

    @classmethod
    def of(cls, matrix: pipeline_pb2.Matrix) -> MatrixCode:
        """Raises NotAnExpression, which registration rules out."""
        source = as_struct(matrix)
        return cls(source, Layout.of(source, compile_expression, ROOT, limits.MATRIX_BYTES))

    def expressions(self) -> list[Expression]:
        """All of them."""
        return self.layout.expressions()

    def instances(self, given: Given) -> Sequence[bytes]:
        """The values of each instance, a serialized Struct. Raises NoValue."""
        made = self.source
        if self.layout.templates:
            made = Struct.FromString(self.layout.render(given))
        return serialized(made)


def serialized(made: Struct) -> list[bytes]:
    """The values of each instance of a matrix whose expressions are evaluated. Raises NoValue, TooLarge."""
    axes = made.fields["axes"].struct_value.fields
    for name, value in axes.items():
        if value.WhichOneof("kind") != "list_value":
            raise NoValue(f"{ROOT}.axes.{name}: it is no list")
    include, exclude = (made.fields[key].list_value.values for key in ("include", "exclude"))
    try:
        found = combinations(
            {name: value.list_value.values for name, value in axes.items()},
            [each.struct_value for each in include],
            [each.struct_value for each in exclude],
        )
    except TooManyCombinations as error:
        raise TooLarge(f"{ROOT}: it {error}") from None
    data = [each.SerializeToString(deterministic=True) for each in found]
    if (size := sum(map(len, data))) > limits.MATRIX_BYTES:
        raise TooLarge(f"{ROOT}: the values of its instances take {size} bytes; at most {limits.MATRIX_BYTES}")
    return data

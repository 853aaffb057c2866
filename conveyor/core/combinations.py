"""The combinations of a matrix: which there are, and in which order. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

from conveyor.core import limits

Axes = Mapping[str, Sequence[Value]]


class TooManyCombinations(Exception):
    """A matrix has more combinations than may be; the message says how many."""


def combinations(axes: Axes, include: Sequence[Struct], exclude: Iterable[Struct]) -> list[Struct]:
    """Those of the axes, in the order of their names, the last varying fastest; then those that are added, as written.

    One that has all values of one of `exclude` is left out; those that are added always stay. Raises
    TooManyCombinations.
    """
    names = sorted(axes)
    check_product(axes)
    left_out = [{name: _packed(value) for name, value in each.fields.items()} for each in exclude]
    packed = {name: [_packed(value) for value in axes[name]] for name in names}
    found: list[Struct] = []
    for places in itertools.product(*(range(len(axes[name])) for name in names)) if names else ():
        chosen = dict(zip(names, places, strict=True))
        have = {name: packed[name][place] for name, place in chosen.items()}
        if any(each.items() <= have.items() for each in left_out):
            continue
        made = Struct()
        for name, place in chosen.items():
            made.fields[name].CopyFrom(axes[name][place])
        found.append(made)
    found.extend(include)
    if len(found) > limits.MATRIX_INSTANCES:
        raise TooManyCombinations(f"comes to {len(found)} instances; at most {limits.MATRIX_INSTANCES}")
    return found


def check_product(axes: Axes) -> None:
    """Whether the axes are small enough to be gone through. Raises TooManyCombinations."""
    product = math.prod(len(values) for values in axes.values())
    if product > limits.MATRIX_PRODUCT:
        said = f"comes to {product} combinations before its excludes"
        raise TooManyCombinations(f"{said}; at most {limits.MATRIX_PRODUCT}")


def _packed(value: Message) -> bytes:
    """The same for the same value."""
    return value.SerializeToString(deterministic=True)

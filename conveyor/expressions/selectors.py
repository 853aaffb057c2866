"""Label selectors with expressions in their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from conveyor.core import limits
from conveyor.expressions.errors import NoValue, TooLarge
from conveyor.expressions.template import OPEN, Given, Template, render_text
from conveyor.v1 import pipeline_pb2

Place = tuple[str | int, ...]
"""The field of a selector, the key or index in it, and the index of the value."""


def selector_texts(selector: pipeline_pb2.LabelSelector) -> Iterator[tuple[Place, str]]:
    """All values with an expression in them, with their places."""
    for key, value in selector.match_labels.items():
        if OPEN in value:
            yield ("match_labels", key), value
    for i, term in enumerate(selector.match_expressions):
        for j, value in enumerate(term.values):
            if OPEN in value:
                yield ("match_expressions", i, j), value


def spell_place(place: Place) -> str:
    """A place as a path."""
    field, at, *rest = place
    if not rest:
        return f'worker_selector.{field}["{at}"]'
    return f"worker_selector.{field}[{at}].values[{rest[0]}]"


def render_selector(
    source: pipeline_pb2.LabelSelector, templates: Iterable[tuple[Place, Template]], given: Given
) -> pipeline_pb2.LabelSelector:
    """The selector with what its texts come to. Raises NoValue whose message begins with the path."""
    made = pipeline_pb2.LabelSelector()
    made.CopyFrom(source)
    for place, template in templates:
        try:
            value = render_text(template, given)
            if (size := len(value.encode())) > limits.LABEL_VALUE_BYTES:
                raise TooLarge(f"has {size} bytes; a label has at most {limits.LABEL_VALUE_BYTES}")
        except NoValue as error:
            raise type(error)(f"{spell_place(place)}: {error}") from None
        if place[0] == "match_labels":
            made.match_labels[str(place[1])] = value
        else:
            made.match_expressions[int(place[1])].values[int(place[2])] = value
    if (size := made.ByteSize()) > limits.SELECTOR_BYTES:
        raise TooLarge(f"worker_selector takes {size} bytes; at most {limits.SELECTOR_BYTES}")
    return made

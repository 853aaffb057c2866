"""Which workers may take a step: terms about their labels, with the meaning that they have in Kubernetes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from conveyor.v1 import pipeline_pb2

_IN = pipeline_pb2.LABEL_OPERATOR_IN
_NOT_IN = pipeline_pb2.LABEL_OPERATOR_NOT_IN
_EXISTS = pipeline_pb2.LABEL_OPERATOR_EXISTS

_VALUES_SPELLED = 8
_KINDS_SPELLED = 5
_SPELLED_CHARS = 320
"""More of a selector, or of what workers say, does not help people."""


class Term(NamedTuple):
    """One condition on a label."""

    key: str
    operator: pipeline_pb2.LabelOperator.ValueType
    values: frozenset[str]

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a worker with these labels fulfils it. A label that is not there has none of the values."""
        value = labels.get(self.key)
        if self.operator == _IN:
            return value in self.values
        if self.operator == _NOT_IN:
            return value not in self.values
        return (value is not None) == (self.operator == _EXISTS)


Selector = frozenset[Term]
"""All of them must hold. Those that say the same are equal, however they were written."""

ANY: Selector = frozenset()
"""Every worker fulfils it."""


def compile_selector(selector: pipeline_pb2.LabelSelector) -> Selector:
    """The terms of a selector whose expressions were evaluated."""
    terms = [Term(key, _IN, frozenset((value,))) for key, value in selector.match_labels.items()]
    terms += [Term(each.key, each.operator, frozenset(each.values)) for each in selector.match_expressions]
    return frozenset(terms)


def fulfils(labels: Mapping[str, str], selector: Selector) -> bool:
    """Whether a worker with these labels may take the step."""
    return all(term.holds(labels) for term in selector)


def spell(selector: Selector) -> str:
    """The terms as people write them: os=arm64, tier in (a, b), !spot."""
    return _cut(", ".join(sorted(_spell_term(term) for term in selector)))


def spell_connected(selector: Selector, workers: Iterable[Mapping[str, str]]) -> str:
    """What workers with these labels have to do with the selector: 3 connected: 2 with os=amd64; 1 without os."""
    keys = sorted({term.key for term in selector})
    kinds = Counter(", ".join(_spell_label(key, labels.get(key)) for key in keys) for labels in workers)
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) == 1:
        return f"{kinds.total()} connected: {_cut(ordered[0][0])}"
    said = [f"{count} with {_cut(kind)}" for kind, count in ordered[:_KINDS_SPELLED]]
    if others := sum(count for _, count in ordered[_KINDS_SPELLED:]):
        said.append(f"{others} others")
    return f"{kinds.total()} connected: {'; '.join(said)}"


def _spell_term(term: Term) -> str:
    if term.operator == _IN and len(term.values) == 1:
        return f"{term.key}={next(iter(term.values))}"
    if term.operator == _NOT_IN and len(term.values) == 1:
        return f"{term.key}!={next(iter(term.values))}"
    if term.operator not in (_IN, _NOT_IN):
        return term.key if term.operator == _EXISTS else f"!{term.key}"
    values = sorted(term.values)
    more = ", …" if len(values) > _VALUES_SPELLED else ""
    word = "in" if term.operator == _IN else "notin"
    return f"{term.key} {word} ({', '.join(values[:_VALUES_SPELLED])}{more})"


def _spell_label(key: str, value: str | None) -> str:
    return f"no {key}" if value is None else f"{key}={value}"


def _cut(text: str) -> str:
    return text if len(text) <= _SPELLED_CHARS else text[: _SPELLED_CHARS - 1] + "…"

"""The rules that a step's worker_selector must keep: those of Kubernetes, and the limits of labels."""

from __future__ import annotations

from typing import Any

from conveyor.api.checks import Problems
from conveyor.core import limits
from conveyor.core.plan import EXPRESSION_MARK
from conveyor.v1 import pipeline_pb2

_MARK = EXPRESSION_MARK.decode()
_NAMES = {number: name.removeprefix("LABEL_OPERATOR_") for name, number in pipeline_pb2.LabelOperator.items()}
_TAKES_VALUES = frozenset({pipeline_pb2.LABEL_OPERATOR_IN, pipeline_pb2.LABEL_OPERATOR_NOT_IN})


def label_selector(problems: Problems, path: str, step: Any, key: str) -> None:
    """The selector of a step, or nothing."""
    if not step.HasField(key):
        return
    selector: pipeline_pb2.LabelSelector = getattr(step, key)
    if len(selector.match_labels) > limits.LABELS:
        problems.too_large(f"{path}.match_labels", _count(len(selector.match_labels)))
        return
    if len(selector.match_expressions) > limits.LABELS:
        problems.too_large(f"{path}.match_expressions", _count(len(selector.match_expressions)))
        return
    if (size := selector.ByteSize()) > limits.SELECTOR_BYTES:
        problems.too_large(path, f"takes {size} bytes; at most {limits.SELECTOR_BYTES}")
    for label, value in selector.match_labels.items():
        where = f'{path}.match_labels["{label[:64]}"]'
        _label(problems, where if label else f"{path}.match_labels", label, "has a key that")
        _value(problems, where, value)
    for i, term in enumerate(selector.match_expressions):
        _term(problems, f"{path}.match_expressions[{i}]", term)


def _term(problems: Problems, path: str, term: pipeline_pb2.LabelRequirement) -> None:
    _label(problems, f"{path}.key", term.key, "")
    if not term.operator:
        problems.add(f"{path}.operator", "is missing: IN, NOT_IN, EXISTS or DOES_NOT_EXIST")
        return
    name = _NAMES.get(term.operator, "")
    if term.operator not in _TAKES_VALUES:
        if term.values and name:
            problems.add(f"{path}.values", f"must be empty with {name}")
        return
    if not term.values:
        problems.add(f"{path}.values", f"is empty; {name} needs at least one")
    if len(term.values) > limits.LABELS:
        problems.too_large(f"{path}.values", _count(len(term.values)))
        return
    for j, value in enumerate(term.values):
        _value(problems, f"{path}.values[{j}]", value)


def _label(problems: Problems, path: str, label: str, subject: str) -> None:
    """`subject` is what the descriptions begin with, when the path is not the key's own."""
    said = f"{subject} " if subject else ""
    if not label:
        problems.add(path, f"{said}is empty")
    elif _MARK in label:
        problems.add(path, f"{said}has an expression; they have their place in values")
    elif (size := len(label.encode())) > limits.LABEL_KEY_BYTES:
        problems.too_large(path, f"{said}has {size} bytes; at most {limits.LABEL_KEY_BYTES}")


def _value(problems: Problems, path: str, value: str) -> None:
    """Of one with expressions, what comes of them is checked when the step is judged."""
    if _MARK in value:
        return
    if (size := len(value.encode())) > limits.LABEL_VALUE_BYTES:
        problems.too_large(path, f"has a value of {size} bytes; at most {limits.LABEL_VALUE_BYTES}")


def _count(count: int) -> str:
    return f"has {count} entries; at most {limits.LABELS}"

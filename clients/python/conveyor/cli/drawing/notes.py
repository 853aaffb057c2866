"""What a drawing says of a step besides its name and needs."""

from collections.abc import Iterator

from google.protobuf.struct_pb2 import Value

from conveyor.cli.durations import show_duration
from conveyor.cli.encode import enum_name
from conveyor.cli.terminal import one_line
from conveyor.v1.pipeline_pb2 import Gate, LabelOperator, LabelRequirement, LabelSelector, Lock, Matrix, Step

_ATTEMPTS = 3


def doing(step: Step) -> str:
    """Who or what does the work of a step."""
    action: str | None = step.WhichOneof("action")
    if action is None:
        return ""
    if action == "runs":
        return f"→ pipeline {one_line(step.runs.pipeline)}"
    return one_line(step.driver) if action == "driver" else action


def notes(step: Step) -> list[str]:
    """What is out of the ordinary about when and how often a step runs."""
    found: list[str] = []
    rule = enum_name(step, "trigger_rule")
    if rule not in {"", "ALL_SUCCESS"}:
        found.append(rule)
    if step.when:
        found.append(f"when {one_line(step.when)}")
    if step.HasField("worker_selector"):
        found.append(f"on {selector_note(step.worker_selector) or 'any worker'}")
    if step.HasField("matrix"):
        found.append(f"matrix {matrix_note(step.matrix)}".rstrip())
    if step.HasField("lock"):
        found.append(lock_note(step.lock))
    if step.allow_failure:
        found.append("may fail")
    if step.HasField("retry"):
        found.append(f"{step.retry.max_attempts if step.retry.HasField('max_attempts') else _ATTEMPTS} attempts")
    if step.HasField("gate"):
        found += _gate(step.gate)
    if step.HasField("timeout"):
        found.append(f"timeout {show_duration(step.timeout.ToTimedelta().total_seconds())}")
    return found


def selector_note(selector: LabelSelector) -> str:
    """Which workers may take it, as one writes selectors for Kubernetes; empty for any."""
    terms = [f"{key}={selector.match_labels[key]}" for key in sorted(selector.match_labels)]
    terms += map(_term, selector.match_expressions)
    return one_line(", ".join(terms))


def _term(term: LabelRequirement) -> str:
    if term.operator == LabelOperator.LABEL_OPERATOR_EXISTS:
        return term.key
    if term.operator == LabelOperator.LABEL_OPERATOR_DOES_NOT_EXIST:
        return f"!{term.key}"
    word = "in" if term.operator == LabelOperator.LABEL_OPERATOR_IN else "notin"
    return f"{term.key} {word} ({', '.join(term.values)})"


def lock_note(lock: Lock) -> str:
    """A lock, and how many may hold it."""
    limit = lock.limit if lock.HasField("limit") else 1
    return f"lock {one_line(lock.key)}" + (f" ({limit} at a time)" if limit > 1 else "")


def _gate(gate: Gate) -> Iterator[str]:
    if gate.optional:
        yield "optional"
    if gate.approvals > 1:
        yield f"{gate.approvals} approvals"
    if gate.HasField("timeout"):
        default = enum_name(gate, "default_decision") or "REJECTED"
        yield f"{default} after {show_duration(gate.timeout.ToTimedelta().total_seconds())}"


def matrix_note(matrix: Matrix) -> str:
    """The axes of a matrix with their sizes, how many combinations are added and left out, how many run at a time."""
    axes = " × ".join(f"{name}[{_size(matrix.axes[name])}]" for name in sorted(matrix.axes))
    parts = [axes] if axes else []
    if matrix.include:
        parts.append(f"+{len(matrix.include)}")
    if matrix.exclude:
        parts.append(f"-{len(matrix.exclude)}")
    if matrix.max_parallel:
        parts.append(f"({matrix.max_parallel} at a time)")
    return " ".join(parts)


def _size(axis: Value) -> str:
    """How many values an axis has, or the expression that will say so."""
    if axis.HasField("list_value"):
        return str(len(axis.list_value.values))
    return one_line(axis.string_value)

"""Draws a pipeline as lines: a layer below the other, the steps of a layer in a bracket."""

from collections.abc import Iterator, Mapping, Sequence

from conveyor.cli.drawing.layers import Plan
from conveyor.cli.drawing.notes import doing, lock_note, notes
from conveyor.cli.encode import enum_name
from conveyor.cli.terminal import cut, one_line, padded, width
from conveyor.v1.pipeline_pb2 import Step

# So many needs are written out even when they are a whole layer.
_FEW = 3


def draw_text(plan: Plan, columns: int = 0) -> str:
    """The drawing, not wider than so many columns, if any are given."""
    finals = plan.pipeline.finally_steps
    names = [str(index + 1) for index in range(len(plan.layers))] + ["finally"] * bool(finals)
    size = max(map(len, names), default=0)
    whole = {frozenset(step.id for step in layer): name for name, layer in zip(names, plan.layers, strict=False)}
    rows: list[tuple[str, ...]] = []
    for name, layer in zip(names, [*plan.layers, finals] if finals else plan.layers, strict=True):
        for index, step in enumerate(layer):
            bracket = f"{name if not index else '':>{size}} {_bracket(index, len(layer))} {one_line(step.id)}"
            rows.append((bracket, doing(step), _needs(plan, step, whole), ", ".join(notes(step))))
    return "\n".join([_head(plan), "", *_aligned(rows, columns)])


def _head(plan: Plan) -> str:
    pipeline = plan.pipeline
    parts = [f"pipeline/{one_line(pipeline.name)}: {_count(len(pipeline.steps), 'step')}"]
    parts.append("one after another" if plan.is_list else f"in {_count(len(plan.layers), 'layer')}")
    lock = f", {lock_note(pipeline.lock)}" if pipeline.HasField("lock") else ""
    return f"{' '.join(parts)}, {enum_name(pipeline, 'failure_policy') or 'FAIL_FAST'}{lock}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _bracket(index: int, size: int) -> str:
    if size == 1:
        return "──"
    return "┬─" if not index else "└─" if index == size - 1 else "├─"


def _needs(plan: Plan, step: Step, whole: Mapping[frozenset[str], str]) -> str:
    """What a step waits for. In a list, and of finally steps, that is plain."""
    needs = plan.needs.get(step.id, [])
    if plan.is_list or not needs:
        return ""
    layer = whole.get(frozenset(needs)) if len(needs) > _FEW else None
    return f"← all of {layer}" if layer else f"← {', '.join(needs)}"


def _aligned(rows: Sequence[tuple[str, ...]], columns: int) -> Iterator[str]:
    used = [index for index in range(len(rows[0])) if any(row[index] for row in rows)] if rows else []
    sizes = [max(width(row[index]) for row in rows) for index in used]
    for row in rows:
        line = "  ".join(padded(row[index], size) for index, size in zip(used, sizes, strict=True)).rstrip()
        yield cut(line, columns) if columns else line

"""Draws a pipeline for Graphviz."""

from collections.abc import Iterator

from conveyor.cli.drawing.layers import Plan
from conveyor.cli.drawing.notes import doing, notes
from conveyor.v1.pipeline_pb2 import Step

# No step can have this id.
_ALL_ENDED = "(all ended)"


def draw_dot(plan: Plan) -> str:
    """The drawing in the language DOT."""
    return "\n".join([f"digraph {_quoted(plan.pipeline.name)} {{", *_body(plan), "}"])


def _body(plan: Plan) -> Iterator[str]:
    yield "  rankdir=LR"
    yield '  node [shape=box, style="rounded"]'
    for step in plan.pipeline.steps:
        yield f"  {_node(step)}"
    for step_id, needs in plan.needs.items():
        for need in needs:
            yield f"  {_quoted(need)} -> {_quoted(step_id)}"
    if plan.pipeline.finally_steps:
        yield from _finally(plan)


def _finally(plan: Plan) -> Iterator[str]:
    yield f'  {_quoted(_ALL_ENDED)} [shape=point, label=""]'
    yield "  subgraph cluster_finally {"
    yield '    label="finally"'
    yield '    style="dashed"'
    for step in plan.pipeline.finally_steps:
        yield f"    {_node(step)}"
    yield "  }"
    for leaf in plan.leaves:
        yield f"  {_quoted(leaf)} -> {_quoted(_ALL_ENDED)} [style=dashed, arrowhead=none]"
    for step in plan.pipeline.finally_steps:
        yield f"  {_quoted(_ALL_ENDED)} -> {_quoted(step.id)} [style=dashed]"


def _node(step: Step) -> str:
    lines = [step.id, doing(step), *notes(step)]
    label = "\\n".join(_escaped(line) for line in lines if line)
    style = ', style="rounded,dashed"' if step.allow_failure else ""
    shape = ", shape=hexagon" if step.HasField("gate") else ""
    return f'{_quoted(step.id)} [label="{label}"{shape}{style}]'


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')

"""Draws a pipeline for Mermaid, which many pages of Markdown show."""

from collections.abc import Iterator

from conveyor.cli.drawing.layers import Plan
from conveyor.cli.drawing.notes import doing, notes
from conveyor.v1.pipeline_pb2 import Step

# Within quotes, these would end the text or be taken for markup.
_ENTITIES = {ord(char): f"#{ord(char)};" for char in '#"<>&`\\'}


def draw_mermaid(plan: Plan) -> str:
    """The drawing as a flowchart. Its nodes are numbered, because some names of steps are words of the language."""
    return "\n".join(["flowchart LR", *(f"  {line}" for line in _body(plan))])


def _body(plan: Plan) -> Iterator[str]:
    steps = plan.pipeline.steps
    finals = plan.pipeline.finally_steps
    nodes = {step.id: f"s{index + 1}" for index, step in enumerate(steps)}
    nodes |= {step.id: f"f{index + 1}" for index, step in enumerate(finals)}
    for step in steps:
        yield _node(nodes, step)
    for step_id, needs in plan.needs.items():
        for need in needs:
            yield f"{nodes[need]} --> {nodes[step_id]}"
    if finals:
        yield 'ended(("all ended"))'
        yield 'subgraph final ["finally"]'
        for step in finals:
            yield f"  {_node(nodes, step)}"
        yield "end"
        for leaf in plan.leaves:
            yield f"{nodes[leaf]} -.- ended"
        for step in finals:
            yield f"ended -.-> {nodes[step.id]}"
    allowed = [nodes[step.id] for step in (*steps, *finals) if step.allow_failure]
    if allowed:
        yield "classDef mayFail stroke-dasharray: 5 5"
        yield f"class {','.join(allowed)} mayFail"


def _node(nodes: dict[str, str], step: Step) -> str:
    lines = [step.id, doing(step), *notes(step)]
    label = "<br/>".join(line.translate(_ENTITIES) for line in lines if line)
    left, right = ("{{", "}}") if step.HasField("gate") else ("[", "]")
    return f'{nodes[step.id]}{left}"{label}"{right}'

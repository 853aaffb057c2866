"""Whether the steps of a pipeline can ever run: order, needs, and the way round a cycle. Pure and linear."""

from __future__ import annotations

from collections.abc import Iterator

from conveyor.core.errors import Violation
from conveyor.v1 import errors_pb2, pipeline_pb2

_CYCLE_SHOWN = 10


def check_graph(pipeline: pipeline_pb2.Pipeline, path: str = "pipeline") -> list[Violation]:
    """What is wrong with the order of the steps; `path` is where the pipeline is in the request.

    Looks at ids, needs and trigger rules only. Expects no more steps than the limit.
    """
    violations = list(_duplicates(pipeline, path))
    for i, step in enumerate(pipeline.finally_steps):
        where = f"{path}.finally[{i}]"
        if step.needs:
            violations.append(Violation(f"{where}.needs", "a finally step takes no needs: it waits for all others"))
        if step.trigger_rule:
            violations.append(
                Violation(f"{where}.trigger_rule", "a finally step takes no trigger rule: it always runs")
            )
    if pipeline.order != pipeline_pb2.ORDER_GRAPH:
        violations.extend(
            Violation(f"{path}.steps[{i}].needs", "only with order GRAPH; in order LIST steps run as written")
            for i, step in enumerate(pipeline.steps)
            if step.needs
        )
        return violations
    unknown = list(_unknown_needs(pipeline, path))
    violations.extend(unknown)
    cycle = find_cycle(pipeline)
    if cycle:
        text = f"the steps need each other in a circle: {_chain(cycle)}"
        violations.append(Violation(f"{path}.steps", text, errors_pb2.ERROR_REASON_CYCLE))
    return violations


def find_cycle(pipeline: pipeline_pb2.Pipeline) -> list[str]:
    """The ids of steps each of which needs the next, and the last the first; empty when there is no such circle.

    Unknown needs and repeated ones are passed over; of steps with one id the last counts.
    """
    needs = {step.id: list(dict.fromkeys(step.needs)) for step in pipeline.steps}
    done: set[str] = set()
    for start in needs:
        if start in done:
            continue
        # Depth first without recursion: `way` holds the steps from the start down to the current one.
        way: dict[str, Iterator[str]] = {start: iter(needs[start])}
        while way:
            current, rest = next(reversed(way.items()))
            need = next(rest, None)
            if need is None:
                done.add(current)
                way.popitem()
            elif need in way:
                ids = list(way)
                return ids[ids.index(need) :]
            elif need in needs and need not in done:
                way[need] = iter(needs[need])
    return []


def _duplicates(pipeline: pipeline_pb2.Pipeline, path: str) -> Iterator[Violation]:
    first: dict[str, str] = {}
    for name, steps in (("steps", pipeline.steps), ("finally", pipeline.finally_steps)):
        for i, step in enumerate(steps):
            where = f"{path}.{name}[{i}]"
            if step.id in first:
                yield Violation(f"{where}.id", f"{step.id} is the id of {first[step.id]} already")
            elif step.id:
                first[step.id] = where


def _unknown_needs(pipeline: pipeline_pb2.Pipeline, path: str) -> Iterator[Violation]:
    known = {step.id for step in pipeline.steps}
    final = {step.id for step in pipeline.finally_steps}
    for i, step in enumerate(pipeline.steps):
        for j, need in enumerate(step.needs):
            if need not in known:
                text = f"{need} is a finally step, which starts last" if need in final else f"there is no step {need}"
                yield Violation(f"{path}.steps[{i}].needs[{j}]", text)


def _chain(cycle: list[str]) -> str:
    shown = cycle if len(cycle) <= _CYCLE_SHOWN else [*cycle[: _CYCLE_SHOWN - 1], f"({len(cycle) - 9} more)"]
    return " -> ".join([*shown, cycle[0]])

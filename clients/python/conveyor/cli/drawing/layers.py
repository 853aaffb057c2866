"""The steps of a pipeline in layers: each in the first one behind all that it needs."""

from dataclasses import dataclass
from itertools import pairwise

from conveyor.cli.failures import CliError
from conveyor.v1.pipeline_pb2 import Order, Pipeline, Step


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline as it is drawn."""

    pipeline: Pipeline
    layers: list[list[Step]]
    """Without the finally steps, each layer in the order of the pipeline."""
    needs: dict[str, list[str]]
    """Of each step but the finally steps what it waits for, in a list the step before it."""

    @property
    def is_list(self) -> bool:
        """Whether the steps come one after another."""
        return self.pipeline.order != Order.ORDER_GRAPH

    @property
    def leaves(self) -> list[str]:
        """The steps that no other one needs."""
        needed = {need for needs in self.needs.values() for need in needs}
        return [step.id for step in self.pipeline.steps if step.id not in needed]


def plan(pipeline: Pipeline) -> Plan:
    """The layers of a pipeline. CliError when it has none: it may come from a file that no server has seen."""
    steps = list(pipeline.steps)
    ids = [step.id for step in (*steps, *pipeline.finally_steps)]
    for index, step_id in enumerate(ids):
        if not step_id:
            raise _wrong(pipeline, f"step {index + 1} has no id")
        if step_id in ids[:index]:
            raise _wrong(pipeline, f"the id {step_id} stands twice")
    if pipeline.order != Order.ORDER_GRAPH:
        for step in steps:
            if step.needs:
                raise _wrong(pipeline, f"step {step.id} has needs, but the order is not GRAPH")
        chain = {step.id: [before.id] for before, step in pairwise(steps)}
        return Plan(pipeline, [[step] for step in steps], {step.id: chain.get(step.id, []) for step in steps})
    needs = {step.id: list(dict.fromkeys(step.needs)) for step in steps}
    for step_id, wanted in needs.items():
        for need in wanted:
            if need not in needs:
                raise _wrong(pipeline, f"step {step_id} needs {need}, which is not among the steps")
    depths = _depths(pipeline, needs)
    layers: list[list[Step]] = [[] for _ in range(max(depths.values(), default=-1) + 1)]
    for step in steps:
        layers[depths[step.id]].append(step)
    return Plan(pipeline, layers, needs)


def _depths(pipeline: Pipeline, needs: dict[str, list[str]]) -> dict[str, int]:
    """How many steps are before each one on the longest way to it."""
    open_needs = {step_id: len(wanted) for step_id, wanted in needs.items()}
    followers: dict[str, list[str]] = {step_id: [] for step_id in needs}
    for step_id, wanted in needs.items():
        for need in wanted:
            followers[need].append(step_id)
    depths = {step_id: 0 for step_id, count in open_needs.items() if not count}
    ready = list(depths)
    for step_id in ready:
        for follower in followers[step_id]:
            depths[follower] = max(depths.get(follower, 0), depths[step_id] + 1)
            open_needs[follower] -= 1
            if not open_needs[follower]:
                ready.append(follower)
    if len(ready) < len(needs):
        raise _wrong(pipeline, f"steps need each other: {' → '.join(_cycle(needs, set(needs) - set(ready)))}")
    return depths


def _cycle(needs: dict[str, list[str]], stuck: set[str]) -> list[str]:
    """A way from a step back to it, along the needs."""
    way = [min(stuck)]
    while way.count(way[-1]) < 2:
        way.append(next(need for need in needs[way[-1]] if need in stuck))
    return way[way.index(way[-1]) :]


def _wrong(pipeline: Pipeline, what: str) -> CliError:
    return CliError(f"pipeline/{pipeline.name} can't be drawn: {what}")

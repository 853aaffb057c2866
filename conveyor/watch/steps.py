"""The steps of a run that changed, as watchers see them: made from their records and the run's head alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from conveyor.core.matrix import instance_id
from conveyor.state.views import Instance, step_run
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, run_pb2


def step_runs(
    pipeline: pipeline_pb2.Pipeline,
    head: storage_pb2.RunHead,
    records: Sequence[storage_pb2.StepRecord],
    expanded: Collection[str] = (),
) -> Iterator[run_pb2.StepRun]:
    """Those that have these records; and all instances of the steps in `expanded`, in their order, behind the others.

    A record that makes no sense is passed over: it must not end the watches of all other runs.
    """
    steps = [*pipeline.steps, *pipeline.finally_steps]
    index = {step.id: i for i, step in enumerate(steps)}
    changed = {record.step: record for record in records}
    matrices = [changed[name] for name in expanded if name in changed]
    new = {instance_id(each.step, place) for each in matrices for place in range(len(each.instances))}
    for record in records:
        i = index.get(record.matrix_step or record.step, len(steps))
        if i >= min(len(steps), len(head.step_states), len(head.step_reasons)) or record.step in new:
            continue
        is_finally = i >= len(pipeline.steps)
        if record.matrix_step:
            # Where it stands in the head only the record of its step says.
            instance = Instance(record.step, record.matrix)
            yield step_run(head.id, steps[i], is_finally, record.state, record.reason, record, instance)
        else:
            yield step_run(head.id, steps[i], is_finally, head.step_states[i], head.step_reasons[i], record)
    for matrix in sorted(matrices, key=lambda each: each.first_instance):
        i = index.get(matrix.step, len(steps))
        at = range(matrix.first_instance, matrix.first_instance + len(matrix.instances))
        if i >= len(steps) or at.stop > min(len(head.step_states), len(head.step_reasons)):
            continue
        for place, (where, values) in enumerate(zip(at, matrix.instances, strict=True)):
            instance = Instance(instance_id(matrix.step, place), values)
            state, reason = head.step_states[where], head.step_reasons[where]
            yield step_run(
                head.id, steps[i], i >= len(pipeline.steps), state, reason, changed.get(instance.id), instance
            )

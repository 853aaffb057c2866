"""The instances of a matrix among the steps of a run: they stand behind all others, in the order of expansion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from google.protobuf.struct_pb2 import ListValue

from conveyor.core.plan import Plan
from conveyor.storage.v1 import storage_pb2


def instance_id(step: str, place: int) -> str:
    """The id of an instance: that of its step, with its place in the list of results."""
    return f"{step}[{place}]"


def grow(plan: Plan, index: int, count: int) -> Plan:
    """The plan with so many instances of a step at its end; no index moves."""
    source, first = plan.steps[index], len(plan.steps)
    places = range(first, first + count)
    added = tuple(
        replace(
            source,
            index=place,
            id=instance_id(source.id, place - first),
            needs=(),
            dependents=(),
            matrix=None,
            matrix_step=index,
        )
        for place in places
    )
    return replace(
        plan,
        steps=plan.steps + added,
        index={**plan.index, **{step.id: step.index for step in added}},
        mains=plan.mains if source.is_finally else [*plan.mains, *places],
        finals=[*plan.finals, *places] if source.is_finally else plan.finals,
        instances={**plan.instances, index: places},
    )


def is_expanded(record: storage_pb2.StepRecord | None) -> bool:
    """Whether the record is that of a step whose matrix was expanded, even to nothing."""
    return record is not None and record.first_instance > 0


def grown(plan: Plan, records: Iterable[storage_pb2.StepRecord]) -> Plan:
    """The plan with the instances of all matrices that were expanded. Raises ValueError when they don't fit."""
    expanded = sorted((record for record in records if record.instances), key=lambda record: record.first_instance)
    for record in expanded:
        if record.first_instance != len(plan.steps) or plan.steps[plan.index[record.step]].matrix is None:
            raise ValueError(f"the instances of step {record.step} have no place at {record.first_instance}")
        plan = grow(plan, plan.index[record.step], len(record.instances))
    return plan


def values_of(matrix: storage_pb2.StepRecord, place: int) -> bytes:
    """The values of an instance, a serialized Struct, by its index among the steps of the run."""
    return matrix.instances[place - matrix.first_instance]


def data_of(instances: Iterable[storage_pb2.StepRecord | None]) -> ListValue:
    """What the instances of a step resulted in: the data of each in its place, an empty map for one without."""
    found = ListValue()
    for record in instances:
        found.values.add().struct_value.MergeFromString(record.result.data if record is not None else b"")
    return found

"""Matrices in rounds: random ones, and what must be true of their steps and instances when a run has ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from conveyor.sdk import to_struct
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.run_pb2 import Run, StepReason, StepRun
from tests.faults.history import ENDED, History, Violation, run_state, step_state
from tests.faults.model import Model, ModelStep

_MOST = 4


def add_matrices(made: Pipeline, acts: dict[str, Any], conditions: Mapping[str, Any]) -> dict[str, list[int]]:
    """Give some steps a matrix, and their instances something to do; returns the lists of values, by step.

    A source of its own: it changes nothing about the rest of a round that a seed stands for.
    """
    rng = Random(made.SerializeToString(deterministic=True))
    # Data of a step with a matrix is a list, of which conditions know nothing.
    asked = {each["step"] for each in conditions.values() if each["kind"] in ("data", "perhaps")}
    lists: dict[str, list[int]] = {}
    for step in made.steps:
        if not step.driver or step.id in asked or rng.random() > 0.35:
            continue
        values = lists[step.id] = list(range(rng.randint(0, _MOST)))
        written: Any = values if rng.random() < 0.5 else f"${{{{ context.lists.{step.id} }}}}"
        step.matrix.axes["i"].CopyFrom(to_struct({"i": written}).fields["i"])
        step.matrix.max_parallel = rng.choice([0, 1, 1, 2])
        if rng.random() < 0.6:
            step.matrix.fail_fast = rng.random() < 0.5
        for i in values:
            other = {"answer": rng.choice(["ok", "fail"]), "seconds": rng.choice([0, 0.05, 1]), "lines": 1}
            acts[f"{step.id}[{i}]"] = rng.choice([acts[step.id], [other]])
    return lists


def with_instances(model: Model, run: Run) -> Model:
    """The model of a run, with the instances that its matrices came to."""
    found = {
        each.step: replace(
            model.steps[each.matrix_step], name=each.step, fans_out=False, driven=True, matrix_of=each.matrix_step
        )
        for each in run.steps
        if each.matrix_step
    }
    return replace(model, steps={**model.steps, **found})


def stopped_by_another(step: ModelStep, ended: Mapping[str, str]) -> bool:
    """Whether another instance of the same matrix failed, and stops this one."""
    if not step.matrix_of or not step.stops_others or step.allow_failure:
        return False
    others = (name for name in ended if name.startswith(f"{step.matrix_of}[") and name != step.name)
    return any(ended[name] == "FAILED" for name in others)


def matrices_fan_out(history: History) -> Iterator[Violation]:
    """3: A matrix has the instances of its list, only so many at a time, and ends with them as they ended."""
    for run in history.runs.values():
        if not run.pipeline or run_state(run.state) not in ENDED:
            continue
        lists = run.pipeline_snapshot.context.fields["lists"].struct_value.fields
        for step in run.pipeline_snapshot.steps:
            if step.HasField("matrix"):
                own = next(each for each in run.steps if each.step == step.id)
                instances = [each for each in run.steps if each.matrix_step == step.id]
                wanted = [value.number_value for value in lists[step.id].list_value.values]
                texts = [*_made(own, instances, wanted), *_at_a_time(step.id, step.matrix.max_parallel, instances)]
                if not step.allow_failure and (step.matrix.fail_fast or not step.matrix.HasField("fail_fast")):
                    texts += _stopped(instances)
                yield from (Violation(3, run.id, text) for text in texts)


def _made(own: StepRun, instances: Sequence[StepRun], wanted: Sequence[float]) -> Iterator[str]:
    state = step_state(own.state)
    if own.instances != len(instances):
        yield f"{own.step} says that it has {own.instances} instances; it has {len(instances)}"
    if not instances:
        if state == "SUCCEEDED" and wanted:
            yield f"{own.step} is SUCCEEDED without the instances of {wanted}"
        return
    if [each.step for each in instances] != [f"{own.step}[{i}]" for i in range(len(wanted))]:
        yield f"{own.step} has the instances {[each.step for each in instances]} for {wanted}"
    if [each.matrix.fields["i"].number_value for each in instances] != list(wanted):
        yield f"the instances of {own.step} are not those of {wanted}"
    states = [step_state(each.state) for each in instances]
    reasons = {StepReason.Name(each.reason).removeprefix("STEP_REASON_") for each in instances}
    expected = next((state for state in ("FAILED", "CANCELLED") if state in states), "")
    if not expected and "SKIPPED" in states and reasons - {"UNSPECIFIED", "CONDITION_FALSE", "NOT_DECIDED"}:
        expected = "CANCELLED" if "SUCCEEDED" in states else "SKIPPED"
    expected = expected or ("SUCCEEDED" if "SUCCEEDED" in states else "SKIPPED")
    if state != expected:
        yield f"{own.step} is {state}; its instances {states} make it {expected}"
    if "INSTANCE_FAIL_FAST" in reasons and "FAILED" not in states:
        yield f"instances of {own.step} were stopped, and none had failed"


def _stopped(instances: Sequence[StepRun]) -> Iterator[str]:
    """None begins after the first of them has failed."""
    ends = [each.end_time.ToNanoseconds() for each in instances if step_state(each.state) == "FAILED"]
    for each in instances:
        if ends and any(attempt.start_time.ToNanoseconds() > min(ends) for attempt in each.attempts):
            yield f"{each.step} began after another instance had failed"


def _at_a_time(name: str, most: int, instances: Sequence[StepRun]) -> Iterator[str]:
    """By the server's own stamps: an end at the same time comes first."""
    moments: list[tuple[int, int]] = []
    for each in instances:
        if not each.inherited:
            moments += [(attempt.start_time.ToNanoseconds(), 1) for attempt in each.attempts]
            moments += [(attempt.end_time.ToNanoseconds(), -1) for attempt in each.attempts]
    under_way = 0
    for _, change in sorted(moments):
        under_way += change
        if most and under_way > most:
            yield f"{under_way} instances of {name} ran at a time, of at most {most}"
            return

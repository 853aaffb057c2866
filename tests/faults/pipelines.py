"""Random pipelines, and what their drivers do in each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from random import Random
from typing import Any

from conveyor.sdk import to_struct
from conveyor.v1.pipeline_pb2 import (
    ConcurrencyPolicy,
    FailurePolicy,
    Order,
    Param,
    ParamType,
    Pipeline,
    RetryPolicy,
    Step,
    TriggerRule,
)
from tests.faults.calls import random_call
from tests.faults.conditions import random_condition, random_given, write
from tests.faults.gates import random_gate
from tests.faults.locks import random_lock, random_run_lock
from tests.faults.matrices import add_matrices
from tests.faults.selectors import choose_workers

_RULES = [
    *[TriggerRule.TRIGGER_RULE_UNSPECIFIED] * 4,
    TriggerRule.TRIGGER_RULE_ALL_SUCCESS,
    TriggerRule.TRIGGER_RULE_NONE_FAILED,
    TriggerRule.TRIGGER_RULE_ONE_FAILED,
    TriggerRule.TRIGGER_RULE_ALL_DONE,
]
_ANSWERS = [*["ok"] * 20, "fail", "fail", "fail", "refuse", "give-up", "hang", "hang"]

_POLICIES = [
    *[ConcurrencyPolicy.CONCURRENCY_POLICY_UNSPECIFIED] * 4,
    ConcurrencyPolicy.CONCURRENCY_POLICY_QUEUE,
    ConcurrencyPolicy.CONCURRENCY_POLICY_REPLACE,
]

Acts = list[dict[str, Any]]


def random_pipeline(rng: Random, name: str, drivers: Mapping[str, bool], others: Sequence[str] = ()) -> Pipeline:
    """A pipeline that ends by itself within seconds, as long as somebody drives it.

    `drivers`: whether there need be a timeout for what each has to do. `others` are pipelines that steps may run.
    """
    graph = rng.random() < 0.6
    made = Pipeline(
        name=name,
        order=Order.ORDER_GRAPH if graph else Order.ORDER_LIST,
        failure_policy=rng.choice([FailurePolicy.FAILURE_POLICY_UNSPECIFIED, FailurePolicy.FAILURE_POLICY_CONTINUE]),
    )
    acts: dict[str, Acts] = {}
    for number in range(rng.randint(2, 7) if graph else rng.randint(1, 4)):
        step, acts[f"s{number}"] = _random_step(rng, f"s{number}", drivers)
        if rng.random() < 0.15:
            step = random_gate(rng, step.id, may_be_optional=graph)
        elif others and rng.random() < 0.15:
            step = random_call(rng, step.id, others)
        elif rng.random() < 0.2:
            random_lock(rng, step)
        if graph:
            step.needs.extend(each.id for each in made.steps if rng.random() < 1.6 / (number + 1))
        step.trigger_rule = rng.choice(_RULES)
        made.steps.append(step)
    for number in range(rng.choice([0, 0, 1, 2])):
        step, acts[f"f{number}"] = _random_step(rng, f"f{number}", drivers)
        made.finally_steps.append(step)
    if rng.random() < 0.15:
        made.timeout.FromTimedelta(timedelta(seconds=rng.randint(2, 6)))
    if rng.random() < 0.15:
        random_run_lock(rng, made)
    made.finally_timeout.FromTimedelta(timedelta(seconds=rng.choice([3, 20, 20])))
    made.concurrency.policy = rng.choice(_POLICIES)
    made.params.append(Param(name="n", type=ParamType.PARAM_TYPE_NUMBER, default={"number_value": 5}))
    expressions = _add_expressions(rng, made)
    lists = add_matrices(made, acts, expressions["conditions"])
    made.context.CopyFrom(to_struct({"acts": acts, "lists": lists, **expressions}))
    return made


def _add_expressions(rng: Random, made: Pipeline) -> dict[str, dict[str, Any]]:
    """Give some steps conditions, params, and workers of their own; returns what they are, by step."""
    conditions: dict[str, Any] = {}
    given: dict[str, Any] = {}
    workers: dict[str, Any] = {}
    before: dict[str, set[str]] = {}
    for step in (*made.steps, *made.finally_steps):
        if step.id.startswith("f"):
            before[step.id] = {each.id for each in made.steps}
        elif made.order == Order.ORDER_GRAPH:
            before[step.id] = {each for need in step.needs for each in (need, *before[need])}
        else:
            before[step.id] = set(before)
        earlier = sorted(before[step.id])
        if rng.random() < 0.2:
            conditions[step.id] = random_condition(rng, earlier)
        if step.driver and rng.random() < 0.25:
            given[step.id] = random_given(rng, earlier)
        write(step, conditions.get(step.id), given.get(step.id, {}))
        if step.driver and rng.random() < 0.2 and (chosen := choose_workers(rng, step)):
            workers[step.id] = chosen
    return {"conditions": conditions, "given": given, "workers": workers}


def _random_step(rng: Random, name: str, drivers: Mapping[str, bool]) -> tuple[Step, Acts]:
    step = Step(id=name, driver=rng.choice(sorted(drivers)), allow_failure=rng.random() < 0.15)
    acts = [_random_act(rng) for _ in range(rng.randint(1, 3))]
    hangs = any(act["answer"] == "hang" for act in acts)
    timeout = rng.uniform(0.5, 1.5) if hangs else rng.uniform(3, 8)
    if hangs or drivers[step.driver] or rng.random() < 0.5:
        step.timeout.FromTimedelta(timedelta(seconds=timeout))
    if rng.random() < 0.15:
        step.queue_timeout.FromTimedelta(timedelta(seconds=rng.uniform(0.5, 5)))
    if hangs or rng.random() < 0.5:
        # The attempt that took too long and the next one meet.
        step.retry.CopyFrom(RetryPolicy(max_attempts=rng.randint(2 if hangs else 1, 4)))
        step.retry.initial_backoff.FromTimedelta(timedelta(seconds=rng.choice([0, 0, 0.05, 0.5])))
    return step, acts


def _random_act(rng: Random) -> dict[str, Any]:
    answer = rng.choice(_ANSWERS)
    return {
        "answer": answer,
        "seconds": 20 if answer == "hang" else rng.choice([0, 0, 0.01, 0.05, 0.3, 1, 2]),
        "lines": rng.choice([0, 0, 1, 5, 40]),
        "stubborn": answer != "hang" and rng.random() < 0.1,
    }

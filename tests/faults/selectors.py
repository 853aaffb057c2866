"""Workers by label in rounds: what each says of itself, random selectors, and who may have had a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random

from conveyor.v1.pipeline_pb2 import LabelOperator, LabelRequirement, Step
from tests.faults.history import History, Violation

Labels = Mapping[str, str]

LABELS: dict[str, Labels] = {
    "alpha-0": {"size": "low"},
    "alpha-1": {"size": "high", "apart": ""},
    "beta-0": {},
    "delta-0": {"size": "low"},
}
"""Of each worker over gRPC: the only ones that have any."""

_ABOVE = 4
"""Runs whose parameter n is above are high."""


def _term(key: str, operator: str, *values: str) -> LabelRequirement:
    return LabelRequirement(key=key, operator=LabelOperator.Value(f"LABEL_OPERATOR_{operator}"), values=values)


_TERMS: dict[str, tuple[LabelRequirement, Callable[[Labels, str], bool]]] = {
    "is-low": (_term("size", "IN", "low", "tiny"), lambda labels, size: labels.get("size") in ("low", "tiny")),
    "is-not-low": (_term("size", "NOT_IN", "low"), lambda labels, size: labels.get("size") != "low"),
    "apart": (_term("apart", "EXISTS"), lambda labels, size: "apart" in labels),
    "not-apart": (_term("apart", "DOES_NOT_EXIST"), lambda labels, size: "apart" not in labels),
    "by-n": (
        _term("size", "IN", f"${{{{ params.n > {_ABOVE} ? 'high' : 'low' }}}}"),
        lambda labels, size: labels.get("size") == size,
    ),
}
"""Terms, and a naive reading of each: given a worker's labels, and whether the run is high or low."""


def choose_workers(rng: Random, step: Step) -> str:
    """Give a step a selector that one of its driver's workers fits, whatever n is; which, or "" for none."""
    labels = [each for worker, each in LABELS.items() if worker.startswith(f"{step.driver}-")]
    fit = [
        name
        for name, (_, holds) in _TERMS.items()
        if all(any(holds(each, size) for each in labels) for size in ("low", "high"))
    ]
    if not fit:
        return ""
    chosen = rng.choice(fit)
    step.worker_selector.match_expressions.append(_TERMS[chosen][0])
    return chosen


def steps_went_to_who_fits(history: History) -> Iterator[Violation]:
    """3: A step with a selector went to workers that it selects, and to none over JetStream."""
    for event in history.of("began"):
        run = history.runs.get(event["run"])
        if run is None or not run.pipeline:
            continue
        context = run.pipeline_snapshot.context
        declared = event["step"].partition("[")[0]
        if "workers" not in context or declared not in context.fields["workers"].struct_value:
            continue
        chosen = context.fields["workers"].struct_value.fields[declared].string_value
        size = "high" if run.params.fields["n"].number_value > _ABOVE else "low"
        labels = LABELS.get(event["by"])
        if labels is None or not _TERMS[chosen][1](labels, size):
            yield Violation(3, run.id, f"{event['by']} had {event['step']}, which wants workers {chosen}")

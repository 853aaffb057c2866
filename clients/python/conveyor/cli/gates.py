"""Gates of a run: what they ask, who has decided, and how one decides."""

from datetime import datetime
from shlex import quote

from conveyor.cli.encode import enum_name
from conveyor.cli.output import table
from conveyor.cli.terminal import one_line
from conveyor.cli.times import age
from conveyor.v1.pipeline_pb2 import Gate
from conveyor.v1.run_pb2 import Run, StepReason, StepRun

_DECISIONS = ("GATE", "DECISION", "BY", "WHEN", "COMMENT")
_NOBODY = "(timeout)"


def is_open(step: StepRun) -> bool:
    """Whether a step is a gate that waits for people."""
    return step.reason == StepReason.STEP_REASON_AWAITING_DECISION


def open_gates(run: Run) -> list[StepRun]:
    """The gates that wait for people."""
    return [step for step in run.steps if is_open(step)]


def commands(run: Run, step: StepRun) -> tuple[str, str]:
    """What to type to approve and to reject."""
    namespace = f"-n {run.namespace} " if run.namespace not in {"", "default"} else ""
    return (
        f"conveyor run approve {namespace}{run.id} {quote(step.step)}",
        f"conveyor run reject {namespace}{run.id} {quote(step.step)}",
    )


def open_block(run: Run) -> list[str]:
    """The gates that wait, each with what it asks and how one decides; no lines when there are none."""
    lines: list[str] = []
    for step in open_gates(run):
        asked = ", ".join(part for part in (one_line(step.message), still_missing(run, step)) if part)
        waits = "may be decided, but its run does not wait" if _gate(run, step).optional else "waits for a decision"
        lines += [f"Gate {step.step} {waits}{': ' if asked else ''}{asked}"]
        lines += [f"  {command}" for command in commands(run, step)]
    return lines


def decisions(run: Run, now: datetime) -> str:
    """A table of all decisions at gates; empty when there are none."""
    rows = [
        (step.step, enum_name(made, "decision"), made.by or _NOBODY, age(made, "time", now), made.comment)
        for step in run.steps
        for made in step.decisions
    ]
    return table(_DECISIONS, rows) if rows else ""


def still_missing(run: Run, step: StepRun) -> str:
    """How many more people must approve, when a gate asks for several."""
    return missing_words(step.wait.approvals or max(1, _gate(run, step).approvals) - len(step.decisions), step)


def missing_words(missing: int, step: StepRun) -> str:
    """The same for a known number."""
    if missing <= 0 or (missing == 1 and not step.decisions):
        return ""
    return f"{missing} more must approve"


def approvers(step: StepRun) -> str:
    """Who has approved a gate that waits for more."""
    return f"approved by {', '.join(made.by for made in step.decisions)}" if step.decisions else ""


def _gate(run: Run, step: StepRun) -> Gate:
    """What the pipeline says of a gate; nothing when its snapshot is not at hand."""
    name = step.matrix_step or step.step
    sources = (*run.pipeline_snapshot.steps, *run.pipeline_snapshot.finally_steps)
    return next((source.gate for source in sources if source.id == name), Gate())

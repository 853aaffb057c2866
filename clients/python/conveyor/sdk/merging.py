"""Makes whole runs of what watches send."""

from conveyor.sdk.answers import RunUpdate
from conveyor.v1.run_pb2 import Run, RunChange, RunState

TERMINAL = frozenset({RunState.RUN_STATE_SUCCEEDED, RunState.RUN_STATE_FAILED, RunState.RUN_STATE_CANCELLED})


def replaced(known: Run | None, run: Run, reset: bool) -> RunUpdate | None:
    """The update for a snapshot. None when it says nothing new."""
    if known is None:
        return RunUpdate(run, tuple(run.steps))
    if known.etag == run.etag:
        return None
    before = {step.step: step for step in known.steps}
    changed = tuple(step for step in run.steps if before.get(step.step) != step)
    return RunUpdate(run, changed, reset=reset)


def merged(known: Run | None, change: RunChange) -> RunUpdate:
    """The update for a change: what it leaves out of the run stays as it was."""
    run = Run()
    run.CopyFrom(change.run)
    changed = {step.step: step for step in change.steps}
    if known is None:
        run.steps.extend(change.steps)
        return RunUpdate(run, tuple(run.steps), change.skipped)
    for step in known.steps:
        run.steps.append(changed.pop(step.step, step))
    run.steps.extend(changed.values())
    for field in ("pipeline_snapshot", "resource_snapshot", "params"):
        if known.HasField(field):
            getattr(run, field).CopyFrom(getattr(known, field))
    seen = {step.step for step in change.steps}
    # Every step has its state in the run itself, also those that have not started and hence are not sent.
    for step, state in zip(run.steps, run.step_states, strict=False):
        if step.state != state:
            step.state = state
            seen.add(step.step)
    return RunUpdate(run, tuple(step for step in run.steps if step.step in seen), change.skipped)

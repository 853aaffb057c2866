"""What a round tells a person."""

from __future__ import annotations

from collections import Counter

from conveyor.v1.run_pb2 import Run, StepReason
from tests.faults.history import Event, History, run_state, step_state
from tests.faults.round import Outcome

_MOST_EVENTS = 60
_MOST_VIOLATIONS = 10


def summary(outcome: Outcome) -> str:
    """One line."""
    settings = outcome.settings
    states = Counter(run_state(run.state).lower() for run in outcome.history.runs.values())
    ends = ", ".join(f"{times} {state}" for state, times in sorted(states.items()))
    struck = sum(outcome.strikes.values())
    found = f"{len(outcome.violations)} VIOLATIONS" if outcome.violations else "all holds"
    return f"seed {settings.seed} on {_where(outcome)}: {struck} faults; {ends}: {found}"


def _where(outcome: Outcome) -> str:
    layout = outcome.settings.layout
    planted = f" with {layout.plant} planted" if layout.plant else ""
    return f"{layout.store}, {layout.servers} server{'s' * (layout.servers > 1)}{planted}"


def failure(outcome: Outcome) -> str:
    """What was violated, by invariant, with a short history of each run concerned."""
    lines = [f"seed {outcome.settings.seed} on {_where(outcome)}", "faults that struck:"]
    lines += [f"  {fault}: {times}" for (_, fault), times in sorted(outcome.strikes.items())]
    told: set[str] = set()
    for violation in outcome.violations[:_MOST_VIOLATIONS]:
        lines.append(f"invariant {violation.invariant}: {violation.text} [{violation.run or 'no run'}]")
        if violation.run and violation.run not in told:
            told.add(violation.run)
            lines += _about(outcome.history, violation.run)
    if len(outcome.violations) > _MOST_VIOLATIONS:
        lines.append(f"… and {len(outcome.violations) - _MOST_VIOLATIONS} more")
    return "\n".join(lines)


def _about(history: History, run: str) -> list[str]:
    start = history.events[0]["at"]
    mine = [event for event in history.events if event.get("run") == run or event["kind"] in ("healed", "up")]
    first = next((n for n, event in enumerate(mine) if event.get("run") == run), 0)
    last = max((n for n, event in enumerate(mine) if event.get("run") == run), default=0)
    lines = [f"    {event['at'] - start:8.3f} {_line(event)}" for event in mine[first : last + 1]]
    if len(lines) > _MOST_EVENTS:
        half = _MOST_EVENTS // 2
        lines[half:-half] = [f"    … {len(lines) - _MOST_EVENTS} more"]
    if run in history.runs:
        lines += _stored(history.runs[run])
    return lines


def _line(event: Event) -> str:
    hidden = ("at", "by", "kind", "run", "update_time", "request", "component")
    rest = {name: value for name, value in event.items() if name not in hidden and value not in ("", 0, {}, [])}
    if "steps" in rest:
        rest["steps"] = ",".join(rest["steps"])
    return f"{event['by']} {event['kind']} " + " ".join(f"{name}={value}" for name, value in rest.items())


def _stored(run: Run) -> list[str]:
    lines = [f"    stored: {run_state(run.state)} {run.message}"]
    for step in run.steps:
        attempts = "; ".join(
            f"{each.number} {each.worker} {step_state(each.state)} {_reason(each.reason)} {each.message}".strip()
            for each in step.attempts
        )
        lines.append(f"      {step.step} ({step.driver}): {step_state(step.state)} {_reason(step.reason)} [{attempts}]")
    return lines


def _reason(reason: int) -> str:
    return StepReason.Name(reason).removeprefix("STEP_REASON_") if reason else ""  # type: ignore[arg-type]

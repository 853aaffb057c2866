"""What workers are given and told: no attempt twice without a reason (4), and a cancel reaches who is at work (8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from conveyor.v1.run_pb2 import Run, RunReason, StepReason, StepRun, Transport
from tests.faults.history import Event, History, Violation

_TICKETS = frozenset({"server", "nats", "jetstream-driver", "network", "disk", "clock"})
"""Components whose faults may have a ticket delivered twice."""
_WAYS = frozenset({"server", "etcd", "network", "disk", "clock"})
_CANCELS = {
    Transport.TRANSPORT_GRPC: _WAYS | {"grpc-driver"},
    Transport.TRANSPORT_JETSTREAM: _WAYS | {"jetstream-driver", "nats"},
}
"""Components whose faults may keep a cancel from a worker."""
_CROSSING = 0.5
"""Seconds: an answer and a cancel may meet on the way."""


def troubled(history: History, components: frozenset[str], start: float, end: float) -> bool:
    """Whether a fault of one of these components was under way, or a moment ago, between two times."""
    struck: dict[str, float] = {}
    for event in history.of("strike", "healed"):
        if event["component"] not in components:
            continue
        if event["kind"] == "strike":
            struck.setdefault(event["fault"], event["at"])
        elif struck.pop(event["fault"], 0.0) < end and start < event["at"] + 3:
            return True
    return any(at < end for at in struck.values())


def tickets_come_once(history: History) -> Iterator[Violation]:
    """4: A ticket is delivered once, unless a server, the broker, or its driver was struck."""
    begun: dict[tuple[str, str, int, str], list[Event]] = defaultdict(list)
    for event in history.of("began"):
        begun[event["run"], event["step"], event["attempt"], event["token"]].append(event)
    for (run, step, attempt, _), events in begun.items():
        since = min(event["at"] for event in history.about(run))
        if len(events) > 1 and not troubled(history, _TICKETS, since, events[1]["at"]):
            yield Violation(
                4, run, f"attempt {attempt} of {step} began {len(events)} times, and nothing ailed the broker"
            )


def cancels_arrive(history: History) -> Iterator[Violation]:
    """8: A cancel that was acknowledged is told to the workers that are at the run's steps."""
    for run in history.runs.values():
        if run.reason == RunReason.RUN_REASON_CANCEL_REQUESTED:
            for step in run.steps:
                yield from _told(history, run, step)


def _told(history: History, run: Run, step: StepRun) -> Iterator[Violation]:
    """Whoever was given up because it did not confirm knew that it was to."""
    events = list(history.about(run.id))
    forced = any(event.get("force") for event in history.above(run))
    if step.reason != StepReason.STEP_REASON_ABANDONED or step.finally_step or forced:
        return
    last = step.attempts[-1]
    mine = {e["kind"]: e for e in events if e.get("step") == step.step and e.get("attempt") == last.number}
    if "began" not in mine or "told" in mine:
        return
    if "answered" in mine and run.caller_run:
        return  # When it was cancelled nobody wrote down.
    cancelled = max((event["at"] for event in events if event.get("what") == "cancel"), default=0.0)
    if "answered" in mine and mine["answered"]["at"] < cancelled + _CROSSING:
        return
    ended = max(event["at"] for event in events if event["by"] == "harness")
    if not troubled(history, _CANCELS[last.transport], mine["began"]["at"], ended):
        yield Violation(8, run.id, f"{step.step} was given up by a cancel, and its worker was never told")

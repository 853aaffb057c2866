"""Each invariant's check finds what violates it, and nothing in a history that is as it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from conveyor.sdk import to_struct
from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.pipeline_pb2 import ConcurrencyPolicy, Pipeline, Step, TriggerRule
from conveyor.v1.run_pb2 import Attempt, Run, RunReason, RunState, StepReason, StepRun, StepState, Transport
from tests.faults.check import check
from tests.faults.history import Event, History, seen

_OK = StepState.STEP_STATE_SUCCEEDED
_FAILED = StepState.STEP_STATE_FAILED
_SKIPPED = StepState.STEP_STATE_SKIPPED


def _step(name: str, start: int, end: int) -> StepRun:
    """A step that succeeded in one attempt."""
    made = StepRun(run="r", step=name, driver="d", state=_OK, attempt=1, max_attempts=1)
    made.attempts.append(Attempt(number=1, state=_OK))
    made.attempts[0].start_time.FromSeconds(start)
    made.start_time.FromSeconds(start)
    made.end_time.FromSeconds(end)
    made.result.data.CopyFrom(to_struct({"token": f"t-{name}", "attempt": 1}))
    return made


def _run() -> Run:
    """A run of two steps, one after the other, that succeeded."""
    pipeline = Pipeline(name="p", steps=[Step(id="a", driver="d"), Step(id="b", driver="d")])
    run = Run(id="r", pipeline="p", state=RunState.RUN_STATE_SUCCEEDED, etag="9", pipeline_snapshot=pipeline)
    run.labels["request"] = "q"
    run.steps.extend([_step("a", 10, 20), _step("b", 20, 30)])
    run.step_states.extend([_OK, _OK])
    run.update_time.FromSeconds(30)
    return run


def _saw(etag: int, state: str, *steps: str, update: int, watcher: str = "w", **fields: Any) -> Event:
    event = {"run": "r", "request": "q", "etag": etag, "state": state, "steps": list(steps), "update_time": update}
    told = {"skipped": 0, "reset": False, "deleted": False}
    return {"kind": "saw", "by": "harness", "watcher": watcher, **event, **told, **fields}


def _driver(kind: str, step: str, **fields: Any) -> Event:
    return {"kind": kind, "by": "worker", "run": "r", "step": step, "attempt": 1, "token": f"t-{step}", **fields}


def _history() -> History:
    """What must have happened when that run was started, watched and listed, and nothing went wrong."""
    second = 1_000_000_000
    events: list[Event] = [
        {"kind": "invoke", "by": "harness", "call": 1, "what": "start", "request": "q"},
        {
            "kind": "ok",
            "by": "harness",
            "call": 1,
            "what": "start",
            **_saw(3, "RUNNING", "RUNNING", "PENDING", update=1),
        },
        _driver("began", "a", inputs={}, lines=2, params={}),
        _saw(3, "RUNNING", "RUNNING", "PENDING", update=10 * second),
        _driver("answered", "a", answer="ok"),
        _driver("acked", "a", disposition="ACCEPTED"),
        _driver("began", "b", inputs={"a": "SUCCEEDED"}, lines=0, params={}),
        _saw(5, "RUNNING", "SUCCEEDED", "RUNNING", update=20 * second),
        _driver("answered", "b", answer="ok"),
        _driver("acked", "b", disposition="ACCEPTED"),
        _saw(9, "SUCCEEDED", "SUCCEEDED", "SUCCEEDED", update=30 * second),
        {"kind": "invoke", "by": "harness", "call": 2, "what": "list"},
        {"kind": "ok", "by": "harness", "call": 2, "what": "list", "runs": ["r"]},
    ]
    events[1] |= {"kind": "ok", "what": "start", "call": 1}
    for at, event in enumerate(events):
        event["at"] = float(at)
    lines = [LogLine(run="r", step="a", attempt=1, seq=n, text=f"t-a {n}") for n in (1, 2)]
    return History(events, {"r": _run()}, {"r": lines})


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert check(_history()) == []


def test_what_a_retry_inherits_has_the_times_of_another_run() -> None:
    history = _history()
    inherited = history.runs["r"].steps[0]
    inherited.inherited = True
    inherited.attempts[0].start_time.FromSeconds(3610)
    inherited.end_time.FromSeconds(3620)
    assert check(history) == []


def _event(history: History, kind: str, number: int = 0) -> Event:
    return [event for event in history.events if event["kind"] == kind][number]


def _lost_run(history: History) -> None:
    del history.runs["r"]
    history.logs.clear()


def _lost_result(history: History) -> None:
    history.runs["r"].steps[1].result.data.fields["token"].string_value = "another"


def _two_runs(history: History) -> None:
    other = Run(id="s", state=RunState.RUN_STATE_SUCCEEDED, etag="a")
    other.labels["request"] = "q"
    history.runs["s"] = other


def _too_early(history: History) -> None:
    _event(history, "began", 1)["at"] = 2.5


def _early_by_the_server(history: History) -> None:
    history.runs["r"].steps[1].attempts[0].start_time.FromSeconds(15)


def _rule_does_not_hold(history: History) -> None:
    history.runs["r"].pipeline_snapshot.steps[1].trigger_rule = TriggerRule.TRIGGER_RULE_ONE_FAILED


def _skipped_without_reason(history: History) -> None:
    step = history.runs["r"].steps[1]
    step.Clear()
    step.MergeFrom(StepRun(step="b", state=_SKIPPED, reason=StepReason.STEP_REASON_NEED_FAILED))


def _not_cleaned_up(history: History) -> None:
    run = history.runs["r"]
    run.start_time.FromSeconds(10)
    run.pipeline_snapshot.finally_steps.add(id="f", driver="d")
    run.steps.add(step="f", state=_SKIPPED, reason=StepReason.STEP_REASON_RUN_CANCELLED, finally_step=True)


def _inherited_failure(history: History) -> None:
    run = history.runs["r"]
    run.steps[0].inherited, run.steps[0].state = True, _FAILED
    run.pipeline_snapshot.steps[0].allow_failure = True
    _event(history, "began", 1)["inputs"] = {"a": "FAILED"}


def _wrong_end(history: History) -> None:
    history.runs["r"].state = RunState.RUN_STATE_FAILED


def _cancelled_by_nobody(history: History) -> None:
    run = history.runs["r"]
    run.state, run.reason = RunState.RUN_STATE_CANCELLED, RunReason.RUN_REASON_CANCEL_REQUESTED


def _started_after_cancel(history: History) -> None:
    cancelling = _saw(4, "CANCELLING", "RUNNING", "PENDING", update=15_000_000_000)
    history.events.insert(4, {**cancelling, "at": 3.5})


def _given_up_too_soon(history: History) -> None:
    run = history.runs["r"]
    run.state, step = RunState.RUN_STATE_FAILED, run.steps[1]
    step.state, step.reason = _FAILED, StepReason.STEP_REASON_DRIVER_FAILED
    step.attempts[0].state, step.attempts[0].reason = _FAILED, StepReason.STEP_REASON_DRIVER_FAILED
    run.pipeline_snapshot.steps[1].retry.max_attempts = 2
    _event(history, "answered", 1)["answer"] = "fail"


def _answer_of_another(history: History) -> None:
    history.runs["r"].steps[0].attempts[0].message = "stopped 0123456789ab"


def _nobody_answered(history: History) -> None:
    history.events.remove(_event(history, "answered", 1))


def _wrong_input(history: History) -> None:
    _event(history, "began", 1)["inputs"] = {"a": "FAILED"}


def _with_condition(history: History, **condition: object) -> None:
    pipeline = history.runs["r"].pipeline_snapshot
    pipeline.context.CopyFrom(to_struct({"conditions": {"b": {"step": "a", **condition}}}))


def _ran_although_false(history: History) -> None:
    _with_condition(history, kind="state", of=["FAILED"])


def _ran_although_missing(history: History) -> None:
    _with_condition(history, kind="data", below=2)
    history.runs["r"].steps[0].result.Clear()


def _skipped_although_true(history: History) -> None:
    _with_condition(history, kind="perhaps", below=2)
    step = history.runs["r"].steps[1]
    step.Clear()
    step.MergeFrom(StepRun(step="b", state=_SKIPPED, reason=StepReason.STEP_REASON_CONDITION_FALSE))


def _wrong_params(history: History) -> None:
    history.runs["r"].pipeline_snapshot.context.CopyFrom(to_struct({"given": {"b": {"k0": "a"}}}))


def _other_workers(history: History) -> None:
    run = history.runs["r"]
    run.pipeline_snapshot.context.update({"workers": {"a": "is-low"}})


def _overlapping(history: History) -> None:
    run = history.runs["r"]
    run.pipeline_snapshot.concurrency.policy = ConcurrencyPolicy.CONCURRENCY_POLICY_QUEUE
    run.start_time.FromSeconds(10)
    run.end_time.FromSeconds(30)
    other = Run(id="s", pipeline="p", state=RunState.RUN_STATE_SUCCEEDED, etag="a")
    other.pipeline_snapshot.concurrency.policy = ConcurrencyPolicy.CONCURRENCY_POLICY_QUEUE
    other.start_time.FromSeconds(29)
    history.runs["s"] = other


def _not_replaced(history: History) -> None:
    _overlapping(history)
    run, other = history.runs["r"], history.runs["s"]
    other.pipeline_snapshot.concurrency.policy = ConcurrencyPolicy.CONCURRENCY_POLICY_REPLACE
    other.labels["request"] = "newer"
    other.create_time.FromSeconds(20)
    other.start_time.CopyFrom(run.end_time)
    history.events.append(
        {"kind": "invoke", "by": "harness", "at": 5.0, "call": 9, "what": "start", "request": "newer"}
    )


def _counted_twice(history: History) -> None:
    history.events.append({**_event(history, "acked"), "at": 20.0})


def _done_twice(history: History) -> None:
    history.events.append({**_event(history, "began"), "at": 20.0})


def _delivered_twice(history: History) -> None:
    # By JetStream: nobody is told of an ack there.
    history.events = [event for event in history.events if event["kind"] != "acked"]
    _done_twice(history)


def _cancelled_in_silence(history: History) -> None:
    run, step = history.runs["r"], history.runs["r"].steps[1]
    run.state, run.reason = RunState.RUN_STATE_CANCELLED, RunReason.RUN_REASON_CANCEL_REQUESTED
    step.state, step.reason = StepState.STEP_STATE_CANCELLED, StepReason.STEP_REASON_ABANDONED
    step.attempts[0].transport = Transport.TRANSPORT_GRPC
    _event(history, "answered", 1)["at"] = 15.0
    asked = {"by": "harness", "what": "cancel", "call": 3, "run": "r", "force": False}
    history.events += [{"kind": "invoke", "at": 8.1, **asked}, {"kind": "ok", "at": 8.2, **asked}]


def _two_current(history: History) -> None:
    step = history.runs["r"].steps[0]
    step.attempts.insert(0, Attempt(number=0, state=StepState.STEP_STATE_RUNNING))


def _changed_after_the_end(history: History) -> None:
    event = _saw(7, "FAILED", "SUCCEEDED", "FAILED", update=25_000_000_000, watcher="v")
    history.events.append({**event, "at": 20.0, "skipped": 1})


def _never_ended(history: History) -> None:
    history.unfinished.append("r")


def _gap(history: History) -> None:
    event = _saw(4, "RUNNING", "RUNNING", "PENDING", update=15_000_000_000, watcher="v")
    history.events += [{**event, "at": 4.0}, {**event, "etag": 9, "state": "SUCCEEDED", "reset": True, "at": 20.0}]


def _gap_in_a_segment(history: History) -> None:
    _event(history, "saw", 0)["watcher"] = _event(history, "saw", 2)["watcher"] = "raw"
    history.events.append({"kind": "anew", "by": "harness", "at": -1.0, "watcher": "raw"})


def _out_of_order(history: History) -> None:
    _event(history, "saw", 0)["etag"] = 7


def _never_saw_the_end(history: History) -> None:
    history.events.remove(_event(history, "saw", -1))


def _lost_line(history: History) -> None:
    del history.logs["r"][0]


def _cut_log(history: History) -> None:
    del history.logs["r"][1]


def _foreign_line(history: History) -> None:
    history.logs["r"][0].text = "t-b 1"


def _error(code: str, reason: str) -> Callable[[History], None]:
    def add(history: History) -> None:
        told = {"code": code, "reason": reason, "message": "…"}
        history.events.append({"kind": "error", "by": "harness", "at": 20.0, "what": "get", "run": "r", **told})

    return add


def _left_out(history: History) -> None:
    _event(history, "ok", -1)["runs"] = []


def _acknowledged_cancel(history: History) -> None:
    history.events.append({"kind": "ok", "by": "harness", "at": 20.0, "what": "cancel", "call": 3, "run": "r"})


def _descriptors(history: History) -> None:
    history.left["descriptors of server-0"] = "20, now 90"


@pytest.mark.parametrize(
    ("invariant", "spoil"),
    [
        (1, _lost_run),
        (1, _lost_result),
        (2, _two_runs),
        (3, _too_early),
        (3, _early_by_the_server),
        (3, _rule_does_not_hold),
        (3, _skipped_without_reason),
        (3, _not_cleaned_up),
        (3, _inherited_failure),
        (3, _wrong_end),
        (3, _cancelled_by_nobody),
        (3, _started_after_cancel),
        (3, _given_up_too_soon),
        (3, _nobody_answered),
        (3, _answer_of_another),
        (3, _wrong_input),
        (3, _ran_although_false),
        (3, _ran_although_missing),
        (3, _skipped_although_true),
        (3, _wrong_params),
        (3, _other_workers),
        (3, _overlapping),
        (3, _not_replaced),
        (4, _counted_twice),
        (4, _done_twice),
        (4, _delivered_twice),
        (4, _two_current),
        (5, _changed_after_the_end),
        (6, _never_ended),
        (7, _gap),
        (7, _gap_in_a_segment),
        (7, _out_of_order),
        (7, _never_saw_the_end),
        (7, _lost_line),
        (7, _cut_log),
        (7, _foreign_line),
        (8, _error("NOT_FOUND", "NOT_FOUND")),
        (8, _error("INTERNAL", "INTERNAL")),
        (8, _left_out),
        (8, _acknowledged_cancel),
        (8, _cancelled_in_silence),
        (9, _descriptors),
    ],
)
def test_a_violation_is_found(invariant: int, spoil: Callable[[History], None]) -> None:
    history = _history()
    spoil(history)
    history.events.sort(key=lambda event: float(event["at"]))
    assert invariant in {violation.invariant for violation in check(history)}


def test_what_a_history_keeps_of_a_run() -> None:
    assert seen(_run())["steps"] == ["SUCCEEDED", "SUCCEEDED"]

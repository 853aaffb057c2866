"""Invariant 3: steps run when their rule holds, none after the end, and the end is the one that follows from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from conveyor.v1.run_pb2 import Attempt, Run, RunReason, StepReason, StepRun
from tests.faults.conditions import expected, holds
from tests.faults.history import ENDED, Event, History, Violation, run_state, step_state
from tests.faults.matrices import stopped_by_another, with_instances
from tests.faults.model import LOSSES, Model, ModelStep, model

_JUDGED = frozenset({"NEED_FAILED", "NEED_SKIPPED", "NO_NEED_FAILED"})
# What drivers say, with the token of the attempt that they answer.
_SAID = re.compile(r"(?:no|never|give-up|stopped) ([0-9a-f]{12})")
_FAILURES = frozenset({"DRIVER_FAILED", "TIMED_OUT", "CHILD_RUN_FAILED"})
_STOPPED = frozenset({"RUN_CANCELLED", "RUN_TIMED_OUT", "ABANDONED"})


def steps_run_in_order(history: History) -> Iterator[Violation]:
    """3: No step is dispatched before its rule holds, none after the run is terminal or cancelled but finally steps."""
    for run in history.runs.values():
        if run.pipeline and run_state(run.state) in ENDED:
            case = _Case(history, run, with_instances(model(run.pipeline_snapshot), run))
            yield from case.violations()


@dataclass
class _Case:
    """One run that has ended."""

    history: History
    run: Run
    model: Model

    @cached_property
    def ended(self) -> dict[str, str]:
        """How each step ended."""
        return {step.step: step_state(step.state) for step in self.run.steps}

    @cached_property
    def stored(self) -> dict[str, StepRun]:
        """Each step as it is stored."""
        return {step.step: step for step in self.run.steps}

    @cached_property
    def stopped(self) -> bool:
        """Whether the run was cancelled or timed out."""
        return bool(self.run.reason in (RunReason.RUN_REASON_TIMED_OUT, *_CANCELLED))

    @cached_property
    def stepped(self) -> bool:
        """Whether the servers' clock was: what was timed by it may come an hour early or late."""
        return any(event["component"] == "clock" for event in self.history.of("strike"))

    def violations(self) -> Iterator[Violation]:
        """All of them."""
        texts: list[Iterator[str]] = [self._end(), self._nothing_after()]
        for name, step in self.model.steps.items():
            texts.append(self._cleaned_up(step) if step.last else self._judged(step))
            if self.stored[name].attempts or any(self._events(name, "began")):
                texts += [self._was_due(step), self._inputs(step)]
            texts += [self._explained(step), self._conditional(step)]
        for each in texts:
            yield from (Violation(3, self.run.id, text) for text in each)

    def _events(self, step: str, *kinds: str) -> Iterator[Event]:
        return (e for e in self.history.about(self.run.id) if e["kind"] in kinds and e["step"] == step)

    def _end(self) -> Iterator[str]:
        state, expected = run_state(self.run.state), self.model.end(self.ended)
        if self.run.reason in _CANCELLED:
            expected = "CANCELLED"
            asked = any(e["what"] in ("cancel", "replace") for e in self.history.about(self.run.id) if "what" in e)
            # Whether the one that it is within stopped it is looked at there.
            asked = asked or bool(self.run.caller_run)
            if not asked and self.run.reason == RunReason.RUN_REASON_CANCEL_REQUESTED:
                yield "it was cancelled, and nobody asked for that"
        elif self.run.reason == RunReason.RUN_REASON_TIMED_OUT:
            expected = "FAILED"
            if not self.model.timed and not self.stepped:
                yield "it timed out without a timeout"
        if state != expected:
            yield f"it ended {state}; its steps {self.ended} make it {expected}"
        open_steps = [name for name, state in self.ended.items() if state not in (*ENDED, "SKIPPED")]
        if open_steps:
            yield f"it ended before its steps {open_steps}"

    def _nothing_after(self) -> Iterator[str]:
        """By the server's own stamps, which never run backwards within a run. Inherited ones are another run's."""
        for event in self.history.about(self.run.id):
            state = event.get("state")
            if state not in (*ENDED, "CANCELLING"):
                continue
            for step in self.run.steps:
                if step.inherited or (state == "CANCELLING" and step.finally_step):
                    continue
                if any(_started(attempt) > event["update_time"] for attempt in step.attempts):
                    yield f"{step.step} started after the run was seen {state}"

    def _judged(self, step: ModelStep) -> Iterator[str]:
        """Its state is the one that its rule wants."""
        state, reason = self.ended[step.name], _reason(self.stored[step.name])
        if self.stored[step.name].inherited:
            if state != "SUCCEEDED":
                yield f"{step.name} was taken over from another run, where it was {state}"
            return
        runs = self.model.runs(step.name, self.ended)
        if state == "SKIPPED" and reason in _JUDGED and runs:
            yield f"{step.name} was skipped ({reason}) although its rule {step.rule} holds: {self._needs(step)}"
        if state == "SKIPPED" and reason == "FAIL_FAST":
            if not self.model.stoppable(step.name) or not self.model.spoiled(step.name, self.ended):
                yield f"{step.name} was skipped (FAIL_FAST) without a reason"
        elif state != "SKIPPED" and not runs:
            yield f"{step.name} is {state} although its rule {step.rule} does not hold: {self._needs(step)}"

    def _cleaned_up(self, step: ModelStep) -> Iterator[str]:
        """A finally step runs after any end of a run that began, unless somebody had no patience with that."""
        forced = any(event.get("force") for event in self.history.above(self.run))
        conditional = _reason(self.stored[step.name]) == "CONDITION_FALSE"
        if self.ended[step.name] == "SKIPPED" and not conditional and self.run.HasField("start_time") and not forced:
            yield f"the finally step {step.name} was skipped ({_reason(self.stored[step.name])})"

    def _needs(self, step: ModelStep) -> str:
        return str({need: self.ended[need] for need in step.needs})

    def _conditional(self, step: ModelStep) -> Iterator[str]:
        """It ran if its condition is true, was skipped if not, and failed if that refers to what is not there."""
        stored, state, reason = self.stored[step.name], self.ended[step.name], _reason(self.stored[step.name])
        declared = step.matrix_of or step.name
        condition = self.model.conditions.get(declared)
        held = True if condition is None else holds(condition, self.n, self.ended, self.said)
        if reason == "CONDITION_FALSE" and held is not False:
            yield f"{step.name} was skipped although its condition {condition} comes to {held}"
        if reason == "INPUT_MISSING" and held is not None:
            yield f"{step.name} failed ({stored.message}) although its condition {condition} comes to {held}"
        if reason in ("INPUT_INVALID", "INPUT_TOO_LARGE"):
            yield f"{step.name} failed by its expressions: {stored.message}"
        passed = step.gate and state == "SUCCEEDED"
        if (stored.attempts or passed) and not stored.inherited and held is not True:
            yield f"{step.name} is {state} and ran although its condition {condition} comes to {held}"
        given = expected(self.model.given.get(declared, {}), self.n, self.ended)
        for event in self._events(step.name, "began"):
            if event["params"] != given:
                yield f"{step.name} was given {event['params']}; it should have been {given}"

    @cached_property
    def n(self) -> float:
        """The run's parameter."""
        return self.run.params.fields["n"].number_value

    @cached_property
    def said(self) -> dict[str, float]:
        """Which attempt each step said that it was, if it said anything."""
        data = {step.step: step.result.data.fields for step in self.run.steps}
        return {name: fields["attempt"].number_value for name, fields in data.items() if "attempt" in fields}

    def _was_due(self, step: ModelStep) -> Iterator[str]:
        """It began after all that it waits for had ended."""
        waits_for = [each.name for each in self.model.main()] if step.last else list(step.needs)
        starts = [_started(attempt) for attempt in self.stored[step.name].attempts if attempt.number == 1]
        began = min((event["at"] for event in self._events(step.name, "began")), default=None)
        if not step.last and not self.model.runs(step.name, self.ended):
            yield f"{step.name} began although its rule {step.rule} does not hold: {self._needs(step)}"
        for need in waits_for:
            end = self.stored[need].end_time.ToNanoseconds()
            if starts and starts[0] < end and not self.stored[need].inherited:
                yield f"{step.name} started before {need} had ended"
            told = self._decided(need)
            if began is not None and told is not None and began < told:
                yield f"{step.name} began before the driver of {need} had answered"

    def _decided(self, step: str) -> float | None:
        """When a driver gave the answer that ended a step; None when none did."""
        stored = self.stored[step]
        if self.ended[step] not in ("SUCCEEDED", "FAILED") or stored.inherited or not stored.attempts:
            return None
        if self.ended[step] == "FAILED" and _reason(stored) != "DRIVER_FAILED":
            return None
        last = stored.attempts[-1].number
        return min((e["at"] for e in self._events(step, "answered") if e["attempt"] == last), default=None)

    def _inputs(self, step: ModelStep) -> Iterator[str]:
        """What it was told of earlier steps is how they ended."""
        for event in self._events(step.name, "began"):
            for other, state in event["inputs"].items():
                if state != self.ended[other]:
                    yield f"{step.name} was told that {other} is {state}; it is {self.ended[other]}"

    def _explained(self, step: ModelStep) -> Iterator[str]:
        """Its end follows from what its drivers answered."""
        stored, state = self.stored[step.name], self.ended[step.name]
        reason, attempts = _reason(stored), list(stored.attempts)
        failed = [each for each in attempts if _reason(each) in _FAILURES]
        lost = [each for each in attempts if _reason(each) == "WORKER_LOST"]
        if len(failed) > step.failures or len(lost) > LOSSES + 1:
            yield f"{step.name} had {len(failed)} failures of {step.failures}, and lost {len(lost)} workers"
        for attempt in attempts:
            said = _SAID.fullmatch(attempt.message)
            if said and (attempt.number, said[1]) not in self._tokens(step.name):
                yield f"attempt {attempt.number} of {step.name} ended by the answer of another: {attempt.message}"
        # One that hangs says so in the end, when no timeout ends it before.
        said_so = self._answered(step.name, stored, "ok") or (
            self.stepped and self._answered(step.name, stored, "hang")
        )
        if state == "SUCCEEDED" and not stored.inherited and not said_so and step.driven:
            yield f"{step.name} is SUCCEEDED, and no driver said so"
        # All finally steps together have a timeout of their own, which the run's reason need not tell.
        stopped = self.stopped or stopped_by_another(step, self.ended)
        if state in ("CANCELLED", "SKIPPED") and reason in _STOPPED and not stopped and not step.last:
            yield f"{step.name} is {state} ({reason}) in a run that nobody stopped"
        if state == "FAILED":
            yield from self._failure(step, stored, len(failed), len(lost))

    def _failure(self, step: ModelStep, stored: StepRun, failed: int, lost: int) -> Iterator[str]:
        reason = _reason(stored)
        # What runs when another step fails is not tried again.
        stopped = self.stopped or (self.model.stoppable(step.name) and self.model.spoiled(step.name, self.ended))
        stopped = stopped or stopped_by_another(step, self.ended)
        if reason == "DRIVER_FAILED":
            refused = self._answered(step.name, stored, "refuse")
            if not refused and not self._answered(step.name, stored, "fail"):
                yield f"{step.name} is FAILED, and no driver said so"
            if not refused and failed < step.failures and not stopped:
                yield f"{step.name} is FAILED after {failed} of {step.failures} attempts"
        elif reason == "TIMED_OUT" and not step.timed and not self.stepped:
            yield f"{step.name} timed out without a timeout"
        elif reason in ("TIMED_OUT", "CHILD_RUN_FAILED") and failed < step.failures and not stopped:
            yield f"{step.name} is FAILED after {failed} of {step.failures} attempts"
        elif reason == "QUEUE_TIMED_OUT" and not step.queue_timed:
            yield f"{step.name} timed out in the queue without a timeout"
        elif reason == "WORKER_LOST" and lost <= LOSSES and not stopped:
            yield f"{step.name} is FAILED after {lost} lost workers"

    def _tokens(self, step: str) -> set[tuple[int, str]]:
        """The attempts that drivers answered, each with its token."""
        return {(event["attempt"], event["token"]) for event in self._events(step, "answered")}

    def _answered(self, step: str, stored: StepRun, answer: str) -> bool:
        """Whether a driver gave this answer in the attempt that counts, under the token that is stored."""
        last = stored.attempts[-1].number if stored.attempts else 0
        data = stored.result.data.fields
        for event in self._events(step, "answered"):
            if event["answer"] != answer or event["attempt"] != last:
                continue
            if answer not in ("ok", "hang") or data["token"].string_value == event["token"]:
                return True
        return False


_CANCELLED = (RunReason.RUN_REASON_CANCEL_REQUESTED, RunReason.RUN_REASON_REPLACED)


def _started(attempt: Attempt) -> int:
    return attempt.start_time.ToNanoseconds()


def _reason(of: StepRun | Attempt) -> str:
    return StepReason.Name(of.reason).removeprefix("STEP_REASON_")

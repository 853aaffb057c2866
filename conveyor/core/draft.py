"""One transition while it is being made: copies what it changes, settles what follows, and ends as a Decision."""

from __future__ import annotations

from conveyor.core.model import TERMINAL_RUN, TERMINAL_STEP, Decision, Effects, RunState, Stop, Withdraw
from conveyor.core.rules import STOPPED_BY_FAIL_FAST, judge, outcome
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2

MAX_RECORDS = 60
"""Step records changed by one commit; the store takes 96 operations, and claims and objects need room beside."""

MAX_ATTEMPTS_KEPT = 10
MAX_LATE_RESULTS_KEPT = 5
MAX_LOSSES = 3
"""How often the worker of a step may be lost before the step fails."""

_OPEN_BEFORE_START = frozenset({run_pb2.STEP_STATE_PENDING, run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_STATE_RETRYING})


class Draft:
    """A mutable copy of a run's state; the state that it came from stays as it is."""

    __slots__ = (
        "_candidates",
        "_old",
        "_steps",
        "changed",
        "effects",
        "head",
        "jitter",
        "more",
        "now",
        "open_finally",
        "open_main",
        "open_needs",
        "plan",
        "reasons",
        "states",
    )

    def __init__(self, old: RunState, now: int, jitter: float) -> None:
        self._old = old
        self.plan = old.plan
        self.now = now
        self.jitter = jitter
        self.head = storage_pb2.RunHead()
        self.head.CopyFrom(old.head)
        self.states = bytearray(old.head.step_states)
        self.reasons = bytearray(old.head.step_reasons)
        self._steps = old.steps.copy()
        self.open_needs = old.open_needs.copy()
        self.open_main = old.open_main
        self.open_finally = old.open_finally
        self.changed: set[int] = set()
        self.effects = Effects()
        self.more = False
        self._candidates: list[int] = []

    # Primitives

    def peek(self, index: int) -> storage_pb2.StepRecord | None:
        """The record for reading."""
        return self._steps[index]

    def edit(self, index: int) -> storage_pb2.StepRecord:
        """The record for changing: a copy made once, a new one for a step that has none."""
        record = self._steps[index]
        if index in self.changed and record is not None:
            return record
        copy = storage_pb2.StepRecord()
        if record is None:
            copy.step = self.plan.steps[index].id
        else:
            copy.CopyFrom(record)
        self._steps[index] = copy
        self.changed.add(index)
        return copy

    @property
    def cancelling(self) -> bool:
        """Whether no new main step may start."""
        return self.head.state == run_pb2.RUN_STATE_CANCELLING

    @property
    def room(self) -> bool:
        """Whether another record fits into this commit; otherwise a Continue must follow."""
        if len(self.changed) < MAX_RECORDS:
            return True
        self.more = True
        return False

    def set_state(
        self,
        index: int,
        state: run_pb2.StepState.ValueType,
        reason: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED,
    ) -> None:
        """Write the packed state, and the record's if there is one."""
        self.states[index] = state
        self.reasons[index] = reason
        if self._steps[index] is not None:
            record = self.edit(index)
            record.state = state
            record.reason = reason

    def queue(self, index: int, *, next_attempt: bool = False) -> None:
        """Make a step ready for a worker: its first attempt, its next one, or the same one again."""
        record = self.edit(index)
        record.state = run_pb2.STEP_STATE_QUEUED
        record.reason = run_pb2.STEP_REASON_UNSPECIFIED
        record.message = ""
        if not record.attempt:
            record.attempt = 1
            record.queue_time = self.now
        elif next_attempt:
            record.attempt += 1
        record.ready_time = self.now
        record.start_time = 0
        self._free(record)
        bound = self.plan.steps[index].queue_timeout
        record.next_time = self.now + bound if bound else 0
        if self.plan.broadcast:
            # The answers to a broadcast are due together, whoever got it.
            record.next_time = self.head.create_time + self.plan.steps[index].timeout
        if record.next_time:
            self.effects.timers.append(record.next_time)
        self.states[index] = run_pb2.STEP_STATE_QUEUED
        self.reasons[index] = run_pb2.STEP_REASON_UNSPECIFIED
        self.effects.ready.append(index)

    def _free(self, record: storage_pb2.StepRecord) -> None:
        """Forget who has the current attempt; its place is free for other work."""
        if record.token:
            self.effects.freed.append(record.token)
        record.token = ""
        record.session = ""
        record.worker = ""
        record.transport = run_pb2.TRANSPORT_UNSPECIFIED
        record.ClearField("ticket")
        record.cancel_sent = False

    def end_attempt(
        self,
        record: storage_pb2.StepRecord,
        state: run_pb2.StepState.ValueType,
        reason: run_pb2.StepReason.ValueType,
        message: str,
        digest: bytes = b"",
    ) -> None:
        """Close the current attempt in the history, if a worker ever had it."""
        if not record.token or not record.attempts:
            return
        attempt = record.attempts[-1]
        attempt.state = state
        attempt.reason = reason
        attempt.message = message
        # A worker cannot end before it began, whatever the clock did in between.
        attempt.end_time = max(self.now, attempt.start_time)
        attempt.result_digest = digest

    def finish(
        self,
        index: int,
        state: run_pb2.StepState.ValueType,
        reason: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED,
        message: str = "",
    ) -> None:
        """Bring a step to its end and let the steps that need it be judged."""
        self.states[index] = state
        self.reasons[index] = reason
        if self._steps[index] is not None:
            record = self.edit(index)
            record.state = state
            record.reason = reason
            record.message = message
            record.end_time = max(self.now, record.start_time)
            record.next_time = 0
            if record.ticket.sequence and record.transport == run_pb2.TRANSPORT_JETSTREAM:
                self.effects.withdrawals.append(Withdraw(index, record.token, _copy_ticket(record.ticket)))
            self._free(record)
        step = self.plan.steps[index]
        if step.is_finally:
            self.open_finally -= 1
            return
        self.open_main -= 1
        for dependent in step.dependents:
            self.open_needs[dependent] -= 1
            if not self.open_needs[dependent]:
                self._candidates.append(dependent)

    def tell_to_stop(self, index: int, message: str, grace: int) -> None:
        """Have the worker of a running step told to stop."""
        record = self.edit(index)
        record.cancel_sent = True
        self.effects.stops.append(
            Stop(index, record.attempt, record.session, record.transport, record.token, message, grace)
        )

    def retry_or_fail(
        self,
        index: int,
        reason: run_pb2.StepReason.ValueType,
        message: str,
        *,
        retryable: bool,
    ) -> None:
        """What follows an attempt that failed or timed out (its end in the history is written already)."""
        record = self.edit(index)
        record.failures += 1
        retry = self.plan.steps[index].retry
        if not retryable or record.failures >= retry.max_attempts or (self.cancelling and index < self.plan.main):
            self.finish(index, run_pb2.STEP_STATE_FAILED, reason, message)
            return
        wait = retry.backoff(record.failures, self.jitter)
        if not wait:
            self.queue(index, next_attempt=True)
            return
        self._free(record)
        record.message = message
        record.next_time = self.now + wait
        self.effects.timers.append(record.next_time)
        self.set_state(index, run_pb2.STEP_STATE_RETRYING, reason)

    # What follows by itself

    def settle(self) -> None:
        """Judge steps whose needs are terminal, stop what fail-fast stops, start finally steps, end the run."""
        if self.head.state in TERMINAL_RUN:
            return
        if self.cancelling:
            self._cancel_open_steps()
        else:
            self._fail_fast()
            self._judge_candidates()
        if self.more:
            return
        if not self.open_main:
            if self.open_finally and not self.head.finally_time:
                self.head.finally_time = self.now
                self.head.finally_deadline = self.now + self.plan.finally_timeout
                self.effects.timers.append(self.head.finally_deadline)
            if self.head.finally_time:
                self._start_finally_steps()
            if not self.open_finally:
                self._finish_run()

    def candidates_from_state(self) -> None:
        """Find all steps that wait only for being judged; after a commit that had no room for them."""
        self._candidates = [
            i for i in range(self.plan.main) if self.states[i] == run_pb2.STEP_STATE_PENDING and not self.open_needs[i]
        ]

    def _judge_candidates(self) -> None:
        candidates = self._candidates
        for index in candidates:  # grows while steps are skipped
            if self.states[index] != run_pb2.STEP_STATE_PENDING:
                continue
            reason = judge(self.plan, self.states, index)
            if reason:
                self.finish(index, run_pb2.STEP_STATE_SKIPPED, reason)
            elif self.room:
                self.queue(index)
        self._candidates = []

    def _fail_fast(self) -> None:
        plan = self.plan
        if not plan.fail_fast or plan.broadcast or run_pb2.STEP_STATE_FAILED not in self.states:
            return
        if not any(
            state == run_pb2.STEP_STATE_FAILED and not plan.steps[i].allow_failure
            for i, state in enumerate(self.states[: plan.main])
        ):
            return
        for step in plan.steps[: plan.main]:
            if self.states[step.index] in _OPEN_BEFORE_START and step.rule in STOPPED_BY_FAIL_FAST:
                if self._steps[step.index] is not None and not self.room:
                    return
                self.finish(step.index, run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_FAIL_FAST)

    def _cancel_open_steps(self) -> None:
        """What waits ends at once; what runs is told, once."""
        timed_out = self.head.reason == run_pb2.RUN_REASON_TIMED_OUT
        reason = run_pb2.STEP_REASON_RUN_TIMED_OUT if timed_out else run_pb2.STEP_REASON_RUN_CANCELLED
        message = "the run timed out" if timed_out else "the run was cancelled"
        for index in range(self.plan.main):
            state = self.states[index]
            if state in TERMINAL_STEP:
                continue
            if state == run_pb2.STEP_STATE_PENDING:
                self.finish(index, run_pb2.STEP_STATE_SKIPPED, reason)
                continue
            record = self._steps[index]
            if record is None or (state == run_pb2.STEP_STATE_RUNNING and record.cancel_sent):
                continue
            if not self.room:
                return
            if state == run_pb2.STEP_STATE_RUNNING:
                self.tell_to_stop(index, self.head.cancel_message or message, self.head.cancel_deadline - self.now)
            else:
                self.end_attempt(self.edit(index), run_pb2.STEP_STATE_CANCELLED, reason, message)
                self.finish(index, run_pb2.STEP_STATE_CANCELLED, reason, message)
        self._candidates = []

    def _start_finally_steps(self) -> None:
        for index in range(self.plan.main, len(self.plan.steps)):
            if self.states[index] == run_pb2.STEP_STATE_PENDING:
                if not self.room:
                    return
                self.queue(index)

    def _finish_run(self) -> None:
        head = self.head
        if head.outcome:
            head.state = head.outcome
        else:
            head.state, head.reason, step = outcome(self.plan, self.states)
            if step >= 0:
                record = self._steps[step]
                said = f": {record.message}" if record is not None and record.message else ""
                verb = "failed" if head.reason == run_pb2.RUN_REASON_STEP_FAILED else "was cancelled by its driver"
                head.message = f"step {self.plan.steps[step].id} {verb}{said}"[:1024]
        head.end_time = max(self.now, head.create_time)

    # The end

    def decide(
        self,
        disposition: result_pb2.Disposition.ValueType = result_pb2.DISPOSITION_UNSPECIFIED,
        message: str = "",
    ) -> Decision:
        """The Decision that all of this comes to."""
        head = self.head
        head.step_states = bytes(self.states)
        head.step_reasons = bytes(self.reasons)
        head.update_time = max(self.now, head.update_time)
        effects = self.effects
        return Decision(
            state=RunState(self.plan, head, self._steps, self.open_needs, self.open_main, self.open_finally),
            dirty=True,
            changed=frozenset(self.changed),
            ready=tuple(i for i in effects.ready if self.states[i] == run_pb2.STEP_STATE_QUEUED),
            stops=tuple(effects.stops),
            withdrawals=tuple(effects.withdrawals),
            timers=tuple(effects.timers),
            freed=tuple(effects.freed),
            more=self.more,
            disposition=disposition,
            message=message,
        )


def _copy_ticket(ticket: storage_pb2.Ticket) -> storage_pb2.Ticket:
    copy = storage_pb2.Ticket()
    copy.CopyFrom(ticket)
    return copy

"""One transition while it is being made: copies what it changes, and ends as a Decision."""

from __future__ import annotations

from conveyor.core.events import Event
from conveyor.core.inputs import Seen, StepInputs, Verdict
from conveyor.core.locks import waiting_message
from conveyor.core.matrix import values_of
from conveyor.core.model import OVERDUE, TERMINAL_RUN, Decision, RunState, Stop, Withdraw, result_bytes
from conveyor.core.plan import Plan
from conveyor.core.rules import may_start
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2

MAX_RECORDS = 60
"""Step records changed by one commit; the store takes 96 operations, and claims and objects need room beside."""

MAX_RECORD_BYTES = 512 << 10
"""Stored records taken up by one commit, except the last; the store takes 1.25 MiB, and what is new comes on top."""

MAX_ATTEMPTS_KEPT = 10
MAX_LATE_RESULTS_KEPT = 5
MAX_LATE_MESSAGE = 1024
MAX_LOSSES = 3
"""How often the worker of a step may be lost before the step fails."""


class Draft:
    """A mutable copy of a run's state; the state that it came from stays as it is.

    `now` is what deadlines count from. `stamp` is what is written down: it never runs backwards within a run.
    `thorough` has everything looked at that may follow, not only what the event touched.
    """

    __slots__ = (
        "_steps",
        "bytes_taken",
        "candidates",
        "changed",
        "ended_steps",
        "failed",
        "freed",
        "head",
        "inputs",
        "jitter",
        "joins",
        "kept",
        "leaves",
        "locked",
        "matrices",
        "more",
        "now",
        "open_finally",
        "open_main",
        "open_needs",
        "over",
        "plan",
        "ready",
        "reasons",
        "stamp",
        "states",
        "stops",
        "thorough",
        "timers",
        "withdrawals",
    )

    def __init__(self, old: RunState, now: int, jitter: float, *, thorough: bool = False) -> None:
        self.plan: Plan = old.plan
        self.inputs = old.inputs
        self.head = head = storage_pb2.RunHead()
        head.CopyFrom(old.head)
        self.states = bytearray(head.step_states)
        self.reasons = bytearray(head.step_reasons)
        self.now = now
        self.stamp = max(now, head.update_time)
        self.jitter = jitter
        self.thorough = thorough
        self._steps = old.steps.copy()
        self.open_needs = old.open_needs.copy()
        self.open_main = old.open_main
        self.open_finally = old.open_finally
        self.failed = old.failed
        self.kept = old.kept
        self.matrices: set[int] = set()
        self.changed: set[int] = set()
        self.bytes_taken = 0
        self.more = False
        self.candidates: list[int] = []
        self.ready: list[int] = []
        self.stops: list[Stop] = []
        self.withdrawals: list[Withdraw] = []
        self.timers: list[int] = []
        self.freed: list[str] = []
        self.ended_steps: list[int] = []
        self.joins: list[int] = []
        self.leaves: list[int] = []
        self.locked = 0
        self.over = head.state in TERMINAL_RUN

    # Reading

    def peek(self, index: int) -> storage_pb2.StepRecord | None:
        """The record for reading."""
        return self._steps[index]

    @property
    def cancelling(self) -> bool:
        """Whether no new main step may start."""
        return self.head.state == run_pb2.RUN_STATE_CANCELLING

    def may_start(self, index: int) -> bool:
        """Whether the step may be given to a worker, as far as the run is concerned."""
        return may_start(self.plan, self.head, self.states, self.failed, index)

    def fits(self, index: int) -> bool:
        """Whether this commit has room for the record of the step; if not, another must follow."""
        # A claim on a lock is made or given up by one more operation.
        operations = len(self.changed) + self.locked
        if index in self.changed or (operations < MAX_RECORDS and self.bytes_taken < MAX_RECORD_BYTES):
            return True
        self.more = True
        return False

    def has_room(self, size: int) -> bool:
        """Whether this commit has room for a new record of so many bytes; if not, another must follow."""
        if self.bytes_taken + size <= MAX_RECORD_BYTES:
            return True
        self.more = True
        return False

    # Primitives

    def mark(self, index: int) -> None:
        """Have the record of a step stored."""
        self.changed.add(index)
        if self.plan.steps[index].lock is not None:
            self.locked += 1

    def edit(self, index: int) -> storage_pb2.StepRecord:
        """The record of a step that was queued before, for changing: a copy, made once."""
        record = self._steps[index]
        if record is None:
            raise ValueError(f"step {self.plan.steps[index].id} was never queued")
        if index in self.changed:
            return record
        copy = storage_pb2.StepRecord()
        copy.CopyFrom(record)
        self._steps[index] = copy
        self.mark(index)
        self.bytes_taken += copy.ByteSize()
        return copy

    def set_state(
        self,
        index: int,
        state: run_pb2.StepState.ValueType,
        reason: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED,
    ) -> None:
        """Write the state of a step that was queued before, into its record and into the head."""
        record = self.edit(index)
        record.state = state
        record.reason = reason
        self.states[index] = state
        self.reasons[index] = reason

    def judge(self, index: int) -> tuple[StepInputs, Seen]:
        """Who evaluates the expressions of a step, and what they see."""
        if self.inputs is None:
            raise ValueError(f"nobody evaluates the expressions of step {self.plan.steps[index].id}")
        return self.inputs, Seen(self.plan, self.head, self.states, self.reasons, self._steps)

    def verdict(self, index: int) -> Verdict:
        """What the expressions of a step make of it."""
        inputs, seen = self.judge(index)
        return inputs.judge(index, seen)

    def admit(self, index: int, verdict: Verdict) -> None:
        """Do what its expressions make of a step that never was queued: it waits, is skipped, or fails."""
        if not verdict.reason:
            self.queue(index, lock=verdict.lock)
            if verdict.message:
                self.edit(index).message = verdict.message
            if verdict.params:
                self.edit(index).params = verdict.params
                self.bytes_taken += len(verdict.params)
            if verdict.selector is not None:
                self.edit(index).worker_selector.CopyFrom(verdict.selector)
                self.bytes_taken += verdict.selector.ByteSize()
            return
        if verdict.reason == run_pb2.STEP_REASON_CONDITION_FALSE:
            self.finish(index, run_pb2.STEP_STATE_SKIPPED, verdict.reason)
            return
        # It had no attempt; its record keeps what is wrong.
        self.begin(index)
        self.finish(index, run_pb2.STEP_STATE_FAILED, verdict.reason, verdict.message)

    def begin(self, index: int) -> storage_pb2.StepRecord:
        """The record of a step that has none yet."""
        step = self.plan.steps[index]
        record = storage_pb2.StepRecord(step=step.id, queue_time=self.stamp)
        if step.is_instance and (matrix := self.peek(step.matrix_step)) is not None:
            record.matrix_step = matrix.step
            record.matrix = values_of(matrix, index)
            self.bytes_taken += len(record.matrix)
        self._steps[index] = record
        self.mark(index)
        return record

    def grow(self, plan: Plan) -> None:
        """Go on with a plan that has more steps at its end: instances, that need nothing."""
        added = plan.steps[len(self.plan.steps) :]
        self.plan = plan
        self.states.extend([run_pb2.STEP_STATE_PENDING] * len(added))
        self.reasons.extend(bytes(len(added)))
        self._steps.extend([None] * len(added))
        self.open_needs.extend([0] * len(added))
        if added[0].is_finally:
            self.open_finally += len(added)
        else:
            self.open_main += len(added)

    def take_over(self, index: int, record: storage_pb2.StepRecord) -> None:
        """Have an instance succeed as it did in the run that this one retries; its record is kept with the snapshot."""
        self._steps[index] = record
        self.states[index], self.reasons[index] = record.state, record.reason
        self.head.result_bytes += result_bytes(record)
        self.open_main -= 1

    def queue(self, index: int, *, next_attempt: bool = False, lock: str = "") -> None:
        """Make a step ready for a worker: its first attempt, its next one, or the same one again.

        One with a lock waits for that first. `lock` is its key, if that came of expressions.
        """
        step = self.plan.steps[index]
        if self._steps[index] is None:
            record = self.begin(index)
            record.attempt = 0 if step.gate else 1
        else:
            record = self.edit(index)
            record.message = ""
            record.start_time = 0
            if next_attempt:
                record.attempt += 1
                # The result that counts is one of the current attempt.
                self.head.result_bytes -= len(record.result.data)
                record.ClearField("result")
        record.ready_time = self.stamp
        if self.plan.broadcast:
            # The answers to a broadcast are due together, whoever got it.
            record.next_time = min(record.queue_time, self.now) + step.timeout
        else:
            record.next_time = self.now + step.queue_timeout if step.queue_timeout else 0
        if record.next_time:
            self.timers.append(record.next_time)
        if step.gate is not None:
            record.message = step.gate.message
            self.set_state(index, run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_REASON_AWAITING_DECISION)
        elif step.lock is not None and not record.lock.held:
            self._join(index, lock or step.lock.key, step.lock.limit)
        else:
            self._offer(index)

    def _offer(self, index: int) -> None:
        """Nothing but a worker is missing."""
        self.set_state(index, run_pb2.STEP_STATE_QUEUED)
        step = self.plan.steps[index]
        if step.driver or step.calls:
            self.ready.append(index)

    def _join(self, index: int, key: str, limit: int) -> None:
        record = self.edit(index)
        record.lock.key = key
        record.lock.limit = limit
        record.message = waiting_message(key)
        self.set_state(index, run_pb2.STEP_STATE_QUEUED, run_pb2.STEP_REASON_WAITING_FOR_LOCK)
        self.joins.append(index)

    def grant(self, index: int) -> None:
        """The step has the lock that it waited for."""
        record = self.edit(index)
        record.lock.held = True
        record.message = ""
        record.ready_time = self.stamp
        self._offer(index)

    def leave(self, index: int, claim: storage_pb2.LockClaim) -> None:
        """Give up a claim, held or not."""
        claim.held = False
        if index in self.joins:
            self.joins.remove(index)
        else:
            self.leaves.append(index)

    def take_back(self, index: int) -> None:
        """Queue the current attempt again: nobody ever had it, so neither does the history."""
        record = self.edit(index)
        del record.attempts[-1]
        self._release(index, record)
        self.queue(index)

    def _release(self, index: int, record: storage_pb2.StepRecord) -> None:
        """Forget who has the current attempt; its place is free for other work."""
        self.freed.append(record.token)
        if record.transport == run_pb2.TRANSPORT_JETSTREAM and record.ticket.sequence:
            self.withdrawals.append(withdrawal(index, record.token, record.ticket))
        record.token = ""
        record.session = ""
        record.worker = ""
        record.transport = run_pb2.TRANSPORT_UNSPECIFIED
        record.ClearField("ticket")
        record.cancel_sent = False

    def end_attempt(
        self,
        index: int,
        state: run_pb2.StepState.ValueType,
        reason: run_pb2.StepReason.ValueType,
        message: str,
        digest: bytes = b"",
    ) -> None:
        """Close the current attempt in the history, if it was given out, and free its place."""
        record = self.edit(index)
        if not record.token:
            return
        attempt = record.attempts[-1]
        # Steps are skipped, attempts are not.
        attempt.state = run_pb2.STEP_STATE_CANCELLED if state == run_pb2.STEP_STATE_SKIPPED else state
        attempt.reason = reason
        attempt.message = message
        attempt.end_time = self.stamp
        attempt.result_digest = digest
        self._release(index, record)

    def finish(
        self,
        index: int,
        state: run_pb2.StepState.ValueType,
        reason: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED,
        message: str = "",
        digest: bytes = b"",
    ) -> None:
        """Bring a step to its end, with its current attempt, and have the steps that need it judged."""
        self.ended_steps.append(index)
        if self._steps[index] is None:
            self.states[index] = state
            self.reasons[index] = reason
        else:
            self.end_attempt(index, state, reason, message, digest)
            self.set_state(index, state, reason)
            record = self.edit(index)
            record.message = message
            record.end_time = self.stamp
            record.next_time = 0
            if record.lock.key:
                self.leave(index, record.lock)
        step = self.plan.steps[index]
        if step.is_finally:
            self.open_finally -= 1
        else:
            self.open_main -= 1
        if step.is_instance:
            self.matrices.add(step.matrix_step)
            return
        if step.is_finally:
            return
        if state == run_pb2.STEP_STATE_FAILED and not step.allow_failure:
            # The first failure stops others; later ones find them stopped.
            self.thorough = self.thorough or not self.failed
            self.failed += 1
        open_needs = self.open_needs
        for dependent in step.dependents:
            open_needs[dependent] -= 1
            if not open_needs[dependent]:
                self.candidates.append(dependent)

    def tell_to_stop(self, index: int, message: str, grace: int) -> None:
        """Have the worker of a running step told to stop, or its run."""
        record = self.edit(index)
        record.cancel_sent = True
        self.stops.append(
            Stop(index, record.attempt, record.session, record.transport, record.token, message, max(grace, 0))
        )

    def retry_or_fail(
        self,
        index: int,
        reason: run_pb2.StepReason.ValueType,
        message: str,
        *,
        retryable: bool,
        digest: bytes = b"",
    ) -> None:
        """End an attempt that failed or timed out, and what follows from it."""
        record = self.edit(index)
        record.failures += 1
        retry = self.plan.steps[index].retry
        if not retryable or record.failures >= retry.max_attempts or not self.may_start(index):
            self.finish(index, run_pb2.STEP_STATE_FAILED, reason, message, digest)
            return
        self.end_attempt(index, run_pb2.STEP_STATE_FAILED, reason, message, digest)
        wait = retry.backoff(record.failures, self.jitter)
        if not wait:
            self.queue(index, next_attempt=True)
            return
        record.message = message
        record.next_time = self.now + wait
        self.timers.append(record.next_time)
        self.set_state(index, run_pb2.STEP_STATE_RETRYING, reason)

    def begin_cancelling(
        self, outcome: run_pb2.RunState.ValueType, reason: run_pb2.RunReason.ValueType, message: str, grace: int
    ) -> None:
        """From now on no main step starts; the run is going to end with this outcome."""
        head = self.head
        if head.state == run_pb2.RUN_STATE_PENDING:
            # It never began, so there is nothing for finally steps to clean up.
            head.finally_deadline = OVERDUE
        head.state = run_pb2.RUN_STATE_CANCELLING
        head.outcome = outcome
        head.reason = reason
        head.message = message
        head.cancel_deadline = self.now + grace
        head.cancel_grace = grace
        self.timers.append(head.cancel_deadline)

    # The end

    def decide(
        self,
        disposition: result_pb2.Disposition.ValueType = result_pb2.DISPOSITION_UNSPECIFIED,
        message: str = "",
        rest: Event | None = None,
    ) -> Decision:
        """The Decision that all of this comes to."""
        head = self.head
        head.step_states = bytes(self.states)
        head.step_reasons = bytes(self.reasons)
        head.update_time = self.stamp
        return Decision(
            state=RunState(
                self.plan,
                head,
                self._steps,
                self.open_needs,
                self.open_main,
                self.open_finally,
                self.failed,
                self.inputs,
                self.kept,
            ),
            dirty=True,
            changed=frozenset(self.changed),
            ready=tuple([i for i in self.ready if self.states[i] == run_pb2.STEP_STATE_QUEUED]) if self.ready else (),
            stops=tuple(self.stops),
            withdrawals=tuple(self.withdrawals),
            timers=tuple(self.timers),
            freed=tuple(self.freed),
            ended=not self.over and head.state in TERMINAL_RUN,
            ended_steps=tuple(self.ended_steps),
            joins=tuple(self.joins),
            leaves=tuple(self.leaves),
            more=self.more,
            disposition=disposition,
            message=message,
            rest=rest,
        )


def withdrawal(index: int, token: str, ticket: storage_pb2.Ticket) -> Withdraw:
    """The command to take a ticket back; with a copy, since records let go of theirs."""
    copy = storage_pb2.Ticket()
    copy.CopyFrom(ticket)
    return Withdraw(index, token, copy)

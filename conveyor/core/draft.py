"""One transition while it is being made: copies what it changes, and ends as a Decision."""

from __future__ import annotations

from conveyor.core.inputs import Verdict
from conveyor.core.locks import never_comes, waiting_message
from conveyor.core.model import OVERDUE, Stop, Withdraw
from conveyor.core.run_copy import RunCopy
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

MAX_ATTEMPTS_KEPT = 10
MAX_LATE_RESULTS_KEPT = 5
MAX_LATE_MESSAGE = 1024
MAX_LOSSES = 3
"""How often the worker of a step may be lost before the step fails."""


class Draft(RunCopy):
    """A copy with all that becomes of its steps, and of the run."""

    __slots__ = ()

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
        record, head = self.edit(index), self.head
        if never_comes(key, limit, (head.lock, *head.outer_locks)):
            record.attempt = 0
            message = f"it would wait for lock {key}, which a run that it is within holds until it has ended"
            self.finish(index, run_pb2.STEP_STATE_FAILED, run_pb2.STEP_REASON_INPUT_INVALID, message)
            return
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


def withdrawal(index: int, token: str, ticket: storage_pb2.Ticket) -> Withdraw:
    """The command to take a ticket back; with a copy, since records let go of theirs."""
    copy = storage_pb2.Ticket()
    copy.CopyFrom(ticket)
    return Withdraw(index, token, copy)

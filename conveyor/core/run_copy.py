"""A copy of a run's state that can be changed, and what came of changing it."""

from __future__ import annotations

from conveyor.core.events import Event
from conveyor.core.inputs import Seen, StepInputs, Verdict
from conveyor.core.matrix import values_of
from conveyor.core.model import TERMINAL_RUN, Decision, RunState, Stop, Withdraw, result_bytes
from conveyor.core.plan import Plan
from conveyor.core.rules import may_start
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2

MAX_RECORDS = 60
"""Step records changed by one commit; the store takes 96 operations, and claims and objects need room beside."""

MAX_RECORD_BYTES = 512 << 10
"""Stored records taken up by one commit, except the last; the store takes 1.25 MiB, and what is new comes on top."""


class RunCopy:
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

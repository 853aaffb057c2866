"""What the core works on: the state of a run, and the decision that an event leads to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from conveyor.core.events import Event
from conveyor.core.inputs import StepInputs
from conveyor.core.matrix import grown, is_expanded
from conveyor.core.plan import Plan
from conveyor.core.selectors import Selector, compile_selector
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2

TERMINAL_RUN = frozenset({run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED})
TERMINAL_STEP = frozenset(
    {
        run_pb2.STEP_STATE_SUCCEEDED,
        run_pb2.STEP_STATE_FAILED,
        run_pb2.STEP_STATE_CANCELLED,
        run_pb2.STEP_STATE_SKIPPED,
    }
)

OVERDUE = 1
"""A deadline that has passed whatever the clock says."""


@dataclass(slots=True)
class RunState:
    """A run as the core sees it; never changed, only replaced (not frozen: that makes every decision 10 % slower).

    `steps[i]` is the record of step i, None until it is QUEUED for the first time. The counters derive from
    `head.step_states`: `open_needs[i]` needs of step i that are not terminal, how many main and finally steps are
    not, and how many main steps failed although they must not; an instance of a matrix counts there through its step
    alone. `inputs` evaluates expressions; only a plan that is judged needs it. `kept` are instances that succeeded in
    the run that this one retries, by their ids, until their matrix is expanded.
    """

    plan: Plan
    head: storage_pb2.RunHead
    steps: list[storage_pb2.StepRecord | None]
    open_needs: list[int]
    open_main: int
    open_finally: int
    failed: int
    inputs: StepInputs | None = field(default=None, compare=False)
    kept: Mapping[str, storage_pb2.StepRecord] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        plan: Plan,
        head: storage_pb2.RunHead,
        records: Iterable[storage_pb2.StepRecord],
        inputs: StepInputs | None = None,
    ) -> RunState:
        """The state from what is stored; `plan` is the pipeline's.

        Raises KeyError for a record of a step that the plan does not have, ValueError for instances out of place.
        """
        records = list(records)
        plan = grown(plan, records)
        states = head.step_states
        kept = _not_placed(records)
        steps: list[storage_pb2.StepRecord | None] = [None] * len(plan.steps)
        for record in records:
            if record.inherited and record.matrix_step:
                # It counts if it was found to be of the same values, when its matrix was expanded.
                index = plan.index.get(record.step, -1)
                if record.step in kept or index < 0 or states[index] != record.state:
                    continue
            steps[plan.index[record.step]] = record
        done = [state in TERMINAL_STEP for state in states]
        return cls(
            plan=plan,
            head=head,
            steps=steps,
            open_needs=[sum(not done[need] for need in step.needs) for step in plan.steps],
            open_main=sum(not done[i] for i in plan.mains),
            open_finally=sum(not done[i] for i in plan.finals),
            failed=sum(
                states[step.index] == run_pb2.STEP_STATE_FAILED and not step.allow_failure
                for step in plan.steps[: plan.main]
            ),
            inputs=inputs,
            kept=kept,
        )

    @property
    def terminal(self) -> bool:
        """Whether the run has ended."""
        return self.head.state in TERMINAL_RUN

    def selector(self, index: int) -> Selector:
        """Which workers may take a step."""
        record = self.steps[index]
        if record is not None and record.HasField("worker_selector"):
            return compile_selector(record.worker_selector)
        return self.plan.steps[index].selector


def _not_placed(records: Sequence[storage_pb2.StepRecord]) -> dict[str, storage_pb2.StepRecord]:
    """Inherited instances whose matrix was not expanded yet."""
    expanded = {record.step for record in records if is_expanded(record)}
    return {r.step: r for r in records if r.inherited and r.matrix_step and r.matrix_step not in expanded}


def new_run(
    plan: Plan,
    head: storage_pb2.RunHead,
    inherited: Iterable[storage_pb2.StepRecord] = (),
    inputs: StepInputs | None = None,
) -> RunState:
    """The state of a run that begins: fills states, deadline and counters of `head` and keeps it.

    `inherited` are the succeeded steps of the run that this one retries.
    """
    kept = list(inherited)
    full, waiting = grown(plan, kept), _not_placed(kept)
    taken = [record for record in kept if record.step not in waiting]
    states = bytearray([run_pb2.STEP_STATE_PENDING]) * len(full.steps)
    reasons = bytearray(len(full.steps))
    for places in full.instances.values():
        # Of a matrix that succeeded, those that have no record of their success were skipped by their condition.
        for place in places:
            states[place], reasons[place] = run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_REASON_CONDITION_FALSE
    for record in taken:
        index = full.index[record.step]
        states[index], reasons[index] = record.state, record.reason
    head.state = run_pb2.RUN_STATE_PENDING
    head.step_states = bytes(states)
    head.step_reasons = bytes(reasons)
    head.deadline = head.create_time + plan.timeout
    # The clock may have been set back since the steps that are taken over ended.
    head.update_time = max(head.create_time, *(record.end_time for record in kept), 0)
    head.result_bytes = sum(map(result_bytes, taken))
    return RunState.of(plan, head, kept, inputs)


def result_bytes(record: storage_pb2.StepRecord) -> int:
    """What a step has of the bytes that the results of its run may take: a gate's decisions are among them."""
    return len(record.result.data) + sum(made.ByteSize() for made in record.decisions)


def keep_waiting(state: RunState) -> None:
    """Have a run that is not stored yet wait for older ones; its timeout counts from its start."""
    head = state.head
    head.deadline = 0
    head.reason = run_pb2.RUN_REASON_WAITING_FOR_RUN
    head.message = f"older runs of {head.definition} {head.resource} on pipeline {head.pipeline} go first"


def waits_for_runs(head: storage_pb2.RunHead) -> bool:
    """Whether the run has not started because older ones go first."""
    return head.state == run_pb2.RUN_STATE_PENDING and head.reason == run_pb2.RUN_REASON_WAITING_FOR_RUN


# What comes out


@dataclass(frozen=True, slots=True)
class Stop:
    """A worker is to be told to stop an attempt, or the run that a step waits for is to be cancelled."""

    index: int
    attempt: int
    session: str
    transport: run_pb2.Transport.ValueType
    token: str
    message: str
    grace: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A ticket is to be taken back from the broker."""

    index: int
    token: str
    ticket: storage_pb2.Ticket


@dataclass(slots=True)
class Decision:
    """The new state with what must be stored and done.

    `changed`: indexes of the step records to store; the head is to be stored whenever `dirty`. `ready`: steps that
    became QUEUED and belong to nobody yet. `stops` and `withdrawals` are effects for after the commit. `timers`:
    new times at which a Tick is due. `ended`: the run became terminal; `ended_steps`: so did these steps. `more`: a
    Continue must follow, or `rest` if there is one. `freed`: tokens whose attempts ended. `joins` and `leaves`: steps
    (or `locks.RUN`) whose claim on a lock is made, or given up, in this commit. `disposition` and `message` answer a
    result. A decision that is not dirty may still have withdrawals.
    """

    state: RunState
    dirty: bool = False
    changed: frozenset[int] = frozenset()
    ready: tuple[int, ...] = ()
    stops: tuple[Stop, ...] = ()
    withdrawals: tuple[Withdraw, ...] = ()
    timers: tuple[int, ...] = ()
    freed: tuple[str, ...] = ()
    ended: bool = False
    ended_steps: tuple[int, ...] = ()
    joins: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()
    more: bool = False
    disposition: result_pb2.Disposition.ValueType = result_pb2.DISPOSITION_UNSPECIFIED
    message: str = ""
    rest: Event | None = None

    def then(self, later: Decision) -> Decision:
        """Both as one decision, for one commit; `later` was made from this one's state."""
        if not later.dirty and not later.withdrawals and not later.disposition:
            return self
        steps = later.state.steps
        still_ready = tuple(
            i
            for i in self.ready
            if (record := steps[i]) is not None and record.state == run_pb2.STEP_STATE_QUEUED and not record.token
        )
        return Decision(
            state=later.state,
            dirty=self.dirty or later.dirty,
            changed=self.changed | later.changed,
            ready=still_ready + tuple(i for i in later.ready if i not in still_ready),
            stops=self.stops + later.stops,
            withdrawals=self.withdrawals + later.withdrawals,
            timers=self.timers + later.timers,
            freed=self.freed + later.freed,
            ended=self.ended or later.ended,
            ended_steps=self.ended_steps + later.ended_steps,
            joins=tuple(i for i in self.joins if i not in later.leaves) + later.joins,
            leaves=self.leaves + tuple(i for i in later.leaves if i not in self.joins),
            more=self.more or later.more,
            disposition=self.disposition or later.disposition,
            message=self.message or later.message,
            rest=self.rest or later.rest,
        )

"""What the core works on: the state of a run, the events that change it, and the decision that comes out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from conveyor.core.plan import Plan
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


@dataclass(frozen=True, slots=True)
class RunState:
    """A run as the core sees it; never changed, only replaced.

    `steps[i]` is the record of step i, None until it is QUEUED for the first time. The counters derive from
    `head.step_states`: `open_needs[i]` needs of step i that are not terminal, and how many main and finally steps
    are not.
    """

    plan: Plan
    head: storage_pb2.RunHead
    steps: list[storage_pb2.StepRecord | None]
    open_needs: list[int]
    open_main: int
    open_finally: int

    @classmethod
    def of(cls, plan: Plan, head: storage_pb2.RunHead, records: Iterable[storage_pb2.StepRecord]) -> RunState:
        """The state from what is stored. Raises KeyError for a record of a step that the plan does not have."""
        steps: list[storage_pb2.StepRecord | None] = [None] * len(plan.steps)
        for record in records:
            steps[plan.index[record.step]] = record
        states = head.step_states
        done = [state in TERMINAL_STEP for state in states]
        return cls(
            plan=plan,
            head=head,
            steps=steps,
            open_needs=[sum(not done[need] for need in step.needs) for step in plan.steps],
            open_main=sum(not done[i] for i in range(plan.main)),
            open_finally=sum(not done[i] for i in range(plan.main, len(plan.steps))),
        )

    @property
    def terminal(self) -> bool:
        """Whether the run has ended."""
        return self.head.state in TERMINAL_RUN


def new_run(plan: Plan, head: storage_pb2.RunHead, inherited: Iterable[storage_pb2.StepRecord] = ()) -> RunState:
    """The state of a run that begins: fills states, deadline and counters of `head` and keeps it.

    `inherited` are the succeeded steps of the run that this one retries.
    """
    states = bytearray([run_pb2.STEP_STATE_PENDING]) * len(plan.steps)
    kept = list(inherited)
    for record in kept:
        states[plan.index[record.step]] = record.state
    head.state = run_pb2.RUN_STATE_PENDING
    head.step_states = bytes(states)
    head.step_reasons = bytes(len(plan.steps))
    head.deadline = head.create_time + plan.timeout
    head.update_time = head.create_time
    head.result_bytes = sum(len(record.result.data) for record in kept)
    return RunState.of(plan, head, kept)


def inheritable(state: RunState) -> list[storage_pb2.StepRecord]:
    """The records that a retry of this run takes over: main steps that succeeded and whose needs all are taken over."""
    kept: list[storage_pb2.StepRecord] = []
    taken = [False] * len(state.plan.steps)
    order = [step.index for step in state.plan.steps[: state.plan.main] if not step.needs]
    open_needs = [len(step.needs) for step in state.plan.steps]
    for index in order:
        step, record = state.plan.steps[index], state.steps[index]
        taken[index] = (
            state.head.step_states[index] == run_pb2.STEP_STATE_SUCCEEDED
            and record is not None
            and all(taken[need] for need in step.needs)
        )
        if taken[index] and record is not None:
            copy = storage_pb2.StepRecord()
            copy.CopyFrom(record)
            copy.inherited = True
            kept.append(copy)
        for dependent in step.dependents:
            open_needs[dependent] -= 1
            if not open_needs[dependent]:
                order.append(dependent)
    return kept


# Events


@dataclass(frozen=True, slots=True)
class RunCreated:
    """The run is stored and may start."""


@dataclass(frozen=True, slots=True)
class Continue:
    """Go on with what one commit could not hold; derives all of it from the state, so it never does harm."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A queued step goes to a worker: at once over gRPC, or as a ticket that is about to be published."""

    index: int
    session: str
    worker: str
    token: str
    transport: run_pb2.Transport.ValueType


@dataclass(frozen=True, slots=True)
class Claimed:
    """Several claims of one run, in one commit."""

    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued step has nobody to go to; says why. Changes nothing when that is known already."""

    index: int
    reason: run_pb2.StepReason.ValueType
    message: str


@dataclass(frozen=True, slots=True)
class NotReceived:
    """The assignment never reached its worker: the step is queued again, the attempt does not count."""

    index: int
    token: str


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The session is gone for good; its running steps are tried again within a budget of their own."""

    session: str
    message: str


@dataclass(frozen=True, slots=True)
class TicketSent:
    """The ticket of the token is on the broker."""

    index: int
    token: str
    ticket: storage_pb2.Ticket


@dataclass(frozen=True, slots=True)
class TicketDelivered:
    """The ticket was seen to be delivered: the step runs from now."""

    index: int
    token: str


@dataclass(frozen=True, slots=True)
class TicketWithdrawn:
    """The ticket was taken back before its delivery, or the broker lost it: the step is free again."""

    index: int
    token: str


@dataclass(frozen=True, slots=True)
class ResultReceived:
    """A DriverResult. `step` empty: of an older driver, that names neither step, attempt nor token.

    `invalid` says why a result that cannot be kept fails its step (a StepReason), with `result.message` for people.
    """

    step: str
    attempt: int
    token: str
    driver: str
    result: storage_pb2.StoredResult
    digest: bytes
    invalid: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The run shall end. `grace` in microseconds; `force` does not wait for workers, nor for finally steps."""

    message: str
    grace: int
    force: bool = False
    reason: run_pb2.RunReason.ValueType = run_pb2.RUN_REASON_CANCEL_REQUESTED


@dataclass(frozen=True, slots=True)
class InputRefused:
    """What a queued step's driver should receive cannot be sent; the step fails."""

    index: int
    reason: run_pb2.StepReason.ValueType
    message: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: deadlines, back-offs and bounds that are due take effect."""


Event = (
    RunCreated
    | Continue
    | Claimed
    | Waiting
    | NotReceived
    | WorkerLost
    | TicketSent
    | TicketDelivered
    | TicketWithdrawn
    | ResultReceived
    | CancelRequested
    | InputRefused
    | Tick
)

# What comes out


@dataclass(frozen=True, slots=True)
class Stop:
    """A worker is to be told to stop an attempt."""

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


@dataclass(frozen=True, slots=True)
class Decision:
    """The new state with what must be stored and done.

    `changed`: indexes of the step records to store; the head is to be stored whenever `dirty`. `ready`: steps that
    became QUEUED and belong to nobody yet. `stops` and `withdrawals` are effects for after the commit. `timers`:
    new times at which a Tick is due. `more`: a Continue must follow. `freed`: tokens whose attempts ended.
    `disposition` and `message` answer a result.
    """

    state: RunState
    dirty: bool = False
    changed: frozenset[int] = frozenset()
    ready: tuple[int, ...] = ()
    stops: tuple[Stop, ...] = ()
    withdrawals: tuple[Withdraw, ...] = ()
    timers: tuple[int, ...] = ()
    freed: tuple[str, ...] = ()
    more: bool = False
    disposition: result_pb2.Disposition.ValueType = result_pb2.DISPOSITION_UNSPECIFIED
    message: str = ""

    def then(self, later: Decision) -> Decision:
        """Both as one decision, for one commit; `later` was made from this one's state."""
        if not later.dirty:
            return self
        steps = later.state.steps
        still_ready = tuple(
            i
            for i in self.ready
            if (record := steps[i]) is not None and record.state == run_pb2.STEP_STATE_QUEUED and not record.token
        )
        return Decision(
            state=later.state,
            dirty=True,
            changed=self.changed | later.changed,
            ready=still_ready + later.ready,
            stops=self.stops + later.stops,
            withdrawals=self.withdrawals + later.withdrawals,
            timers=self.timers + later.timers,
            freed=self.freed + later.freed,
            more=self.more or later.more,
            disposition=self.disposition or later.disposition,
            message=self.message or later.message,
        )


@dataclass(slots=True)
class Effects:
    """Collects the effects of one transition."""

    ready: list[int] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    withdrawals: list[Withdraw] = field(default_factory=list)
    timers: list[int] = field(default_factory=list)
    freed: list[str] = field(default_factory=list)

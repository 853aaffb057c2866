"""The events that change a run: what workers, people, brokers and the time do to it."""

from __future__ import annotations

from dataclasses import dataclass

from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, run_pb2


@dataclass(frozen=True, slots=True)
class RunCreated:
    """The run is stored and may start; one that waits for older runs only if it is its `turn`."""

    turn: bool = False


@dataclass(frozen=True, slots=True)
class Continue:
    """Go on with what one commit could not hold; the same as Tick.

    Derives all of it from the state, so it never does harm.
    """


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
class Call:
    """A queued step runs its pipeline, in a run that is going to have this id."""

    index: int
    run: str


@dataclass(frozen=True, slots=True)
class Called:
    """Several calls of one run, in one commit."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class ChildEnded:
    """The run that a step waits for has ended in this state, with `data`, a serialized Struct.

    `exists`: it is there; one that was refused or withdrawn before it was made is not. `invalid` says why the step
    fails however the run ended (a StepReason), with `message` for people.
    """

    step: str
    run: str
    state: run_pb2.RunState.ValueType
    message: str = ""
    data: bytes = b""
    invalid: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED
    exists: bool = True


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

    `digest` is of the content, always of the same length. `message_id` names the broker's message that such a driver
    sent, so that its redelivery is not taken for the answer to the driver's next step: stream, its creation time, and
    sequence.
    `invalid` says why a result that cannot be kept fails its step (a StepReason), with `result.message` for people.
    """

    step: str
    attempt: int
    token: str
    driver: str
    result: storage_pb2.StoredResult
    digest: bytes
    invalid: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED
    message_id: bytes = b""


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
class StepDecided:
    """Somebody approves or rejects a gate."""

    index: int
    decision: pipeline_pb2.Decision.ValueType
    by: str
    comment: str = ""


@dataclass(frozen=True, slots=True)
class LockGranted:
    """A step, or the run as a whole (`locks.RUN`), holds the lock that it waits for."""

    index: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: deadlines, back-offs and bounds that are due take effect."""


Event = (
    RunCreated
    | Continue
    | Claimed
    | Called
    | ChildEnded
    | Waiting
    | NotReceived
    | WorkerLost
    | TicketSent
    | TicketDelivered
    | TicketWithdrawn
    | ResultReceived
    | CancelRequested
    | InputRefused
    | StepDecided
    | LockGranted
    | Tick
)

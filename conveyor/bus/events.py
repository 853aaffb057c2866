"""What the engine hears from the bus."""

from __future__ import annotations

from dataclasses import dataclass

from conveyor.v1 import result_pb2


@dataclass(frozen=True, slots=True)
class RunCreated:
    """A server stored a new run."""

    namespace: str
    run: str


@dataclass(frozen=True, slots=True)
class ResultArrived:
    """A driver published what it came to.

    `step`, `attempt` and `token` are "", 0 and "" when the driver did not send the resource's metadata back. Exactly
    one of `result` and `invalid` is set; `invalid` says why what the driver sent cannot be a result, so that the step
    can fail instead of waiting for ever. `message_id` tells the broker's message from all others, however often it is
    delivered.
    """

    namespace: str
    run: str
    step: str
    attempt: int
    token: str
    driver: str
    result: result_pb2.DriverResult | None
    invalid: str = ""
    message_id: bytes = b""


InboxEvent = RunCreated | ResultArrived

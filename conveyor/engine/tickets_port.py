"""What the engine needs from drivers that take part over JetStream."""

from __future__ import annotations

from typing import Protocol

from conveyor.core.model import Stop, Withdraw
from conveyor.engine.workers import Waiter
from conveyor.state.runs import StoredRun
from conveyor.v1 import run_pb2


class Tickets(Protocol):
    """Tickets on the broker. None of these methods waits or raises; what they lead to comes back as events."""

    def consumer(self, namespace: str, driver: str, definition: str) -> tuple[str, run_pb2.StepReason.ValueType, str]:
        """The consumer that would get a ticket now, or "" with the reason and message why there is none.

        The reason is STEP_REASON_UNSPECIFIED when the driver has no consumer at all.
        """
        ...

    def takes_part(self, namespace: str, driver: str) -> bool:
        """Whether the driver has a consumer, whether or not somebody takes from it."""
        ...

    def listeners(self, namespace: str, definition: str) -> list[str]:
        """The drivers whose consumers listen to broadcasts of the definition."""
        ...

    def listener(self, namespace: str, driver: str, definition: str) -> str:
        """The driver's consumer if it listens to broadcasts of the definition, else ""."""
        ...

    def publish(self, run: StoredRun, index: int) -> None:
        """Publish the ticket of a step whose claim is stored, or find out what became of it; again without harm."""
        ...

    def publish_broadcast(self, run: StoredRun, indexes: list[int]) -> None:
        """Publish the one message of a broadcast whose claims are stored; again without harm."""
        ...

    def withdraw(self, namespace: str, run: str, driver: str, withdraw: Withdraw) -> None:
        """Take a ticket back whose step has ended."""
        ...

    def ended(self, token: str, *, answered: bool) -> None:
        """The attempt of this token is over; `answered` when its driver has said so."""
        ...

    def stop(self, namespace: str, run: str, step: str, stop: Stop) -> None:
        """Tell the driver to stop an attempt."""
        ...

    def wait(self, waiter: Waiter) -> None:
        """A step waits for this driver: have the engine claim it when a consumer pulls."""
        ...

    def leave(self, waiter: Waiter) -> None:
        """The step waits no more."""
        ...

    def workers_came(self, namespace: str, driver: str) -> None:
        """The driver has gRPC workers now: take back what is not delivered, so that they get it."""
        ...

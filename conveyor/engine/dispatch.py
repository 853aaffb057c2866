"""Who gets a step that is ready: a free worker, a JetStream consumer, or nobody yet, and then why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from conveyor.core.events import Call, Called, Claim, Claimed, Waiting
from conveyor.core.model import Decision
from conveyor.core.selectors import ANY, Selector, spell, spell_connected
from conveyor.core.transitions import apply
from conveyor.engine.sessions_view import SessionsView
from conveyor.engine.tickets_port import Tickets
from conveyor.engine.workers import Held, Pool, Worker, takes
from conveyor.state.ids import RandomBytes, RunIds
from conveyor.state.runs import StoredRun
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import run_pb2

Send = tuple[int, Worker, str]
"""A step's index, the worker that is to have it, and the token."""


@dataclass(slots=True)
class Dispatch:
    """What was reserved for a decision that is not stored yet."""

    sends: list[Send] = field(default_factory=list)
    tickets: list[int] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)


class Dispatcher:
    """Chooses; nothing here waits."""

    def __init__(self, pool: Pool, sessions: SessionsView, tickets: Tickets | None) -> None:
        self._pool = pool
        self._sessions = sessions
        self.ids = RunIds()
        self.tickets = tickets

    def dispatch(self, run: StoredRun, decision: Decision, now: int) -> tuple[Decision, Dispatch]:
        """Give what is ready to free workers, to JetStream, or into the row; to be stored with the decision.

        Steps that run a pipeline get the id of their run.
        """
        dispatch = Dispatch()
        if not decision.ready:
            return decision, dispatch
        state = decision.state
        head, broadcast = state.head, state.plan.broadcast
        claims: list[Claim] = []
        calls: list[Call] = []
        for index in decision.ready:
            step, selector = state.plan.steps[index], state.selector(index)
            if step.calls:
                calls.append(self.call(index, now))
                continue
            worker = self._pool.reserve(head.namespace, step.driver, head.definition, broadcast, selector)
            if worker is not None:
                token = new_token()
                self._pool.hold(worker, token, Held(head.namespace, head.id, index))
                claims.append(Claim(index, worker.session, worker.name, token, run_pb2.TRANSPORT_GRPC))
                dispatch.sends.append((index, worker, token))
                continue
            consumer, reason, message = self._consumer(
                head.namespace, step.driver, head.definition, broadcast, selector
            )
            if consumer:
                claims.append(Claim(index, consumer, consumer, new_token(), run_pb2.TRANSPORT_JETSTREAM))
                dispatch.tickets.append(index)
                continue
            if not reason:
                reason, message = self._explain(head.namespace, step.driver, head.definition, broadcast, selector)
            dispatch.waits.append(index)
            decision = decision.then(apply(decision.state, Waiting(index, reason, message), now))
        if claims:
            decision = decision.then(apply(decision.state, Claimed(tuple(claims)), now))
        if calls:
            decision = decision.then(apply(decision.state, Called(tuple(calls)), now))
        return decision, dispatch

    def call(self, index: int, now: int) -> Call:
        """A new run for a step that runs a pipeline."""
        return Call(index, self.ids.new(now))

    def _consumer(
        self, namespace: str, driver: str, definition: str, broadcast: bool, selector: Selector
    ) -> tuple[str, run_pb2.StepReason.ValueType, str]:
        if self.tickets is None or selector:
            # Workers over JetStream have no labels.
            return "", run_pb2.STEP_REASON_UNSPECIFIED, ""
        workers = self._pool.workers(namespace, driver)
        if broadcast:
            # It goes to all who listen, whether they pull now or not.
            by_grpc = any(worker.takes(definition, True) for worker in workers)
            name = "" if by_grpc else self.tickets.listener(namespace, driver, definition)
            return name, run_pb2.STEP_REASON_UNSPECIFIED, ""
        # A driver with gRPC workers, here or at another replica, gets no tickets: they take over once one is free.
        if workers:
            return "", run_pb2.STEP_REASON_UNSPECIFIED, ""
        return self.tickets.consumer(namespace, driver, definition)

    def why(
        self, namespace: str, driver: str, definition: str, selector: Selector
    ) -> tuple[run_pb2.StepReason.ValueType, str]:
        """Why a step of a pipeline waits now, for whichever transport its driver uses."""
        _, reason, message = self._consumer(namespace, driver, definition, False, selector)
        if reason:
            return reason, message
        return self._explain(namespace, driver, definition, False, selector)

    def _explain(
        self, namespace: str, driver: str, definition: str, broadcast: bool, selector: Selector
    ) -> tuple[run_pb2.StepReason.ValueType, str]:
        """Why no worker takes a step now."""
        wanted = f" with {spell(selector)}" if selector else ""
        workers: list[Mapping[str, str]] = []
        others = False
        for worker in self.connected(namespace, driver):
            if takes(worker, definition, broadcast, selector):
                return run_pb2.STEP_REASON_WORKERS_BUSY, f"all workers of driver {driver}{wanted} are busy"
            others = True
            if takes(worker, definition, broadcast, ANY):
                workers.append(worker.labels)
        if workers:
            return run_pb2.STEP_REASON_NO_WORKER, f"no worker{wanted} ({spell_connected(selector, workers)})"
        if others:
            return (
                run_pb2.STEP_REASON_NO_WORKER,
                f"no connected worker of driver {driver} takes resources of definition {definition}",
            )
        message = f"no worker of driver {driver}{wanted} is connected"
        if selector and self.tickets is not None and self.tickets.takes_part(namespace, driver):
            message += "; those over JetStream have no labels"
        return run_pb2.STEP_REASON_NO_WORKER, message

    def connected(self, namespace: str, driver: str) -> Iterator[Worker | storage_pb2.SessionRecord]:
        """The workers of all replicas that are there for more work: not those that drain, or whose stream is gone."""
        yield from (worker for worker in self._pool.workers(namespace, driver) if worker.connected)
        yield from self._sessions.elsewhere(namespace, driver)

    def listeners(self, namespace: str, definition: str) -> list[str]:
        """The drivers that want broadcasts of the definition, by name."""
        found = {
            worker.driver
            for worker in self._pool
            if worker.namespace == namespace and worker.outbox is not None and definition in worker.definitions
        }
        found.update(self._sessions.listeners(namespace, definition))
        if self.tickets is not None:
            found.update(self.tickets.listeners(namespace, definition))
        return sorted(found)


_RANDOM = RandomBytes()


def new_token() -> str:
    """Opaque, and not to be guessed."""
    return _RANDOM.token()

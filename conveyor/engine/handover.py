"""Between the engine and those who do the work: what they are sent, what they give back, and what waits for them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

import structlog

from conveyor.core import errors
from conveyor.core.events import Claim, Claimed, Event, NotReceived
from conveyor.core.model import Decision, Stop
from conveyor.engine import repair
from conveyor.engine.assignments import packed
from conveyor.engine.clock import Now
from conveyor.engine.dispatch import Dispatcher, Send, new_token
from conveyor.engine.tickets_port import Tickets
from conveyor.engine.workers import Held, Pool, Waiter, Worker
from conveyor.state.runs import StoredRun
from conveyor.v1 import run_pb2, worker_pb2

log = structlog.get_logger("conveyor.engine")


class Handover(ABC):
    """The part of the engine that deals with workers and their rows. Only claims wait, each in a task of its own."""

    def __init__(self, pool: Pool, dispatcher: Dispatcher, now: Now) -> None:
        self.pool = pool
        self.dispatcher = dispatcher
        self.now = now
        self._tasks: set[asyncio.Task[Any]] = set()

    @abstractmethod
    async def handle(self, namespace: str, run_id: str, event: Event) -> Decision:
        """Apply an event."""

    @abstractmethod
    async def _handle(
        self, namespace: str, run_id: str, event: Event, claimed: Send | None = None, *, patient: bool = True
    ) -> tuple[Decision, StoredRun]:
        """Apply an event; `claimed` is sent if that claims it."""

    @abstractmethod
    def stop_run(self, run: StoredRun, stop: Stop) -> None:
        """Cancel the run of a step."""

    @property
    def tickets(self) -> Tickets | None:
        """Drivers that take part over JetStream, if there is a broker."""
        return self.dispatcher.tickets

    @tickets.setter
    def tickets(self, tickets: Tickets | None) -> None:
        self.dispatcher.tickets = tickets

    # Workers

    def _send(self, run: StoredRun, index: int, worker: Worker, token: str) -> None:
        record = run.state.steps[index]
        if record is None or record.token != token or record.state != run_pb2.STEP_STATE_RUNNING:
            # The claim did not fit any more: the step went elsewhere, or the run ended.
            self.relieve(token)
        elif token not in worker.held or worker.outbox is None or worker.draining:
            # Its worker came back without it, moved, left or drains.
            self.not_received(token, run, index)
        else:
            worker.outbox.assign(token, packed(run, index, self.now()))

    def not_received(self, token: str, run: StoredRun | None = None, index: int = 0) -> None:
        """An assignment that surely never reached its worker: queue its step again."""
        worker = self.pool.holder(token)
        held = worker.held[token] if worker is not None else None
        self.relieve(token)
        if run is not None:
            self.spawn(self.handle(run.head.namespace, run.head.id, NotReceived(index, token)))
        elif held is not None:
            self.spawn(self.handle(held.namespace, held.run, NotReceived(held.index, token)))

    def _stop(self, run: StoredRun, stop: Stop) -> None:
        head, step = run.head, run.state.plan.steps[stop.index]
        if step.calls:
            self.stop_run(run, stop)
            return
        if stop.transport == run_pb2.TRANSPORT_JETSTREAM:
            if self.tickets is not None:
                self.tickets.stop(head.namespace, head.id, step.id, stop)
            return
        worker = self.pool.session(stop.session)
        if worker is None:
            return  # Another replica's, which sees it in the store's watch.
        self.tell_to_stop(worker, cancellation(head.id, step.id, stop.attempt, stop.message, stop.grace))
        if stop.grace:
            self.relieve_later(stop.token, stop.grace)

    def tell_to_stop(self, worker: Worker, told: worker_pb2.Cancellation) -> None:
        """Have a worker told to stop; one that is away is told when it comes back."""
        if worker.outbox is not None:
            worker.outbox.stop(told)

    def relieve(self, token: str) -> None:
        """The worker has no more to do with this token."""
        worker = self.pool.release(token)
        if worker is not None:
            self.pump(worker.namespace, worker.driver)

    def relieve_later(self, token: str, grace: int) -> None:
        """The same after `grace` microseconds, if it has not answered by then."""
        if self.pool.holder(token) is not None:
            asyncio.get_running_loop().call_later(grace / 1e6, self.relieve, token)

    # Steps that wait

    def wait(self, run: StoredRun, index: int) -> None:
        """Put a queued step into the row of its driver, and have JetStream looked at for it."""
        head, step, record = run.head, run.state.plan.steps[index], run.state.steps[index]
        if record is None:
            return
        waiter = Waiter(
            head.namespace,
            step.driver,
            head.definition,
            head.id,
            index,
            run.state.plan.broadcast,
            run.state.selector(index),
        )
        # What became ready while a clock was ahead does not stand behind all that comes until then.
        self.pool.wait(waiter, min(record.ready_time, self.now()), run.revision)
        if self.tickets is not None and not self.pool.workers(head.namespace, step.driver):
            self.tickets.wait(waiter)
        self.pump(head.namespace, step.driver)

    def _stop_waiting(self, run: StoredRun, decision: Decision) -> None:
        """Take steps out of their rows that wait no more: claimed, or ended by another way."""
        waiting = self.pool.waiting_steps(run.head.id)
        if waiting:
            for index in decision.changed:
                if index in waiting and not repair.waits(run.state.steps[index]):
                    self.leave_row(run.head.id, index)

    def leave_row(self, run_id: str, index: int) -> None:
        """The step waits no more."""
        waiter = self.pool.leave(run_id, index)
        if waiter is not None and self.tickets is not None:
            self.tickets.leave(waiter)

    def workers_came(self, namespace: str, driver: str) -> None:
        """A worker is ready: it gets what waits, and what is on the broker and not yet delivered."""
        if self.tickets is not None:
            self.tickets.workers_came(namespace, driver)
        self.pump(namespace, driver)

    def worker_left(self, namespace: str, driver: str) -> None:
        """A session is gone: without another one, what waits may go to a JetStream consumer."""
        if self.tickets is not None and not self.pool.workers(namespace, driver):
            for waiter in self.pool.waiters(namespace, driver):
                self.tickets.wait(waiter)

    def pump(self, namespace: str, driver: str) -> None:
        """Give waiting steps to free workers of a driver, as long as there are both."""
        while (match := self.pool.match(namespace, driver)) is not None:
            waiter, worker = match
            token = new_token()
            self.pool.hold(worker, token, Held(waiter.namespace, waiter.run, waiter.index))
            self.spawn(self._claim(waiter, worker, token))

    async def _claim(self, waiter: Waiter, worker: Worker, token: str) -> None:
        """Store the claim of a step that waited, and send it; a step that needs it no more leaves the worker free."""
        claim = Claim(waiter.index, worker.session, worker.name, token, run_pb2.TRANSPORT_GRPC)
        stored = False
        try:
            _, run = await self._handle(waiter.namespace, waiter.run, Claimed((claim,)), (waiter.index, worker, token))
            record = run.state.steps[waiter.index]
            stored = record is not None and record.token == token
        finally:
            if not stored:
                self.relieve(token)

    async def claim_ticket(self, waiter: Waiter, consumer: str) -> bool:
        """Claim a step that waits for a consumer that pulls now; the ticket follows the commit."""
        token = new_token()
        claim = Claim(waiter.index, consumer, consumer, token, run_pb2.TRANSPORT_JETSTREAM)
        _, run = await self._handle(waiter.namespace, waiter.run, Claimed((claim,)))
        record = run.state.steps[waiter.index]
        if record is None or record.token != token:
            return False
        if self.tickets is not None:
            self.tickets.publish(run, waiter.index)
        return True

    # Tasks

    def spawn(self, work: Coroutine[Any, Any, Any], *, heard: bool = False) -> asyncio.Task[Any]:
        """Run something to its end, whoever asked for it. `heard`: the caller takes its error."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done_heard if heard else self._done)
        return task

    def _done_heard(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when the caller is gone

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, errors.NotFound):
            log.error("engine_task_failed", exc_info=error)

    async def close(self) -> None:
        """Let what is under way come to its end within a second, then stop it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def cancellation(run: str, step: str, attempt: int, message: str, grace: int) -> worker_pb2.Cancellation:
    """What a worker is told when it should stop; `grace` in microseconds."""
    told = worker_pb2.Cancellation(run=run, step=step, attempt=attempt, message=message)
    told.grace.FromMicroseconds(grace)
    return told

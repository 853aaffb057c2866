"""Deliberate bugs between stored runs, workers and the broker."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from conveyor.bus import subjects
from conveyor.bus.events import InboxEvent
from conveyor.bus.tickets import TicketReceipt, Tickets
from conveyor.core.model import Decision
from conveyor.engine import inbox, sweep
from conveyor.engine.loop import Engine
from conveyor.engine.workers import Worker
from conveyor.gateway import sessions, stream
from conveyor.state import runs
from conveyor.store.port import StoreError
from conveyor.v1 import result_pb2, worker_pb2
from tests.faults.plant import plant, put

_SELDOM = ("--sweep-period", "10m")
"""A sweep repairs much: without it, what is broken stays so."""

# Answers


@plant("a gRPC result is acked, and its commit follows", 1, 4)
def ack_before_commit() -> None:
    answer = stream.answer

    async def soon(engine: Engine, namespace: str, report: result_pb2.ResultReport, driver: str) -> None:
        await asyncio.sleep(0.1)
        await answer(engine, namespace, report, driver)

    async def hasty(
        engine: Engine, namespace: str, report: result_pb2.ResultReport, driver: str
    ) -> result_pb2.ResultAck:
        engine.spawn(soon(engine, namespace, report, driver))
        return result_pb2.ResultAck(
            run=report.run,
            step=report.step,
            attempt=report.attempt,
            disposition=result_pb2.DISPOSITION_ACCEPTED,
        )

    put(stream, "answer", hasty)


@plant("a JetStream result is acknowledged to the broker, and its commit follows", 1, 3, 6, timed=False, rate=30)
def inbox_ack_before_commit() -> None:
    handle = inbox.Inbox._handle

    async def soon(self: inbox.Inbox, event: InboxEvent) -> None:
        await asyncio.sleep(0.5)
        await handle(self, event)

    async def hasty(self: inbox.Inbox, event: InboxEvent) -> None:
        self._engine.spawn(soon(self, event))

    put(inbox.Inbox, "_handle", hasty)


# Commits


@plant(
    "a commit of which nobody knows is taken for stored", 1, 3, 4, 6, store="etcd", faults=("half-open-store",), rate=30
)
def uncertain_is_stored() -> None:
    async def trusting(self: Engine, run: runs.StoredRun, decision: Decision, *, patient: bool) -> runs.StoredRun:
        return run.moved(decision.state, run.revision)

    put(Engine, "_look_for", trusting)


@plant(
    "a commit of which nobody knows is made again, whatever is stored since",
    3,
    4,
    5,
    6,
    7,
    store="etcd",
    servers=3,
    faults=("lose-answer-store",),
)
def uncertain_is_repeated() -> None:
    async def blind(self: Engine, run: runs.StoredRun, decision: Decision, *, patient: bool) -> runs.StoredRun:
        key = (run.head.namespace, run.head.id)
        while True:
            try:
                newest = await self.runs.load(*key)
                return await self.runs.commit(replace(run, revision=newest.revision), decision)
            except StoreError:
                await asyncio.sleep(0.05)

    put(Engine, "_look_for", blind)


# What is repaired


@plant("nothing sweeps", 6)
def no_sweep() -> None:
    async def nothing(self: sweep.Sweep) -> None:
        pass

    put(sweep.Sweep, "once", nothing)


@plant("a worker that is silent for its TTL is not lost", 3, 6, 9, faults=("kill-grpc-driver",))
def sessions_never_end() -> None:
    async def keep(self: sessions.Sessions, session: sessions.Session) -> None:
        pass

    put(sessions.Sessions, "_lose", keep)


@plant("what is due in a run that was found is not timed", 3, 6, arguments=_SELDOM)
def no_timers_after_a_restart() -> None:
    def forget(self: Engine, key: tuple[str, str], run: runs.StoredRun) -> None:
        pass

    put(Engine, "set_timer", forget)


# Workers and tickets


@plant("workers are not told of a cancel", 8, faults=("kill-jetstream",), rate=30)
def cancel_is_not_told() -> None:
    def silent(self: Engine, worker: Worker, told: worker_pb2.Cancellation) -> None:
        pass

    put(Engine, "tell_to_stop", silent)


@plant("a ticket is published twice, under two ids", 4, faults=("kill-grpc",))
def ticket_twice() -> None:
    publish = Tickets.publish

    async def twice(self: Tickets, *ticket: Any, **options: Any) -> TicketReceipt:
        namespace, driver, definition, token, body = ticket
        receipt = await publish(self, *ticket, **options)
        await self._publish(subjects.ticket(namespace, driver, definition), f"{token} again", body, 5.0)
        return receipt

    put(Tickets, "publish", twice)

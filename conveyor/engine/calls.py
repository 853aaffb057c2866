"""Runs within runs: made for steps that wait for them, cancelled with them, and what became of them told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from conveyor.core import errors, limits
from conveyor.core.calls import awaits
from conveyor.core.deadlines import TIMEOUT_GRACE, grace_left
from conveyor.core.events import Called, CancelRequested, ChildEnded
from conveyor.core.model import OVERDUE, Decision, Stop
from conveyor.engine.child_results import child_ended
from conveyor.engine.repair import waits
from conveyor.state.callers import Withdrawn
from conveyor.state.runs import StoredRun, Unreadable
from conveyor.state.starts import Starts
from conveyor.storage.v1 import storage_pb2
from conveyor.store.failpoints import failpoint
from conveyor.store.port import StoreError
from conveyor.v1 import run_pb2

if TYPE_CHECKING:
    from conveyor.engine.loop import Engine

log = structlog.get_logger("conveyor.engine")

_MADE_AT_ONCE = 32
"""Runs; a matrix or a recursion may want thousands."""

_NOT_MADE = "it was stopped before its run was made"

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


class CallKeeper:
    """Keeps steps that run pipelines and their runs together.

    A step names its run before that is made, and the run is made only while the step waits for it. So all that is to
    be done derives from what is stored, and changes nothing when done twice: any replica may do it, at any time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._looked_at: set[str] = set()
        self._making = asyncio.Semaphore(_MADE_AT_ONCE)
        self.starts: Starts | None = None
        """Makes runs. Comes later, since it needs the engine."""

    # What follows from a commit, and what is found undone: nothing of it waits

    def follow(self, run: StoredRun, decision: Decision) -> None:
        """Do what a stored decision leads to."""
        plan = run.state.plan
        if plan.calls:
            for index in decision.changed:
                record = run.state.steps[index]
                if not plan.steps[index].calls or record is None:
                    continue
                if record.reason == run_pb2.STEP_REASON_ABANDONED:
                    # It may have been told before, when nobody used force.
                    self._engine.spawn(self._cancel_with(run.head, record.step, record.child_run))
                elif not record.cancel_sent:
                    self._look_soon(run, record)
        if decision.ended and run.head.caller_run:
            failpoint("calls.child_ended")
            self._engine.spawn(self._tell(run))

    def stop(self, run: StoredRun, stop: Stop) -> None:
        """Cancel the run that a step waits for, or waited for."""
        step = run.state.plan.steps[stop.index].id
        force = run.head.cancel_deadline == OVERDUE
        self._engine.spawn(self._cancel(run.head, step, stop.token, stop.message, stop.grace, force=force))

    def resume(self, run: StoredRun) -> None:
        """Take up what was left undone of an unfinished run."""
        if run.state.plan.calls:
            for index, record in enumerate(run.state.steps):
                if record is None or not run.state.plan.steps[index].calls:
                    continue
                if waits(record):
                    called = Called((self._engine.dispatcher.call(index, self._engine.now()),))
                    self._engine.spawn(self._engine.handle(run.head.namespace, run.head.id, called))
                else:
                    self._look_soon(run, record)
        if run.head.caller_run:
            self._engine.spawn(self._check_caller(run.head))

    def _look_soon(self, run: StoredRun, record: storage_pb2.StepRecord) -> None:
        child = record.child_run
        if child and awaits(record, child) and child not in self._looked_at:
            self._looked_at.add(child)
            self._engine.spawn(self._look(run.head.namespace, run.head.id, record.step, child))

    # Each in a task of its own

    async def _look(self, namespace: str, run_id: str, step: str, child: str) -> None:
        pause = _FIRST_PAUSE
        try:
            while True:
                try:
                    await self._see_to(namespace, run_id, step, child)
                    return
                except (StoreError, errors.OutcomeUnknown, errors.Contention) as error:
                    log.debug("call_not_seen_to", run_id=run_id, step=step, error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            self._looked_at.discard(child)

    async def _see_to(self, namespace: str, run_id: str, step: str, child: str) -> None:
        """Make the run of a step, cancel it, or take its result. Raises the store's errors and the committer's."""
        engine = self._engine
        try:
            caller = await engine.run(namespace, run_id)
        except errors.DomainError as error:
            log.debug("caller_gone", run_id=run_id, error=error.message)
            return
        record = caller.state.steps[caller.state.plan.index[step]]
        if record is None or not awaits(record, child):
            return
        try:
            found = await engine.run(namespace, child)
        except errors.NotFound:
            async with self._making:
                await self._make(caller, step, child)
            return
        except Unreadable as error:
            lost = ChildEnded(step, child, run_pb2.RUN_STATE_FAILED, f"run {child} was put aside: {error.message}")
            await engine.handle(namespace, run_id, lost)
            return
        if found.state.terminal:
            await self._tell(found)
        elif record.cancel_sent:
            await self._cancel_with(caller.head, step, child)

    async def _make(self, caller: StoredRun, step: str, child: str) -> None:
        if self.starts is None:
            raise RuntimeError("nobody makes runs for steps")
        head, state = caller.head, run_pb2.RUN_STATE_FAILED
        try:
            failpoint("calls.before_creation")
            await self.starts.call(caller, caller.state.plan.index[step], child)
            failpoint("calls.after_creation")
            return
        except errors.AlreadyExists:
            # Another replica made it, or this one, and the answer was lost: then nobody has sent what it claimed.
            found = await self._engine.run(head.namespace, child)
            if not found.state.terminal:
                self._engine.resume(found)
            return
        except Withdrawn:
            ended = ChildEnded(step, child, run_pb2.RUN_STATE_CANCELLED, _NOT_MADE, exists=False)
        except (errors.Away, errors.Overtaken):
            raise
        except errors.DomainError as error:
            refused = run_pb2.STEP_REASON_CHILD_RUN_REFUSED
            ended = ChildEnded(step, child, state, _refusal(error), invalid=refused, exists=False)
        await self._engine.handle(head.namespace, head.id, ended)

    async def _cancel_with(self, caller: storage_pb2.RunHead, step: str, child: str) -> None:
        """Cancel the run of a step as that of the step is, or was."""
        force, message = caller.cancel_deadline == OVERDUE, caller.cancel_message
        # Without a deadline it is the step alone that was stopped.
        grace = grace_left(caller, self._engine.now()) if caller.cancel_deadline else TIMEOUT_GRACE
        await self._cancel(caller, step, child, message, grace, force=force)

    async def _cancel(
        self, caller: storage_pb2.RunHead, step: str, child: str, message: str, grace: int, *, force: bool
    ) -> None:
        engine, namespace = self._engine, caller.namespace
        failpoint("calls.before_cancel")
        said = f"step {step} of run {caller.id} was stopped{f': {message}' if message else ''}"
        # It is to have ended, if its workers take all of their time, before its step is given up.
        event = CancelRequested(said[: limits.CANCEL_MESSAGE_BYTES], grace - grace // 10, force)
        try:
            decision = await engine.handle(namespace, child, event)
            if decision.state.terminal and not decision.ended:
                await self._tell(await engine.run(namespace, child))
        except (Unreadable, StoreError) as error:
            log.debug("child_run_not_cancelled", run_id=child, error=str(error))
        except errors.NotFound:
            # The step was told before it was made, so it never will be.
            ended = ChildEnded(step, child, run_pb2.RUN_STATE_CANCELLED, _NOT_MADE, exists=False)
            await self._engine.handle(namespace, caller.id, ended)

    async def _tell(self, child: StoredRun) -> None:
        """Tell the step that waits for a run how that ended."""
        head = child.head
        try:
            await self._engine.handle(head.namespace, head.caller_run, child_ended(child))
        except errors.NotFound:
            log.debug("caller_gone", run_id=head.caller_run)
        except Unreadable as error:
            log.debug("caller_unreadable", run_id=head.caller_run, error=error.message)

    async def _check_caller(self, head: storage_pb2.RunHead) -> None:
        """Cancel a run for which no step waits any more: its caller ended or went on, and nobody said so."""
        engine, namespace = self._engine, head.namespace
        try:
            record, _ = await engine.runs.step(namespace, head.caller_run, head.caller_step)
            if record is not None and awaits(record, head.id) and not record.cancel_sent:
                return
            caller, _ = await engine.runs.head(namespace, head.caller_run)
        except errors.NotFound:
            caller = storage_pb2.RunHead(namespace=namespace, id=head.caller_run)
        except StoreError as error:
            log.debug("caller_not_checked", run_id=head.id, error=str(error))
            return  # The next sweep looks again.
        await self._cancel_with(caller, head.caller_step, head.id)


def _refusal(error: errors.DomainError) -> str:
    """Why the run was refused, with all that was wrong."""
    faults = "; ".join(f"{each.field}: {each.description}" for each in error.violations)
    return f"its run was refused: {faults or error.message}"[: limits.RESULT_MESSAGE_BYTES]

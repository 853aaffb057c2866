"""What people decide at gates."""

from __future__ import annotations

import structlog

from conveyor.api.ports import Engine
from conveyor.core import errors
from conveyor.core.events import StepDecided
from conveyor.core.gates import Standing, missing, standing
from conveyor.state.repositories import Repositories
from conveyor.state.requests import Slip
from conveyor.state.runs import StoredRun
from conveyor.state.views import full_run, set_queue_wait
from conveyor.v1 import pipeline_pb2, run_pb2
from conveyor.v1.run_service_pb2 import DecideStepRequest

_SHOWN = 5
_STANDS = frozenset({Standing.OPEN, Standing.REPEATED})

log = structlog.get_logger("conveyor.api")


class Decisions:
    """Takes decisions, and says of those that don't count why."""

    def __init__(self, repositories: Repositories, engine: Engine) -> None:
        self._runs = repositories.runs
        self._requests = repositories.requests
        self._engine = engine

    async def decide(self, namespace: str, request: DecideStepRequest, slip: Slip | None) -> run_pb2.StepRun:
        """Let the decision count, once; the gate as it is afterwards.

        Raises errors.NotFound, errors.NoOpenGate, errors.AlreadyDecided, errors.RunFinished, errors.RequestIdReused
        and the store's errors.
        """
        index = _index(await self._engine.run(namespace, request.id), request.step)
        if slip is not None:
            await self._remember(namespace, request, index, slip)
        event = StepDecided(index, request.decision, request.by, request.comment)
        decision, run = await self._engine.request(namespace, request.id, event)
        if decision.dirty:
            said = pipeline_pb2.Decision.Name(request.decision).removeprefix("DECISION_")
            log.info("step_decided", run_id=request.id, step=request.step, decision=said, by=request.by)
        else:
            _check(run, index, request)
        return _shown(run, index)

    async def _remember(self, namespace: str, request: DecideStepRequest, index: int, slip: Slip) -> None:
        """Note a request before it takes effect, unless it is refused.

        Deciding the same again does no harm. So one that was noted, but maybe not carried out, simply is again.
        """
        if await self._requests.find(slip) is None:
            # As it is stored: what is in hand may not know yet that the gate has opened at another replica.
            _check(await self._runs.load(namespace, request.id), index, request)
            await self._requests.note(slip, run=request.id)


def finished(run: StoredRun) -> errors.RunFinished:
    """The refusal of what a run that has ended cannot do."""
    state = run_pb2.RunState.Name(run.head.state).removeprefix("RUN_STATE_")
    return errors.RunFinished(f"run {run.head.id} has ended already, {state}")


def _index(run: StoredRun, step: str) -> int:
    index = run.state.plan.index.get(step)
    if index is None:
        raise errors.NotFound(f"run {run.head.id} has no step {step}")
    return index


def _check(run: StoredRun, index: int, request: DecideStepRequest) -> None:
    """Raise what there is to say of a decision that does not count."""
    stands = standing(run.state, index, request.decision, request.by)
    if stands in _STANDS:
        return
    if stands is Standing.CONTRARY:
        verb = "rejected" if request.decision == pipeline_pb2.DECISION_APPROVED else "approved"
        raise errors.AlreadyDecided(f"{request.by} has {verb} gate {request.step} already; that cannot be taken back")
    step = run.state.plan.steps[index]
    if step.gate is None:
        what = f"it is the work of driver {step.driver}" if step.driver else "nobody is asked there"
        raise errors.NoOpenGate(f"step {step.id} is no gate: {what}")
    if run.state.terminal:
        raise finished(run)
    if index in run.state.plan.instances:
        raise errors.NoOpenGate(f"gate {_instances(run, index, request)}")
    raise errors.NoOpenGate(f"gate {step.id} {_why_closed(run, index)}")


def _instances(run: StoredRun, index: int, request: DecideStepRequest) -> str:
    """Which gates of a matrix may be decided instead of all at once, by the same person."""
    plan = run.state.plan
    places = plan.instances[index]
    said = f"{plan.steps[index].id} has {len(places)} {'instance' if len(places) == 1 else 'instances'}"
    stands = ((each, standing(run.state, each, request.decision, request.by)) for each in places)
    waiting = [plan.steps[each].id for each, stand in stands if stand is Standing.OPEN]
    if not waiting:
        return f"{said}; none of them can be decided now"
    shown = waiting[:_SHOWN]
    more = f", or one of {len(waiting) - _SHOWN} more" if len(waiting) > _SHOWN else ""
    listed = ", ".join(shown) if more else " or ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
    return f"{said}; decide {listed}{more}"


def _why_closed(run: StoredRun, index: int) -> str:
    state, record = run.head.step_states[index], run.state.steps[index]
    if run.head.state == run_pb2.RUN_STATE_PENDING:
        return "is not open yet: its run has not started"
    if state == run_pb2.STEP_STATE_PENDING:
        return "is not open yet: what goes before it has not ended"
    if state == run_pb2.STEP_STATE_QUEUED:
        return "is about to be closed: its run is being stopped"
    name = run_pb2.StepState.Name(state).removeprefix("STEP_STATE_")  # type: ignore[arg-type]  # each byte is a state
    said = f", {record.message}" if record is not None and record.message else ""
    return f"is closed already: {name}{said}"


def _shown(run: StoredRun, index: int) -> run_pb2.StepRun:
    step = full_run(run.head, run.revision, run.spec, run.state.steps).steps[index]
    gate, record = run.state.plan.steps[index].gate, run.state.steps[index]
    if gate is not None and record is not None and step.state == run_pb2.STEP_STATE_QUEUED:
        set_queue_wait(step.wait, record)
        step.wait.approvals = missing(gate, record)
    return step

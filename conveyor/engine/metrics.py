"""What the engine counts. Labels never hold ids or names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from conveyor.core.model import TERMINAL_RUN, TERMINAL_STEP, Decision, RunState
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2

_QUEUE_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300, 1800, 7200)


class EngineMetrics:
    """Counters of runs, steps and results; seconds that attempts waited for a worker."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._created = Counter("conveyor_runs_created", "Runs that were created here.", registry=registry)
        finished = Counter("conveyor_runs_finished", "Runs that ended here.", ["state"], registry=registry)
        steps = Counter("conveyor_steps_finished", "Steps that ended here.", ["state"], registry=registry)
        results = Counter("conveyor_results", "Results by what became of them.", ["disposition"], registry=registry)
        self._queue_seconds = Histogram(
            "conveyor_queue_seconds",
            "Time that attempts waited for a worker.",
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self._lock_seconds = Histogram(
            "conveyor_lock_wait_seconds",
            "Time that runs and steps waited for their lock.",
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self._finished = {v: finished.labels(_short(run_pb2.RunState.Name(v))) for v in TERMINAL_RUN}
        self._steps: dict[int, Counter] = {v: steps.labels(_short(run_pb2.StepState.Name(v))) for v in TERMINAL_STEP}
        self._results = {v: results.labels(_short(n)) for n, v in result_pb2.Disposition.items() if v}

    def run_created(self, head: storage_pb2.RunHead) -> None:
        """A run was stored."""
        self._created.inc()

    def transition(self, state: RunState, decision: Decision) -> None:
        """A decision was stored."""
        if decision.ended:
            self._finished[state.head.state].inc()
        for index in decision.ended_steps:
            self._steps[state.head.step_states[index]].inc()
        for index in decision.changed:
            record = state.steps[index]
            if record is None or record.child_run:
                continue
            if record.state == run_pb2.STEP_STATE_RUNNING and record.start_time == state.head.update_time:
                self._queue_seconds.observe(max(0, record.start_time - record.ready_time) / 1e6)

    def lock_granted(self, micros: int) -> None:
        """A run or step has got its lock after that time."""
        self._lock_seconds.observe(max(0, micros) / 1e6)

    def result(self, disposition: result_pb2.Disposition.ValueType) -> None:
        """A result was answered."""
        if disposition:
            self._results[disposition].inc()


def _short(name: str) -> str:
    return name.split("_STATE_")[-1].removeprefix("DISPOSITION_").lower()

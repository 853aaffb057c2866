"""What one commit cannot hold, and that work grows with what happens, not with what is there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from conveyor.core import run_copy
from conveyor.core.events import CancelRequested, Claim, Claimed, Continue, Tick, WorkerLost
from conveyor.core.plan import SECOND, compile_plan
from conveyor.core.transitions import apply, next_timer
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.support.core import Run, pipeline, step

STEPS = 1000


def wide(*, count: int = STEPS, finally_count: int = 0, **fields: Any) -> Run:
    """A run whose steps all start at once."""
    steps = [step(f"s{i}", driver="d", **fields) for i in range(count)]
    ends = [step(f"f{i}", driver="d") for i in range(finally_count)]
    return Run(pipeline(*steps, finally_steps=ends, graph=True))


def claim_all(run: Run, count: int = STEPS) -> None:
    """Have one worker take them all."""
    for first in range(0, count, 50):
        claims = (
            Claim(i, "session", "worker", f"t{i}", run_pb2.TRANSPORT_GRPC) for i in range(first, min(first + 50, count))
        )
        run.send(Claimed(tuple(claims)))


def test_fan_out_and_join() -> None:
    steps = [step(f"s{i}", "root", driver="d") for i in range(STEPS - 2)]
    join = step("join", *(s.id for s in steps))
    run = Run(pipeline(step("root"), *steps, join, graph=True))
    run.start()
    decisions = run.apply(run.result("root")) if run.claim("root") else []
    assert len(decisions) == 17
    ready = [index for decision in decisions for index in decision.ready]
    assert ready == list(range(1, STEPS - 1))
    claim_all(run, STEPS - 1)
    for s in steps:
        assert run.step("join") == "PENDING"
        raw(run, run.result(s.id))
    claim = Claim(STEPS - 1, "session", "worker", "t", run_pb2.TRANSPORT_GRPC)
    raw(run, Claimed((claim,)))
    raw(run, run.result("join"))
    assert run.run == "SUCCEEDED"


def test_fail_fast_of_a_thousand() -> None:
    run = wide()
    run.start()
    decisions = run.apply(run.result("s0", "FAILED")) if run.claim("s0") else []
    assert len(decisions) == 17
    assert run.run == "FAILED STEP_FAILED"
    assert run.step("s999") == "SKIPPED FAIL_FAST"


def test_nothing_starts_between_the_commits_of_fail_fast() -> None:
    run = wide(count=100)
    run.start()
    run.claim("s0")
    assert run.send(run.result("s0", "FAILED")).more
    assert run.step("s99") == "QUEUED"
    claim = Claim(99, "session", "worker", "t", run_pb2.TRANSPORT_GRPC)
    assert not run.send(Claimed((claim,))).dirty
    run.send(Continue())
    assert run.run == "FAILED STEP_FAILED"


@pytest.mark.parametrize("force", [False, True])
def test_cancel_of_a_thousand(force: bool) -> None:
    run = wide(count=500, finally_count=500)
    run.start()
    claim_all(run, 250)
    decisions = run.apply(CancelRequested("", 30 * SECOND, force=force))
    assert sum(len(decision.stops) for decision in decisions) == 250
    if not force:
        assert next_timer(run.state) == run.now + 30 * SECOND
        run.tick(30)
        assert run.step("f499") == "QUEUED"
        run.apply(CancelRequested("", 0, force=True))
    assert run.step("s0") == "CANCELLED ABANDONED"
    assert run.step("s499") == "CANCELLED RUN_CANCELLED"
    assert run.step("f499") == ("SKIPPED RUN_CANCELLED" if force else "CANCELLED RUN_CANCELLED")
    assert run.run == "CANCELLED CANCEL_REQUESTED"


def test_worker_lost_with_a_thousand() -> None:
    """The rest is the same event again: only it says who is lost."""
    run = wide()
    run.start()
    claim_all(run)
    decisions = run.apply(WorkerLost("session", "gone"))
    assert len(decisions) == 17
    assert all(decision.rest for decision in decisions[:-1])
    assert set(run.state.head.step_states) == {run_pb2.STEP_STATE_QUEUED}
    assert run.record("s999").losses == 1


@pytest.mark.parametrize("event", [Tick(), Continue()])
def test_a_thousand_deadlines(event: Tick | Continue) -> None:
    """Of waits, attempts and back-offs; a Continue goes on where a Tick had no room."""
    run = wide(queue_timeout={"seconds": 60}, allow_failure=True)
    run.start()
    run.now += 60 * SECOND
    assert len(run.apply(event)) == 17
    assert run.run == "SUCCEEDED"


def test_commit_stays_below_what_the_store_takes() -> None:
    """Sixty records with a long history are more than that."""
    run = wide(count=60, retry={"max_attempts": 20, "initial_backoff": {}})
    run.start()
    for index in range(60):
        for _ in range(10):
            run.report(f"s{index}", "FAILED", message="x" * 4096)
    decisions = run.apply(CancelRequested("", 0))
    assert run.run == "CANCELLED CANCEL_REQUESTED"
    for decision in decisions:
        records = [run.stored[i].ByteSize() for i in decision.changed]
        assert sum(records) <= run_copy.MAX_RECORD_BYTES + max(records)


def lines(work: Callable[[], object]) -> int:
    """How many lines of the core a piece of work executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if "conveyor/core" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def raw(run: Run, *events: Any) -> None:
    """Apply without the checks of `Run`, which look at everything."""
    for event in events:
        decision = apply(run.state, event, run.now)
        while decision.more:
            decision = apply(decision.state, decision.rest or Continue(), run.now)
        run.state = decision.state


def confirmations(count: int, *, cancelled: bool, allowed: bool = True) -> int:
    """Lines for the results of `count` steps that all run."""
    run = wide(count=count, allow_failure=allowed)
    run.start()
    claim_all(run, count)
    results = [run.result(f"s{i}", "FAILED") for i in range(count)]
    if cancelled:
        raw(run, CancelRequested("", 30 * SECOND))
    work = lines(lambda: raw(run, *results))
    assert run.state.terminal
    return work


@pytest.mark.parametrize(("cancelled", "allowed"), [(False, True), (False, False), (True, True)])
def test_results_cost_the_same_in_large_runs(cancelled: bool, allowed: bool) -> None:
    """Also while it is cancelled, and when many failed before."""
    small, large = (confirmations(n, cancelled=cancelled, allowed=allowed) for n in (100, 400))
    assert large < 4 * small * 1.1


def test_list_costs_the_same_per_step() -> None:
    def work(count: int) -> int:
        run = Run(pipeline(*(step(f"s{i}") for i in range(count))))
        run.start()

        def go() -> None:
            for index in range(count):
                claim = Claim(index, "session", "worker", "t", run_pb2.TRANSPORT_GRPC)
                raw(run, Claimed((claim,)))
                raw(run, run.result(f"s{index}"))

        return lines(go)

    small, large = work(50), work(400)
    assert large < 8 * small * 1.1


def test_layers_are_compiled_in_linear_time() -> None:
    """Edges grow with the square of a layer's width: the work grows with edges, not with paths."""

    def layered(layers: int) -> pipeline_pb2.Pipeline:
        width = 10
        return pipeline(
            *(
                step(f"s{layer}-{i}", *([f"s{layer - 1}-{j}" for j in range(width)] if layer else []))
                for layer in range(layers)
                for i in range(width)
            ),
            graph=True,
        )

    small, large = (lines(lambda n=n: compile_plan(layered(n))) for n in (25, 100))  # type: ignore[misc]
    assert large < 4 * small * 1.1
    assert len(list(compile_plan(layered(100)).inputs(999))) == 990

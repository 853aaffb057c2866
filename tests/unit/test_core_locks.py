"""Locks: who holds one, and what a run and its steps do until they do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor.core.draft import MAX_LOSSES
from conveyor.core.events import (
    CancelRequested,
    Claimed,
    Continue,
    Event,
    InputRefused,
    LockGranted,
    NotReceived,
    RunCreated,
    Tick,
    Waiting,
    WorkerLost,
)
from conveyor.core.locks import RUN, holding
from conveyor.core.model import Decision, keep_waiting
from conveyor.core.plan import SECOND
from conveyor.core.transitions import next_timer
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, run_pb2
from tests.support.core import Run, pipeline, step

LOCK = pipeline_pb2.Lock(key="deploy")


def locked(**fields: object) -> Run:
    """One with a step under a lock, then one without."""
    run = Run(pipeline(step("a", lock=LOCK, **fields), step("b")))
    assert run.start()[0].joins == (0,)
    return run


def locked_run(**fields: object) -> Run:
    """One that holds a lock as a whole, with a finally step."""
    run = Run(pipeline(step("a"), finally_steps=[step("f")], **fields))
    run.state.head.lock.key = "deploy"
    run.state.head.lock.limit = 1
    return run


# The rule


@given(st.lists(st.integers(1, 5), max_size=12), st.data())
def test_nobody_who_holds_it_loses_it_and_no_limit_is_broken(limits: list[int], data: st.DataObject) -> None:
    claims = list(enumerate(limits))
    before: set[int] = set()
    while claims:
        count = holding(limit for _, limit in claims)
        holders = {name for name, _ in claims[:count]}
        assert 1 <= count <= min(limit for _, limit in claims[:count])
        assert before <= holders
        if count < len(claims):
            assert count >= min(limit for _, limit in claims[: count + 1]), "one that could hold it waits"
        # Anybody may go: one that holds it, or one that gives up.
        claims.pop(data.draw(st.integers(0, len(claims) - 1)))
        before = holders & {name for name, _ in claims}
    assert holding([]) == 0


@given(st.lists(st.integers(1, 5), max_size=12), st.integers(1, 5))
def test_one_that_comes_changes_nothing_for_those_before_it(limits: list[int], new: int) -> None:
    assert holding([*limits, new]) - holding(limits) in (0, 1)
    assert holding([*limits, new]) == holding(limits) or holding(limits) == len(limits)


# A step


def test_a_step_waits_for_its_lock_and_is_given_to_nobody() -> None:
    run = locked()
    assert run.step("a") == "QUEUED WAITING_FOR_LOCK"
    assert run.record("a").message == "waits for lock deploy"
    assert run.record("a").lock == storage_pb2.LockClaim(key="deploy", limit=1)
    run.claim("a")
    assert not run.record("a").token
    assert not run.send(Waiting(0, run_pb2.STEP_REASON_NO_WORKER, "nobody")).dirty
    assert not run.send(Continue()).dirty


def test_granted_it_is_ready_and_holds_it_until_it_has_ended() -> None:
    run = locked()
    run.now += SECOND
    decision = run.send(LockGranted(0))
    assert (decision.ready, decision.joins, decision.leaves) == ((0,), (), ())
    assert (run.step("a"), run.record("a").message, run.record("a").ready_time) == ("QUEUED", "", run.now)
    assert run.record("a").lock.held
    decision = run.report("a")
    assert (decision.leaves, decision.ready) == ((0,), (1,))
    assert run.record("a").lock == storage_pb2.LockClaim(key="deploy", limit=1)
    assert not run.send(LockGranted(0)).dirty


def test_it_is_held_over_failures_lost_workers_and_back_offs() -> None:
    run = locked(retry=pipeline_pb2.RetryPolicy(max_attempts=3))
    run.apply(LockGranted(0))
    token = run.claim("a")
    assert run.send(NotReceived(0, token)).ready == (0,)
    run.claim("a")
    assert run.send(WorkerLost("session", "")).ready == (0,)
    assert run.report("a", "FAILED").leaves == ()
    assert run.step("a") == "RETRYING DRIVER_FAILED"
    assert run.record("a").lock.held
    assert run.tick(2)[0].ready == (0,)
    assert run.report("a").leaves == (0,)


def lose_all(run: Run) -> Decision:
    """Its workers are lost, one after the other, as often as is borne and once more."""
    for _ in range(MAX_LOSSES + 1):
        run.claim("a")
        decision = run.send(WorkerLost("session", ""))
    return decision


ENDS: dict[str, Callable[[Run], Decision]] = {
    "failure": lambda run: run.report("a", "FAILED"),
    "driver cancelled": lambda run: run.report("a", "CANCELLED"),
    "input refused": lambda run: run.send(InputRefused(0, run_pb2.STEP_REASON_INPUT_TOO_LARGE, "too large")),
    "too many workers lost": lose_all,
    "cancel": lambda run: run.send(CancelRequested("no", SECOND)),
    "force": lambda run: (run.claim("a"), run.send(CancelRequested("no", SECOND, force=True)))[1],
    "abandoned": lambda run: (run.claim("a"), run.send(CancelRequested("no", SECOND)), run.tick(2))[2][0],
    "timeout": lambda run: (run.claim("a"), run.tick(3600))[1][0],
    "run timeout": lambda run: run.tick(24 * 3600)[0],
}


@pytest.mark.parametrize("how", ENDS)
def test_it_is_given_up_however_the_step_ends(how: str) -> None:
    run = locked()
    run.apply(LockGranted(0))
    assert ENDS[how](run).leaves == (0,)
    assert not run.record("a").lock.held


@pytest.mark.parametrize("how", ["cancel", "force", "run timeout"])
def test_so_is_its_place_while_it_waits(how: str) -> None:
    run = locked()
    decision = run.tick(24 * 3600)[0] if how == "run timeout" else run.send(CancelRequested("", 0, how == "force"))
    assert (decision.leaves, run.step("a").split()[0]) == ((0,), "CANCELLED")
    assert not run.send(LockGranted(0)).dirty


def test_the_wait_for_a_lock_counts_as_wait_for_a_worker() -> None:
    run = locked(queue_timeout={"seconds": 5})
    assert run.timer == 5
    run.tick(3)
    run.apply(LockGranted(0))
    assert run.timer == 2
    run = locked(queue_timeout={"seconds": 5})
    assert run.tick(5)[0].leaves == (0,)
    assert run.step("a") == "FAILED QUEUE_TIMED_OUT"
    assert run.record("a").message == "it did not get its lock within 5 s (waits for lock deploy)"


def test_one_that_fail_fast_is_about_to_stop_gets_no_lock() -> None:
    run = Run(pipeline(*(step(f"s{i:03}", lock=LOCK) for i in range(200)), step("bad"), graph=True))
    run.start()
    decision = run.send(run.result("bad", "FAILED")) if run.claim("bad") else None
    assert decision is not None
    assert decision.more
    last = run.index("s199")
    assert run.step("s199") == "QUEUED WAITING_FOR_LOCK"
    assert not run.send(LockGranted(last)).dirty
    run.apply(Continue())
    assert run.run.startswith("FAILED")


def test_hundreds_of_claims_fit_into_commits() -> None:
    run = Run(pipeline(*(step(f"s{i:03}", lock=LOCK) for i in range(300)), graph=True))
    joined = [index for decision in run.start() for index in decision.joins]
    assert sorted(joined) == list(range(300))
    left = [index for decision in run.apply(CancelRequested("", 0)) for index in decision.leaves]
    assert sorted(left) == list(range(300))


def test_a_claim_made_and_given_up_in_one_commit_never_was() -> None:
    run = Run(pipeline(step("a", lock=LOCK)))
    first = run.send(RunCreated())
    run.state, run.stored = first.state, {0: run.record("a")}
    later = run.send(CancelRequested("", 0))
    both = first.then(later)
    assert (first.joins, later.leaves, both.joins, both.leaves) == ((0,), (0,), (), ())


@pytest.mark.parametrize(
    ("own", "outer", "waits"), [(1, 0, False), (2, 0, True), (0, 1, False), (0, 2, True), (2, 2, False)]
)
def test_one_that_would_wait_for_its_own_run_fails(own: int, outer: int, waits: bool) -> None:
    """With room for all of them together it gets its turn."""
    run = Run(pipeline(step("a", lock=pipeline_pb2.Lock(key="deploy", limit=2)), step("b")))
    head = run.state.head
    head.outer_locks.add(key="other", limit=1, held=True)
    if outer:
        head.outer_locks.add(key="deploy", limit=outer, held=True)
    if own:
        head.lock.CopyFrom(storage_pb2.LockClaim(key="deploy", limit=own))
        run.start()
        decision = run.apply(LockGranted(RUN))[0]
    else:
        decision = run.start()[0]
    record = run.state.steps[0]
    assert record is not None
    if waits:
        assert (decision.joins, record.reason) == ((0,), run_pb2.STEP_REASON_WAITING_FOR_LOCK)
    else:
        assert (decision.joins, record.reason) == ((), run_pb2.STEP_REASON_INPUT_INVALID)
        assert run.run == "FAILED STEP_FAILED"


# A run


def test_a_run_starts_with_its_lock() -> None:
    run = locked_run(timeout={"seconds": 6})
    decision = run.send(RunCreated())
    assert (decision.joins, decision.ready, next_timer(run.state)) == ((RUN,), (), 0)
    assert (run.run, run.state.head.message) == ("PENDING WAITING_FOR_LOCK", "waits for lock deploy")
    run.now += 3600 * SECOND
    events: list[Event] = [RunCreated(), RunCreated(turn=True), Tick(), Continue(), Claimed(()), LockGranted(0)]
    for event in events:
        assert not run.send(event).dirty
    decision = run.send(LockGranted(RUN))
    assert (decision.ready, decision.joins, run.run, run.state.head.message) == ((0,), (), "RUNNING", "")
    assert run.state.head.deadline == run.now + 6 * SECOND


def test_it_holds_it_until_its_finally_steps_have_ended() -> None:
    run = locked_run()
    run.start()
    run.apply(LockGranted(RUN))
    assert run.report("a", "FAILED").leaves == ()
    assert run.state.head.lock.held
    assert run.report("f").leaves == (RUN,)
    assert (run.run, run.state.head.lock.held) == ("FAILED STEP_FAILED", False)
    assert not run.send(LockGranted(RUN)).dirty


def test_it_joins_at_its_turn() -> None:
    run = locked_run()
    keep_waiting(run.state)
    assert not run.send(RunCreated()).dirty
    assert not run.send(LockGranted(RUN)).dirty
    assert run.send(RunCreated(turn=True)).joins == (RUN,)
    assert run.run == "PENDING WAITING_FOR_LOCK"


@pytest.mark.parametrize("force", [False, True])
def test_cancelled_while_it_waits_it_ends_at_once_and_runs_nothing(force: bool) -> None:
    run = locked_run()
    run.start()
    decision = run.send(CancelRequested("no more", 30 * SECOND, force))
    assert (decision.ended, decision.ready, decision.leaves) == (True, (), (RUN,))
    assert run.run == "CANCELLED CANCEL_REQUESTED"
    assert [run.step(name) for name in ("a", "f")] == ["SKIPPED RUN_CANCELLED"] * 2
    assert not run.send(LockGranted(RUN)).dirty

"""Properties of the core: random pipelines under random, duplicated, reordered and late events.

`Run` checks after every decision what must hold of any; here are what must hold of whole histories, and a second,
naive model of the trigger rules.
"""

from __future__ import annotations

from random import Random
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conveyor.core import run_copy
from conveyor.core.events import (
    Call,
    Called,
    CancelRequested,
    ChildEnded,
    Claim,
    Claimed,
    Continue,
    Event,
    InputRefused,
    LockGranted,
    NotReceived,
    ResultReceived,
    RunCreated,
    StepDecided,
    Tick,
    TicketDelivered,
    TicketSent,
    TicketWithdrawn,
    Waiting,
    WorkerLost,
)
from conveyor.core.inputs import Expansion, Seen, Verdict
from conveyor.core.locks import RUN, run_waits_for_lock, waits_for_lock
from conveyor.core.matrix import values_of
from conveyor.core.model import RunState
from conveyor.core.plan import SECOND, Plan
from conveyor.core.transitions import next_timer
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, result_pb2, run_pb2
from tests.support.core import (
    CANCELLED,
    FAILED,
    PENDING,
    QUEUED,
    RETRYING,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    TERMINAL,
    TERMINAL_RUN,
    Run,
    answer,
    pipeline,
    step,
)

RULES = ("ALL_SUCCESS", "NONE_FAILED", "ONE_FAILED", "ALL_DONE")
OUTCOMES = ("SUCCEEDED", "FAILED", "CANCELLED")


# A second model of the trigger rules, as slow and as plain as the table


def should_run(rule: int, needs: list[tuple[int, bool]]) -> bool:
    """Whether a step runs whose needs ended like this: states, each with whether it may fail."""
    if rule == pipeline_pb2.TRIGGER_RULE_ALL_SUCCESS:
        return all(state == SUCCEEDED or (state == FAILED and allowed) for state, allowed in needs)
    if rule == pipeline_pb2.TRIGGER_RULE_NONE_FAILED:
        return not any(state == CANCELLED or (state == FAILED and not allowed) for state, allowed in needs)
    if rule == pipeline_pb2.TRIGGER_RULE_ONE_FAILED:
        return any(state == FAILED for state, _ in needs)
    return True


def needs_of(source: pipeline_pb2.Pipeline, index: int) -> list[int]:
    """The steps that a step waits for, straight from the pipeline."""
    if source.order == pipeline_pb2.ORDER_LIST:
        return [index - 1] if index else []
    names = [s.id for s in source.steps]
    return [names.index(need) for need in source.steps[index].needs]


def naive_end(source: pipeline_pb2.Pipeline, scripted: list[int]) -> list[int]:
    """How each main step ends under CONTINUE, given what its driver would say; by recursion over the needs."""

    def end(index: int) -> int:
        needs = [(end(need), source.steps[need].allow_failure) for need in needs_of(source, index)]
        return scripted[index] if should_run(source.steps[index].trigger_rule, needs) else SKIPPED

    return [end(index) for index in range(len(source.steps))]


def naive_outcome(source: pipeline_pb2.Pipeline, ends: list[int]) -> int:
    """How a run that nobody cancelled ends."""
    for s, end in zip([*source.steps, *source.finally_steps], ends, strict=True):
        if end in (FAILED, CANCELLED) and not s.allow_failure:
            return run_pb2.RUN_STATE_FAILED
    return run_pb2.RUN_STATE_SUCCEEDED


# Random pipelines and what happens to them


@st.composite
def pipelines(draw: st.DrawFn, *, most: int = 7, only_drivers: bool = False) -> pipeline_pb2.Pipeline:
    """Lists and graphs with everything that a step may say."""
    graph = draw(st.booleans())
    names = [f"s{i}" for i in range(draw(st.integers(1, most)))]
    drivers = st.sampled_from(["x", "y", "z"])

    def details() -> dict[str, Any]:
        if not only_drivers and draw(st.integers(0, 5)) == 0:
            own: dict[str, Any] = {"approvals": draw(st.integers(0, 3)), "optional": draw(st.booleans())}
            if draw(st.booleans()):
                own["timeout"] = {"seconds": draw(st.integers(1, 50))}
                own["default_decision"] = draw(st.integers(0, 2))
            return {"gate": own, "allow_failure": draw(st.booleans())}
        details: dict[str, Any] = {"driver": draw(drivers), "allow_failure": draw(st.booleans())}
        if not only_drivers and draw(st.integers(0, 3)) == 0:
            own = {"max_parallel": draw(st.integers(0, 2))}
            if draw(st.booleans()):
                own["fail_fast"] = draw(st.booleans())
            details["matrix"] = own
            details["when"] = draw(st.sampled_from(["", "x"]))
        if draw(st.booleans()):
            details["retry"] = {
                "max_attempts": draw(st.integers(1, 3)),
                "initial_backoff": {"seconds": draw(st.integers(0, 2))},
            }
        if not only_drivers and draw(st.integers(0, 5)) == 0:
            details["runs"] = {"pipeline": "other"}
            del details["driver"]
        elif draw(st.booleans()):
            details["queue_timeout"] = {"seconds": draw(st.integers(1, 50))}
        if draw(st.booleans()):
            details["timeout"] = {"seconds": draw(st.integers(1, 50))}
        if not only_drivers and draw(st.integers(0, 3)) == 0:
            details["lock"] = {"key": "x"}
        return details

    steps = []
    for i, name in enumerate(names):
        needs = draw(st.lists(st.sampled_from(names[:i]), max_size=4)) if graph and i else []
        steps.append(step(name, *needs, rule=draw(st.sampled_from(RULES)), **details()))
    if graph:
        steps = draw(st.permutations(steps))
    finally_steps = [step(f"f{i}", **details()) for i in range(draw(st.integers(0, 2)))]
    source = pipeline(*steps, finally_steps=finally_steps, graph=graph)
    if draw(st.booleans()):
        source.failure_policy = pipeline_pb2.FAILURE_POLICY_CONTINUE
    if draw(st.booleans()):
        source.timeout.seconds = draw(st.integers(1, 300))
    if not only_drivers and draw(st.integers(0, 5)) == 0:
        source.lock.key = "y"
    if draw(st.integers(0, 9)) == 0:
        source.name = ""  # a broadcast
        source.ClearField("lock")
        del source.finally_steps[:]
        for s in source.steps:
            del s.needs[:]
            s.driver = "x"
            s.ClearField("matrix")
            s.ClearField("lock")
            s.ClearField("when")
            s.ClearField("retry")
            s.trigger_rule = pipeline_pb2.TRIGGER_RULE_UNSPECIFIED
    return source


class Fixed:
    """Expressions that come to the same at any time: up to five instances, of which some are skipped, and one fails."""

    def judge(self, index: int, seen: Seen) -> Verdict:
        """Of an instance, by its values."""
        record = seen.steps[seen.plan.steps[index].matrix_step]
        assert record is not None
        n = int(values_of(record, index))
        if n % 7 == 3:
            return Verdict(run_pb2.STEP_REASON_CONDITION_FALSE)
        return Verdict(run_pb2.STEP_REASON_INPUT_MISSING, "it is not there") if n % 20 == 5 else Verdict()

    def expand(self, index: int, seen: Seen) -> Expansion:
        """Each has its number."""
        name = seen.plan.steps[index].id
        first = sum(name.encode())
        return Expansion(instances=[str(n).encode() for n in range(first, first + first % 6)])

    def repeats(self, index: int) -> bool:
        """Always."""
        return True


class World:
    """A run among workers, a broker and people; every event may come again, late, and after a crash."""

    def __init__(self, source: pipeline_pb2.Pipeline, seed: int, *, crashes: bool = True) -> None:
        self.source = source
        self.run = Run(source, inputs=Fixed())
        self.run.state.head.lock.key = source.lock.key
        self.random = Random(seed)
        self.crashes = crashes
        self.past: list[Event] = []
        self.accepted: list[tuple[str, int, str]] = []

    def send(self, event: Event) -> None:
        """One event and what must follow; or a crash right after one of the commits."""
        self.past.append(event)
        follow: Event | None = event
        while follow is not None:
            before = self.run.state
            decision = self.run.send(follow, self.random.random() if self.crashes else 0.5)
            self.judge(before, decision.state)
            if isinstance(follow, ResultReceived) and decision.disposition == result_pb2.DISPOSITION_ACCEPTED:
                self.accepted.append((follow.step, follow.attempt, follow.token))
            follow = (decision.rest or Continue()) if decision.more else None
            if self.crashes and self.random.random() < 0.1:
                self.crash()
                return

    def crash(self) -> None:
        """Only what is stored is left."""
        run = self.run
        head = storage_pb2.RunHead.FromString(run.state.head.SerializeToString())
        records = [storage_pb2.StepRecord.FromString(record.SerializeToString()) for record in run.stored.values()]
        run.state = RunState.of(run.source, head, records, run.state.inputs)
        run.stored = {i: record for i, record in enumerate(run.state.steps) if record is not None}

    def judge(self, before: RunState, after: RunState) -> None:
        """Steps start and are skipped as the naive model says."""
        source, states = self.source, after.head.step_states
        ended = [state in TERMINAL for state in states]
        broadcast, main = not source.name, len(source.steps)
        for index, state in enumerate(states):
            known = before.head.step_states
            was, reason = known[index] if index < len(known) else PENDING, after.head.step_reasons[index]
            if state == was or was != PENDING:
                continue
            each = after.plan.steps[index]
            if each.is_finally:
                assert all(ended[:main]), "a finally step began early"
            if each.is_instance:
                self.judge_instance(after, index)
            if each.is_finally or each.is_instance:
                continue
            needs = [] if broadcast else needs_of(source, index)
            ends = [(states[need], source.steps[need].allow_failure) for need in needs]
            runs = broadcast or should_run(source.steps[index].trigger_rule, ends)
            if state != SKIPPED or reason in (
                run_pb2.STEP_REASON_NEED_FAILED,
                run_pb2.STEP_REASON_NEED_SKIPPED,
                run_pb2.STEP_REASON_NO_NEED_FAILED,
            ):
                assert all(ended[need] for need in needs), "judged before its needs had ended"
                assert runs == (state != SKIPPED)
                assert state == SKIPPED or before.head.state != run_pb2.RUN_STATE_CANCELLING
            elif reason == run_pb2.STEP_REASON_FAIL_FAST:
                assert source.failure_policy != pipeline_pb2.FAILURE_POLICY_CONTINUE
                assert any(states[i] == FAILED and not s.allow_failure for i, s in enumerate(source.steps))
            elif reason == run_pb2.STEP_REASON_NOT_DECIDED:
                assert runs
                assert source.steps[index].gate.optional
            else:
                assert after.head.outcome

    def judge_instance(self, after: RunState, index: int) -> None:
        """An instance has its turn only while its step is under way, and so many at a time."""
        states, own = after.head.step_states, after.plan.steps[index]
        matrix = after.plan.steps[own.matrix_step].matrix
        assert matrix is not None
        places = after.plan.instances[own.matrix_step]
        at_work = [i for i in places if states[i] in (QUEUED, RUNNING, RETRYING)]
        assert len(at_work) <= (matrix.max_parallel or len(places))
        if states[index] not in TERMINAL:
            assert states[own.matrix_step] == RUNNING
        if after.head.step_reasons[index] == run_pb2.STEP_REASON_INSTANCE_FAIL_FAST:
            assert matrix.fail_fast
            assert not own.allow_failure
            assert any(states[i] == FAILED for i in places)

    # What may happen

    def out(self) -> list[int]:
        """Steps that somebody has."""
        return [i for i, record in enumerate(self.run.state.steps) if record is not None and record.token]

    def waiting(self) -> list[int]:
        """Steps that wait for somebody."""
        steps = self.run.state.steps
        return [i for i, r in enumerate(steps) if r is not None and r.state == QUEUED and not r.token]

    def gates(self) -> list[int]:
        """Steps at which people decide, open or not."""
        return [i for i, s in enumerate(self.run.plan.steps) if s.gate is not None]

    def decision(self, index: int) -> StepDecided:
        """What somebody decides."""
        decision = self.random.choice([pipeline_pb2.DECISION_APPROVED, pipeline_pb2.DECISION_REJECTED])
        return StepDecided(index, decision, self.random.choice("abcd"), self.random.choice(["", "why"]))

    def claim(self, index: int, *, jetstream: bool) -> Claimed:
        """A claim under a new token."""
        transport = run_pb2.TRANSPORT_JETSTREAM if jetstream else run_pb2.TRANSPORT_GRPC
        session = f"session-{self.random.randrange(2)}"
        return Claimed((Claim(index, session, "worker", f"t{next(self.run.tokens)}", transport),))

    def called(self, index: int) -> Called:
        """A step that runs a pipeline gets a run."""
        return Called((Call(index, f"t{next(self.run.tokens)}"),))

    def child_ended(self, index: int) -> ChildEnded:
        """How that run ends, or that it was refused; or news of one that the step does not wait for."""
        record = self.run.state.steps[index]
        assert record is not None
        refused = self.random.random() < 0.1
        return ChildEnded(
            record.step,
            record.token if self.random.random() < 0.9 else "wrong",
            self.random.choice(sorted(TERMINAL_RUN)),
            "because",
            b"x" * self.random.choice([0, 10, 200_000]),
            invalid=run_pb2.STEP_REASON_CHILD_RUN_REFUSED if refused else run_pb2.STEP_REASON_UNSPECIFIED,
            exists=not refused,
        )

    def given_out(self, index: int, *, jetstream: bool) -> Event:
        """A step that waits gets what it waits for."""
        record = self.run.state.steps[index]
        if record is not None and waits_for_lock(record):
            return LockGranted(index)
        return self.called(index) if self.run.plan.steps[index].calls else self.claim(index, jetstream=jetstream)

    def begin(self) -> Event:
        """What has the run begin, or go on to."""
        return LockGranted(RUN) if run_waits_for_lock(self.run.state.head) else RunCreated()

    def result(self, index: int, outcome: str) -> ResultReceived:
        """What the worker that has the step says."""
        record = self.run.state.steps[index]
        assert record is not None
        s = self.run.plan.steps[index]
        data = b"x" * self.random.choice([0, 10, 200_000])
        message_id = str(len(self.past)).encode()
        if record.transport == run_pb2.TRANSPORT_JETSTREAM and self.random.random() < 0.3:
            return answer("", 0, "", s.driver, outcome, data=data, message_id=message_id)
        invalid = run_pb2.STEP_REASON_RESULT_INVALID if self.random.random() < 0.05 else 0
        token = record.token if self.random.random() < 0.9 else "wrong"
        retryable = self.random.choice([None, None, False])
        return answer(
            s.id,
            record.attempt,
            token,
            s.driver,
            outcome,
            data=data,
            retryable=retryable,
            invalid=run_pb2.StepReason.ValueType(invalid),
        )

    def happen(self) -> None:
        """One thing."""
        random, run = self.random, self.run
        out, waiting = self.out(), self.waiting()
        any_step = random.randrange(len(run.plan.steps)) if run.plan.steps else 0
        index = random.choice(out) if out else any_step
        record = run.state.steps[index]
        token = record.token if record is not None else ""
        kind = random.randrange(100)
        if run.state.head.state == run_pb2.RUN_STATE_PENDING and kind < 90:
            kind = 99
        if kind < 30 and waiting:
            self.send(self.given_out(random.choice(waiting), jetstream=random.random() < 0.4))
        elif kind < 55 and out:
            calls = run.plan.steps[index].calls
            self.send(self.child_ended(index) if calls else self.result(index, random.choice(OUTCOMES)))
        elif kind < 65 and self.past:
            self.send(random.choice(self.past))
        elif kind < 72:
            # The clock may be set, too.
            run.now += random.choice([0, 1, 5, 60, -60, 3600, -3600]) * SECOND
            self.send(Tick() if random.random() < 0.5 else Continue())
        elif kind < 78:
            self.send(TicketSent(index, token, storage_pb2.Ticket(sequence=len(self.past) + 1)))
        elif kind < 82:
            self.send(TicketDelivered(index, token))
        elif kind < 85:
            self.send(TicketWithdrawn(index, token))
        elif kind < 88:
            self.send(NotReceived(index, token))
        elif kind < 91:
            self.send(WorkerLost(f"session-{random.randrange(2)}", ""))
        elif kind < 93 and self.gates():
            self.send(self.decision(random.choice(self.gates())))
        elif kind < 94:
            self.send(Waiting(any_step, run_pb2.STEP_REASON_NO_WORKER, str(random.randrange(2))))
        elif kind < 95:
            self.send(InputRefused(any_step, run_pb2.STEP_REASON_INPUT_TOO_LARGE, "too large"))
        elif kind < 97:
            self.send(CancelRequested("enough", random.choice([0, 10]) * SECOND, force=random.random() < 0.3))
        elif kind < 98:
            self.send(LockGranted(any_step if random.random() < 0.7 else RUN))
        else:
            self.send(self.begin())

    def let_go(self) -> None:
        """Nothing is withheld any more: the sweep, workers that answer, and time."""
        run = self.run
        self.send(self.begin())
        for _ in range(50 * len(run.plan.steps) + 50):
            if run.state.terminal:
                return
            commits = run.commits
            self.send(Continue())
            if run.state.head.state == run_pb2.RUN_STATE_PENDING:
                self.send(self.begin())
            for index in self.waiting():
                self.send(self.given_out(index, jetstream=False))
            for index in self.gates():
                self.send(self.decision(index))
            for index in self.out():
                record = run.state.steps[index]
                s = run.plan.steps[index]
                if s.calls:
                    self.send(self.child_ended(index))
                elif record is not None and record.token:
                    self.send(answer(s.id, record.attempt, record.token, s.driver, self.random.choice(OUTCOMES)))
            if run.commits == commits and not run.state.terminal:
                time = next_timer(run.state)
                assert time, "it waits for nothing"
                run.now = max(run.now, time)
        assert run.state.terminal, "it goes on for ever"


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pipelines(), st.integers(0, 1 << 32), st.sampled_from([1, 2, 60]), st.integers(0, 60))
def test_whatever_happens(source: pipeline_pb2.Pipeline, seed: int, records: int, events: int) -> None:
    """No terminal state is left, no step begins early, events count once, one attempt is current, all runs end."""
    with patch.object(run_copy, "MAX_RECORDS", records):
        world = World(source, seed)
        for _ in range(events):
            world.happen()
        world.let_go()
        run = world.run
        named = [what for what in world.accepted if what[0]]
        assert len(set(named)) == len(named), "a result counted twice"
        head = run.state.head
        if not head.outcome:
            assert head.state == naive_outcome(source, list(head.step_states[: run.plan.declared]))
        for event in list(world.past):
            world.send(event)
        assert next_timer(run.state) == 0


@settings(max_examples=300, deadline=None)
@given(pipelines(only_drivers=True), st.randoms(use_true_random=False), st.data())
def test_end_does_not_depend_on_the_order_of_events(
    source: pipeline_pb2.Pipeline, random: Random, data: st.DataObject
) -> None:
    """Under CONTINUE each step ends as the naive model says, whoever is first."""
    source.name, source.failure_policy = "p", pipeline_pb2.FAILURE_POLICY_CONTINUE
    for s in [*source.steps, *source.finally_steps]:
        s.ClearField("retry")
        s.trigger_rule = s.trigger_rule or pipeline_pb2.TRIGGER_RULE_ALL_SUCCESS
    count = len(source.steps) + len(source.finally_steps)
    scripted = data.draw(st.lists(st.sampled_from([SUCCEEDED, FAILED, CANCELLED]), min_size=count, max_size=count))
    says = {SUCCEEDED: "SUCCEEDED", FAILED: "FAILED", CANCELLED: "CANCELLED"}
    run = Run(source)
    run.start()
    while not run.state.terminal:
        waiting = [
            i for i, record in enumerate(run.state.steps) if record is not None and record.state in (QUEUED, RUNNING)
        ]
        index = random.choice(waiting)
        run.report(run.plan.steps[index].id, says[scripted[index]])
    ends = naive_end(source, scripted) + scripted[len(source.steps) :]
    assert list(run.state.head.step_states) == ends
    assert run.state.head.state == naive_outcome(source, ends)


@settings(max_examples=100, deadline=None)
@given(pipelines(), st.integers(0, 1 << 32), st.integers(0, 40))
def test_small_commits_come_to_the_same_end(source: pipeline_pb2.Pipeline, seed: int, events: int) -> None:
    """What one commit could not hold is the same as what it could: same events, same end."""
    ends, orders = [], []
    for records in (1, 60):
        with patch.object(run_copy, "MAX_RECORDS", records):
            world = World(source, seed, crashes=False)
            for _ in range(events):
                world.happen()
            world.let_go()
            head = world.run.state.head
            steps = {s.id: (head.step_states[s.index], head.step_reasons[s.index]) for s in world.run.plan.steps}
            ends.append((head.state, head.reason, steps))
            orders.append(list(steps))
    # Where matrices were expanded in another order, what happened at random happened to other instances.
    assume(orders[0] == orders[1])
    assert ends[0] == ends[1]


@settings(max_examples=100, deadline=None)
@given(pipelines())
def test_ancestors(source: pipeline_pb2.Pipeline) -> None:
    """The inputs of a step in a graph are all that it needs, directly or not."""
    source.name, source.order = "p", pipeline_pb2.ORDER_GRAPH
    plan: Plan = Run(source).plan

    def ancestors(index: int) -> set[int]:
        return set().union(*({need} | ancestors(need) for need in plan.steps[index].needs))

    for index in range(plan.main):
        assert set(plan.inputs(index)) == ancestors(index)

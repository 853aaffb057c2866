"""The core against a second model of a whole run, written for this test alone: plain, slow, and with nothing shared.

After every event both must have each step and the run in the same state: under either failure policy, with every
trigger rule, allowed failures, retries, lost workers, finally steps and cancels, and with old events that come again.
"""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.core.events import CancelRequested, Claim, Claimed, Event, RunCreated, Tick, WorkerLost
from conveyor.core.plan import SECOND
from conveyor.v1 import pipeline_pb2, run_pb2
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
    Run,
    answer,
    pipeline,
    step,
)

RULES = ("ALL_SUCCESS", "NONE_FAILED", "ONE_FAILED", "ALL_DONE")
SAYS = {SUCCEEDED: "SUCCEEDED", FAILED: "FAILED", CANCELLED: "CANCELLED"}
GRACE = 100_000 * SECOND


class Model:
    """A run as the documentation tells it."""

    def __init__(self, source: pipeline_pb2.Pipeline) -> None:
        self.source = source
        self.steps = [*source.steps, *source.finally_steps]
        self.main = range(len(source.steps))
        self.states = [PENDING] * len(self.steps)
        self.failures = [0] * len(self.steps)
        self.losses = [0] * len(self.steps)
        self.begun = self.cancelled = self.forced = False

    # Events

    def begin(self) -> None:
        if not self.begun and not self.cancelled:
            self.begun = True
            self.settle()

    def take(self, index: int) -> None:
        self.states[index] = RUNNING

    def answer(self, index: int, outcome: int) -> None:
        if self.cancelled and index in self.main:
            outcome = CANCELLED
        self.failures[index] += outcome == FAILED
        attempts = self.steps[index].retry.max_attempts or 1
        again = outcome == FAILED and self.failures[index] < attempts and self.may_go_on(index)
        self.states[index] = RETRYING if again else outcome
        self.settle()

    def due(self) -> None:
        """All back-offs are over."""
        self.states = [QUEUED if state == RETRYING else state for state in self.states]

    def lose(self, index: int) -> None:
        self.losses[index] += 1
        if self.cancelled and index in self.main:
            self.states[index] = CANCELLED
        elif self.losses[index] > 3 or not self.may_go_on(index):
            self.states[index] = FAILED
        else:
            self.states[index] = QUEUED
        self.settle()

    def cancel(self, *, force: bool) -> None:
        if self.ended:
            return
        self.cancelled = True
        self.forced = self.forced or force or not self.begun
        if self.forced:
            self.states = [CANCELLED if state == RUNNING else state for state in self.states]
        self.settle()

    # Rules

    @property
    def ended(self) -> bool:
        return all(state in TERMINAL for state in self.states)

    @property
    def failing(self) -> bool:
        """Whether the run stops at its first failure, and has had it."""
        return self.source.failure_policy == pipeline_pb2.FAILURE_POLICY_FAIL_FAST and any(
            self.states[i] == FAILED and not self.steps[i].allow_failure for i in self.main
        )

    def hopeful(self, index: int) -> bool:
        """Whether the step has nothing to wait for in a run that is to fail."""
        return self.steps[index].trigger_rule in (
            pipeline_pb2.TRIGGER_RULE_ALL_SUCCESS,
            pipeline_pb2.TRIGGER_RULE_NONE_FAILED,
        )

    def may_go_on(self, index: int) -> bool:
        if index not in self.main:
            return True
        return not self.cancelled and not (self.failing and self.hopeful(index))

    def settle(self) -> None:
        before: list[int] = []
        while before != self.states:
            before = list(self.states)
            for index in self.main:
                self.states[index] = self.next(index)
            if all(self.states[i] in TERMINAL for i in self.main):
                for index in range(len(self.main), len(self.steps)):
                    self.states[index] = self.next_finally(index)

    def next(self, index: int) -> int:
        state = self.states[index]
        if self.cancelled and state in (PENDING, QUEUED, RETRYING):
            return SKIPPED if state == PENDING else CANCELLED
        if self.failing and self.hopeful(index) and state in (PENDING, QUEUED, RETRYING):
            return SKIPPED
        needs = self.needs(index)
        if state != PENDING or not all(self.states[need] in TERMINAL for need in needs):
            return state
        return QUEUED if self.rule_holds(index, needs) else SKIPPED

    def next_finally(self, index: int) -> int:
        state = self.states[index]
        if self.forced and state not in TERMINAL:
            return SKIPPED if state == PENDING else CANCELLED
        return QUEUED if state == PENDING else state

    def needs(self, index: int) -> list[int]:
        if self.source.order == pipeline_pb2.ORDER_LIST:
            return [index - 1] if index else []
        return [self.steps.index(s) for s in self.source.steps if s.id in self.steps[index].needs]

    def rule_holds(self, index: int, needs: list[int]) -> bool:
        good = [
            self.states[n] == SUCCEEDED or (self.states[n] == FAILED and self.steps[n].allow_failure) for n in needs
        ]
        bad = [self.states[n] != SKIPPED and not fine for n, fine in zip(needs, good, strict=True)]
        match self.steps[index].trigger_rule:
            case pipeline_pb2.TRIGGER_RULE_ALL_SUCCESS:
                return all(good)
            case pipeline_pb2.TRIGGER_RULE_NONE_FAILED:
                return not any(bad)
            case pipeline_pb2.TRIGGER_RULE_ONE_FAILED:
                return any(self.states[n] == FAILED for n in needs)
        return True

    def run_state(self) -> int:
        if self.ended:
            if self.cancelled:
                return run_pb2.RUN_STATE_CANCELLED
            bad = [s for s, state in zip(self.steps, self.states, strict=True) if state in (FAILED, CANCELLED)]
            fine = all(s.allow_failure for s in bad)
            return run_pb2.RUN_STATE_SUCCEEDED if fine else run_pb2.RUN_STATE_FAILED
        if self.cancelled:
            return run_pb2.RUN_STATE_CANCELLING
        return run_pb2.RUN_STATE_RUNNING if self.begun else run_pb2.RUN_STATE_PENDING


@st.composite
def pipelines(draw: st.DrawFn) -> pipeline_pb2.Pipeline:
    """Lists and graphs of up to eight steps, with up to two finally steps."""

    def details() -> dict[str, object]:
        given: dict[str, object] = {"allow_failure": draw(st.booleans())}
        if draw(st.booleans()):
            backoff = {"seconds": draw(st.integers(1, 5))}
            given["retry"] = {"max_attempts": draw(st.integers(1, 3)), "initial_backoff": backoff}
        return given

    graph = draw(st.sampled_from([True, True, False]))
    names = [f"s{i}" for i in range(draw(st.integers(1, 8)))]
    steps = []
    for i, name in enumerate(names):
        needs = draw(st.lists(st.sampled_from(names[:i]), max_size=2, unique=True)) if graph and i else []
        steps.append(step(name, *needs, rule=draw(st.sampled_from(RULES)), **details()))
    finally_steps = [step(f"f{i}", **details()) for i in range(draw(st.integers(0, 2)))]
    policies = [pipeline_pb2.FAILURE_POLICY_FAIL_FAST, pipeline_pb2.FAILURE_POLICY_CONTINUE]
    return pipeline(*steps, finally_steps=finally_steps, graph=graph, failure_policy=draw(st.sampled_from(policies)))


class Both:
    """The core and the model, told the same."""

    def __init__(self, source: pipeline_pb2.Pipeline, random: Random, *, cancels: bool) -> None:
        self.model = Model(source)
        self.run = Run(source)
        self.random = random
        self.cancels = cancels
        self.past: list[Event] = []

    def send(self, event: Event) -> None:
        self.run.apply(event)
        self.past.append(event)

    def step_on(self) -> None:
        """One thing that can happen now, or an old one once more."""
        random, states = self.random, self.model.states
        queued = [i for i, state in enumerate(states) if state == QUEUED]
        running = [i for i, state in enumerate(states) if state == RUNNING]
        kind = random.randrange(20)
        if kind == 0 and self.cancels:
            force = random.random() < 0.3
            self.send(CancelRequested("enough", GRACE, force=force))
            self.model.cancel(force=force)
        elif kind == 1 and self.past:
            # Claims aside: one under an old token is as good as any.
            old = random.choice([event for event in self.past if not isinstance(event, Claimed | CancelRequested)])
            self.run.apply(old)
        elif kind < 13 and queued:
            self.take(random.choice(queued))
        elif kind < 15 and running:
            self.lose(random.choice(running))
        elif kind < 19 and running:
            self.answer(random.choice(running), random.choice([SUCCEEDED, SUCCEEDED, FAILED, FAILED, CANCELLED]))
        elif queued:
            self.take(random.choice(queued))
        elif RETRYING in states:
            self.run.now += 100 * SECOND
            self.send(Tick())
            self.model.due()
        elif running:
            self.answer(random.choice(running), random.choice([SUCCEEDED, FAILED]))

    def take(self, index: int) -> None:
        token = f"t{next(self.run.tokens)}"
        self.send(Claimed((Claim(index, f"session-{token}", "worker", token, run_pb2.TRANSPORT_GRPC),)))
        self.model.take(index)

    def answer(self, index: int, outcome: int) -> None:
        record, s = self.run.state.steps[index], self.model.steps[index]
        assert record is not None
        self.send(answer(s.id, record.attempt, record.token, s.driver, SAYS[outcome]))
        self.model.answer(index, outcome)

    def lose(self, index: int) -> None:
        record = self.run.state.steps[index]
        assert record is not None
        self.send(WorkerLost(record.session, ""))
        self.model.lose(index)

    def agree(self) -> None:
        head = self.run.state.head
        assert list(head.step_states) == self.model.states
        assert head.state == self.model.run_state()


@settings(max_examples=600, deadline=None)
@given(pipelines(), st.integers(0, 1 << 32), st.booleans())
def test_the_core_does_what_the_documentation_says(source: pipeline_pb2.Pipeline, seed: int, cancels: bool) -> None:
    # A seed: hypothesis's own randomness would leave little variety in long histories.
    random = Random(seed)
    both = Both(source, random, cancels=cancels)
    if cancels and random.random() < 0.1:
        both.send(CancelRequested("before it began", GRACE))
        both.model.cancel(force=False)
        both.agree()
    both.send(RunCreated())
    both.model.begin()
    both.agree()
    for _ in range(40 * len(both.model.steps) + 40):
        if both.model.ended:
            break
        both.step_on()
        both.agree()
    assert both.run.state.terminal, "it goes on for ever"

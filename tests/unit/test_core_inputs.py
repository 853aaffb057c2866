"""What the core does with the verdicts of whoever evaluates expressions."""

from __future__ import annotations

from conveyor.core.events import Continue, RunCreated
from conveyor.core.inputs import Seen, Verdict
from conveyor.core.model import Decision, new_run
from conveyor.core.plan import compile_plan
from conveyor.core.transitions import apply
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, run_pb2

ONE_FAILED = pipeline_pb2.TRIGGER_RULE_ONE_FAILED
SKIP = Verdict(run_pb2.STEP_REASON_CONDITION_FALSE)
MISSING = Verdict(run_pb2.STEP_REASON_INPUT_MISSING, "params.x is not there")


class Verdicts:
    """Answers with what it was made with, by step; counts what it was asked."""

    def __init__(self, *steps: str, **verdicts: Verdict) -> None:
        self.asked: list[int] = []
        self._verdicts = {steps.index(name): verdict for name, verdict in verdicts.items()}

    def judge(self, index: int, seen: Seen) -> Verdict:
        """What was set, or that it runs."""
        self.asked.append(index)
        return self._verdicts.get(index, Verdict())

    def repeats(self, index: int) -> bool:
        """Always."""
        return True


def begin(pipeline: pipeline_pb2.Pipeline, inputs: Verdicts | None) -> Decision:
    """A run that begins."""
    pipeline.name = "release"
    head = storage_pb2.RunHead(id="x", create_time=1)
    return apply(new_run(compile_plan(pipeline), head, inputs=inputs), RunCreated(), 2)


def graph(**needs: tuple[str, ...]) -> pipeline_pb2.Pipeline:
    """Steps with conditions."""
    pipeline = pipeline_pb2.Pipeline(order=pipeline_pb2.ORDER_GRAPH)
    for name, names in needs.items():
        pipeline.steps.add(id=name, driver="x", needs=names, when="true")
    return pipeline


def states(decision: Decision) -> list[str]:
    """States and reasons of all steps."""
    head = decision.state.head
    return [
        run_pb2.StepState.Name(state).removeprefix("STEP_STATE_")
        + (":" + run_pb2.StepReason.Name(reason).removeprefix("STEP_REASON_") if reason else "")
        for state, reason in zip(head.step_states, head.step_reasons, strict=True)
    ]


def test_steps_without_expressions_ask_nobody() -> None:
    pipeline = pipeline_pb2.Pipeline(steps=[pipeline_pb2.Step(id="a", driver="x")])
    pipeline.steps[0].params.update({"n": 1})
    decision = begin(pipeline, None)
    assert states(decision) == ["QUEUED"]
    assert decision.state.plan.steps[0].params == pipeline.steps[0].params.SerializeToString()
    assert not decision.state.plan.judged


def test_params_are_kept_with_the_step() -> None:
    decision = begin(graph(a=()), Verdicts("a", a=Verdict(params=b"p")))
    record = decision.state.steps[0]
    assert record is not None
    assert (record.params, record.attempt, decision.ready) == (b"p", 1, (0,))


def test_a_condition_skips_without_a_record() -> None:
    decision = begin(graph(a=(), b=("a",)), Verdicts("a", "b", a=SKIP))
    assert states(decision) == ["SKIPPED:CONDITION_FALSE", "SKIPPED:NEED_SKIPPED"]
    assert decision.state.steps == [None, None]
    assert decision.ended
    assert decision.state.head.state == run_pb2.RUN_STATE_SUCCEEDED


def test_a_refused_input_stops_what_was_queued_in_the_same_commit() -> None:
    pipeline = graph(a=(), bad=(), z=(), after=("bad",), never=("a",))
    pipeline.steps[3].trigger_rule = ONE_FAILED
    inputs = Verdicts("a", "bad", "z", "after", "never", bad=MISSING)
    decision = begin(pipeline, inputs)
    assert states(decision) == [
        "SKIPPED:FAIL_FAST",
        "FAILED:INPUT_MISSING",
        "SKIPPED:FAIL_FAST",
        "QUEUED",
        "SKIPPED:FAIL_FAST",
    ]
    assert decision.ready == (3,)
    record = decision.state.steps[1]
    assert record is not None
    assert (record.attempt, record.message) == (0, "params.x is not there")
    # What is stopped is not judged.
    assert inputs.asked == [0, 1, 3]


def test_other_branches_go_on_if_the_pipeline_says_so() -> None:
    pipeline = graph(a=(), bad=(), z=())
    pipeline.failure_policy = pipeline_pb2.FAILURE_POLICY_CONTINUE
    assert states(begin(pipeline, Verdicts("a", "bad", "z", bad=MISSING))) == [
        "QUEUED",
        "FAILED:INPUT_MISSING",
        "QUEUED",
    ]


def test_a_run_whose_only_step_is_refused_ends_at_once() -> None:
    pipeline = graph(a=())
    pipeline.finally_steps.add(id="f", driver="x", when="false")
    decision = begin(pipeline, Verdicts("a", "f", a=MISSING, f=SKIP))
    assert states(decision) == ["FAILED:INPUT_MISSING", "SKIPPED:CONDITION_FALSE"]
    head = decision.state.head
    assert (decision.ended, head.state) == (True, run_pb2.RUN_STATE_FAILED)
    assert head.message == "step a failed: params.x is not there"


def test_large_params_take_several_commits() -> None:
    count = 20
    pipeline = graph(**{f"s{i}": () for i in range(count)})
    names = [f"s{i}" for i in range(count)]
    large = dict.fromkeys(names, Verdict(params=b"x" * 65_536))
    decision = begin(pipeline, Verdicts(*names, **large))
    # The first commit has the run's snapshot besides.
    sizes = [_size(decision)]
    while decision.more:
        decision = apply(decision.state, Continue(), 3)
        sizes.append(_size(decision))
    assert sizes == [1 * 65_536, 8 * 65_536, 8 * 65_536, 3 * 65_536]


def _size(decision: Decision) -> int:
    records = [decision.state.steps[index] for index in decision.changed]
    return sum(len(record.params) for record in records if record is not None)


def test_the_key_of_a_lock_comes_with_the_verdict() -> None:
    pipeline = graph(a=(), b=(), c=())
    pipeline.failure_policy = pipeline_pb2.FAILURE_POLICY_CONTINUE
    for step in pipeline.steps:
        step.lock.key = "literal" if step.id == "c" else "${{ params.x }}"
    decision = begin(pipeline, Verdicts("a", "b", "c", a=Verdict(lock="deploy"), b=MISSING))
    assert states(decision)[0] == "QUEUED:WAITING_FOR_LOCK"
    assert states(decision)[1] == "FAILED:INPUT_MISSING"
    assert decision.joins == (0, 2)
    assert [record.lock.key for record in decision.state.steps if record is not None] == ["deploy", "", "literal"]

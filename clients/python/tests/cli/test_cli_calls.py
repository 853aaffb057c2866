"""How runs and those that their steps started are shown together."""

from typing import Any

from conveyor.v1.pipeline_pb2 import Pipeline, Step, SubPipeline
from conveyor.v1.run_pb2 import StepState

_CHILD = "0193a5b0-0000-7000-8000-000000000002"


def test_a_run_shows_the_runs_of_its_steps(conveyor: Any, server: Any, make_run: Any) -> None:
    run, child = make_run(), make_run()
    run.steps[0].state, run.steps[0].attempt, run.steps[0].child_run = StepState.STEP_STATE_RUNNING, 1, _CHILD
    child.id, child.caller_run, child.caller_step, child.depth = _CHILD, run.id, "deploy", 1
    server.runs.update({run.id: run, child.id: child})
    steps, _, within = conveyor("run", "get", run.id).out.partition("Runs of its steps:\n")
    assert f"run {_CHILD}" in steps
    head, row = within.splitlines()
    assert head.split()[:3] == ["STEP", "ID", "PIPELINE"]
    assert row.split()[:2] == ["deploy", _CHILD]
    said = conveyor("run", "get", child.id).out
    assert f"Step of: run {run.id}, step deploy" in " ".join(said.split())
    assert "Runs of its steps" not in said
    for words in (("run", "list"), ("list", "runs")):
        assert conveyor(*words, "--caller", run.id, "-o", "name").out == f"run/{child.id}\n"
    assert conveyor("list", "pipelines", "--caller", run.id).code == 2


def test_a_pipeline_shows_what_its_steps_run(conveyor: Any, server: Any) -> None:
    pipeline = Pipeline(namespace="default", name="release")
    pipeline.steps.append(Step(id="build", driver="compile"))
    pipeline.steps.append(Step(id="deploy", runs=SubPipeline(pipeline="rollout")))
    server.objects["pipeline", "release"] = pipeline
    for words in (("pipeline", "get"), ("pipeline", "graph")):
        out = conveyor(*words, "release").out
        assert "→ pipeline rollout" in out, out

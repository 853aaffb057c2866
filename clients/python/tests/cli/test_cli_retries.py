"""How runs and those that retry them are shown together."""

from typing import Any

from conveyor.v1.run_pb2 import RunState


def test_a_run_shows_the_runs_that_retry_it(conveyor: Any, server: Any, make_run: Any) -> None:
    failed = make_run()
    failed.state = RunState.RUN_STATE_FAILED
    again = make_run()
    again.id, again.parent_run = "0193a5b0-0000-7000-8000-000000000002", failed.id
    server.runs.update({failed.id: failed, again.id: again})
    assert f"Retried as: {again.id} (RUNNING)" in conveyor("run", "get", failed.id).out
    assert f"Retry of: {failed.id}" in " ".join(conveyor("run", "get", again.id).out.split())
    for words in (("run", "list"), ("list", "runs")):
        assert conveyor(*words, "--parent", failed.id, "-o", "name").out == f"run/{again.id}\n"
    assert conveyor("list", "pipelines", "--parent", failed.id).code == 2

"""What commands print where, and their exit codes."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from conveyor.sdk import from_struct
from conveyor.v1.driver_pb2 import Driver, Worker
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.run_pb2 import RunState, Transport

Conveyor = Callable[..., Any]

FILES = """\
kind: Resource
name: shop
definition: app
pipeline: release
---
kind: Pipeline
name: release
steps: [{id: build, driver: compile}]
---
kind: ResourceDefinition
name: app
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "all.yaml"
    path.write_text(FILES)
    return str(path)


def test_apply_says_what_it_did(conveyor: Conveyor, server: Any, run_id: str, file: str) -> None:
    first = conveyor("apply", "-f", file)
    assert (first.code, first.err) == (0, "")
    assert first.out.splitlines() == [
        "definition/app created",
        "pipeline/release created",
        f"resource/app/shop created, run {run_id} started",
    ]
    again = conveyor("apply", "-f", file)
    assert again.out.splitlines() == [
        "definition/app unchanged",
        "pipeline/release unchanged",
        "resource/app/shop unchanged",
    ]
    assert all(request.namespace == "default" for request in server.requests)


def test_what_get_prints_is_applied_unchanged(
    conveyor: Conveyor, server: Any, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conveyor("apply", "-f", file)
    for form in ("yaml", "json"):
        printed = conveyor("list", "pipelines", "-o", form).out
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(printed.encode())))
        assert conveyor("apply", "-f", "-").out == "pipeline/release unchanged\n"


def test_a_dry_run_stores_nothing(conveyor: Conveyor, server: Any, file: str) -> None:
    done = conveyor("apply", "-f", file, "--dry-run")
    assert done.out.splitlines()[2] == "resource/app/shop created (dry run)"
    assert server.objects == {}


def test_a_dry_run_cannot_check_what_needs_the_same_files(
    conveyor: Conveyor, server: Any, refusal: Any, file: str, tmp_path: Path
) -> None:
    server.refusals["ApplyResource"] = refusal(
        grpc.StatusCode.FAILED_PRECONDITION, "UNKNOWN_PIPELINE", "there is no pipeline release"
    )
    done = conveyor("apply", "-f", file, "--dry-run")
    assert done.code == 0
    assert (
        done.out.splitlines()[2]
        == "resource/app/shop not checked: it needs definition/app and pipeline/release, which a dry run does not store"
    )
    assert conveyor("apply", "-f", file).code == 1
    alone = tmp_path / "alone.yaml"
    alone.write_text("kind: Resource\nname: shop\ndefinition: app\npipeline: release\n")
    assert conveyor("apply", "-f", str(alone), "--dry-run").code == 1


def test_apply_goes_on_after_a_refusal(conveyor: Conveyor, server: Any, refusal: Any, run_id: str, file: str) -> None:
    server.refusals["ApplyPipeline release"] = refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "CYCLE", "the steps need each other", (("steps[0].needs", "build → build"),)
    )
    done = conveyor("apply", "-f", file)
    assert done.code == 1
    assert done.out.splitlines() == ["definition/app created", f"resource/app/shop created, run {run_id} started"]
    assert done.err.splitlines() == [
        f"error: {file}:8: pipeline/release: the steps need each other",
        f"  {file}:8: pipeline/release: steps[0].needs: build → build",
    ]


def test_apply_in_json_and_by_name(conveyor: Conveyor, server: Any, run_id: str, file: str) -> None:
    assert json.loads(conveyor("apply", "-f", file, "-o", "json").out) == [
        {"kind": "ResourceDefinition", "name": "app", "outcome": "CREATED"},
        {"kind": "Pipeline", "name": "release", "outcome": "CREATED"},
        {"kind": "Resource", "name": "shop", "definition": "app", "outcome": "CREATED", "run": run_id},
    ]
    assert conveyor("apply", "-f", file, "-o", "name").out.split() == [
        "definition/app",
        "pipeline/release",
        "resource/app/shop",
    ]
    assert conveyor("apply", "-f", file, "-q").out == ""


def test_without_a_server_apply_says_so_once(conveyor: Conveyor, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEYOR_ADDRESS", "127.0.0.1:1")
    done = conveyor("apply", "-f", file)
    assert (done.code, done.out) == (7, "")
    refused, rest = done.err.splitlines()
    assert refused.startswith(f"error: {file}:10: definition/app: cannot reach the server at 127.0.0.1:1")
    assert rest == f"  not tried: {file}:6: pipeline/release, {file}:1: resource/app/shop"


def test_nothing_is_sent_when_a_file_is_wrong(conveyor: Conveyor, server: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(FILES + "---\nkind: Pipeline\nnom: x\n")
    done = conveyor("apply", "-f", str(path))
    assert (done.code, done.out, server.requests) == (1, "", [])
    assert "nom: unknown field" in done.err


def test_namespaces_of_files(conveyor: Conveyor, server: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("kind: Pipeline\nname: a\nnamespace: blue\n---\nkind: Pipeline\nname: b\n")
    done = conveyor("apply", "-f", str(path), "-n", "green")
    assert done.err == f"error: {path}:1: pipeline/a is of namespace blue, but -n says green\n"
    assert conveyor("apply", "-f", str(path)).code == 0
    assert [request.namespace for request in server.requests] == ["blue", "default"]


@pytest.mark.parametrize("place", ["before", "after"])
def test_common_options_stand_before_and_after_the_command(conveyor: Conveyor, server: Any, place: str) -> None:
    options = ("-n", "blue", "-o", "name")
    server.objects["pipeline", "x"] = Pipeline(name="x")
    arguments = (*options, "list", "pipelines") if place == "before" else ("list", "pipelines", *options)
    assert conveyor(*arguments).out == "pipeline/x\n"
    assert server.requests[0].namespace == "blue"


@pytest.mark.parametrize("kind", ["definitions", "pipelines", "resources", "runs", "drivers"])
def test_empty_lists(conveyor: Conveyor, server: Any, kind: str) -> None:
    for form in ("json", "yaml"):
        done = conveyor("list", kind, "-o", form)
        assert (done.code, done.out, done.err) == (0, "[]\n", "")
    done = conveyor("list", kind)
    assert (done.code, done.out, done.err) == (0, "", f"no {kind}\n")
    quiet = conveyor("list", kind, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert conveyor("list", kind, "-o", "name").out == ""


def test_what_is_not_there(conveyor: Conveyor, server: Any) -> None:
    for arguments in (("get", "pipeline", "nope"), ("get", "pipeline/nope"), ("get", "pipeline", "nope", "-o", "json")):
        done = conveyor(*arguments)
        assert (done.code, done.out, done.err) == (1, "", "error: there is no pipeline nope\n")
    done = conveyor("delete", "pipeline", "nope")
    assert (done.code, done.out, done.err) == (1, "", "error: pipeline/nope: there is no pipeline nope\n")
    done = conveyor("delete", "pipeline", "nope", "--ignore-not-found")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_lists_of_everything(conveyor: Conveyor, server: Any, make_run: Any, file: str) -> None:
    conveyor("apply", "-f", file)
    run = make_run()
    server.runs[run.id] = run
    worker = Worker(name="box-1", slots=2, busy=1, transport=Transport.TRANSPORT_GRPC)
    server.drivers.append(Driver(name="compile", workers=[worker]))
    assert conveyor("list", "pipelines").out.splitlines() == [
        "NAME     STEPS  ORDER  GENERATION",
        "release  1      LIST   1",
    ]
    assert conveyor("list", "resources").out.splitlines()[1].split() == ["app/shop", "release", "1"]
    assert conveyor("list", "definitions").out.splitlines()[1].split() == ["app", "1"]
    assert conveyor("driver", "list").out.splitlines()[1].split() == ["compile", "1", "1", "2", "GRPC", "now"]
    row = conveyor("run", "list").out.splitlines()[1].split()
    assert row[:5] == [run.id, "release", "app/shop", "RUNNING", "1/3"]
    (listed,) = json.loads(conveyor("run", "list", "-o", "json").out)
    assert (listed["kind"], listed["state"], listed["stepStates"]) == (
        "Run",
        "RUNNING",
        ["SUCCEEDED", "RUNNING", "PENDING"],
    )


def test_drivers_that_are_connected_were_not_seen_some_time_ago(conveyor: Conveyor, server: Any) -> None:
    grpc_worker = Worker(name="box-1", slots=2, busy=1, transport=Transport.TRANSPORT_GRPC)
    consumer = Worker(name="pytest", busy=1, transport=Transport.TRANSPORT_JETSTREAM)
    for name, workers in {"both": [grpc_worker, consumer], "gone": [], "pytest": [consumer]}.items():
        driver = Driver(name=name, workers=workers)
        driver.last_seen_time.FromJsonString("2026-01-31T12:00:00Z")
        server.drivers.append(driver)
    both, gone, pulled = (line.split() for line in conveyor("driver", "list").out.splitlines()[1:])
    assert both == ["both", "2", "2", "2", "GRPC,", "JETSTREAM", "now"]
    assert (gone[:4], gone[-1]) == (["gone", "0", "0", "0"], "ago")
    assert pulled == ["pytest", "1", "1", "-", "JETSTREAM", "now"]


def test_each_worker_of_a_driver_says_its_labels(conveyor: Conveyor, server: Any) -> None:
    labels = {"os": "linux", "arch": "arm64"}
    workers = [
        Worker(name="box-1", slots=2, transport=Transport.TRANSPORT_GRPC, labels=labels, definitions=["app"]),
        Worker(name="box-2", slots=1, transport=Transport.TRANSPORT_GRPC),
    ]
    server.drivers.append(Driver(name="compile", workers=workers))
    head, first, second = conveyor("driver", "get", "compile").out.splitlines()[-3:]
    assert head.split() == ["WORKER", "TRANSPORT", "BUSY", "SLOTS", "DEFINITIONS", "LABELS"]
    assert first.split() == ["box-1", "GRPC", "0", "2", "app", "arch=arm64,", "os=linux"]
    assert second.split() == ["box-2", "GRPC", "0", "1"]


def test_a_run_for_people(conveyor: Conveyor, server: Any, make_run: Any) -> None:
    run = make_run(RunState.RUN_STATE_FAILED, message="step test failed\x1b[2J\nbadly")
    server.runs[run.id] = run
    lines = conveyor("run", "get", run.id).out.splitlines()
    assert f"Run:      {run.id}" in lines
    assert "State:    FAILED" in lines
    assert "Message:  step test failed badly" in lines
    assert "Duration: 4.0s" in lines
    table = lines[lines.index("") + 1 :]
    assert [line.split()[:3] for line in table] == [
        ["STEP", "DRIVER", "STATE"],
        ["build", "compile", "SUCCEEDED"],
        ["test", "pytest", "RUNNING"],
        ["ship", "upload", "PENDING"],
    ]
    assert "2/3" in table[2]


def test_why_a_run_was_cancelled_is_told_once(conveyor: Conveyor, server: Any, make_run: Any) -> None:
    run = make_run(RunState.RUN_STATE_CANCELLED, message="wrong branch", cancel_message="wrong branch")
    server.runs[run.id] = run
    assert conveyor("run", "get", run.id).out.count("wrong branch") == 1
    run.message = "step test failed"
    told = conveyor("run", "get", run.id).out.splitlines()
    assert "Message:   step test failed" in told
    assert "Cancelled: wrong branch" in told


def test_filters_of_runs(conveyor: Conveyor, server: Any) -> None:
    arguments = (
        "--pipeline",
        "p",
        "--resource",
        "app/shop",
        "--state",
        "failed,cancelled",
        "-l",
        "a=b",
        "--since",
        "2h",
    )
    assert conveyor("run", "list", *arguments).code == 0
    (request,) = server.requests
    assert (request.pipeline, request.definition, request.resource) == ("p", "app", "shop")
    assert list(request.states) == [RunState.RUN_STATE_FAILED, RunState.RUN_STATE_CANCELLED]
    assert dict(request.labels) == {"a": "b"}
    assert request.HasField("create_time_from")


@pytest.mark.parametrize(
    ("state", "code"),
    [(RunState.RUN_STATE_SUCCEEDED, 0), (RunState.RUN_STATE_FAILED, 3), (RunState.RUN_STATE_CANCELLED, 5)],
)
def test_watch_and_wait_reflect_a_run_that_has_ended(
    conveyor: Conveyor, server: Any, make_run: Any, state: RunState.ValueType, code: int
) -> None:
    run = make_run(state)
    server.runs[run.id] = run
    name = RunState.Name(state).removeprefix("RUN_STATE_")
    waited = conveyor("run", "wait", run.id)
    assert (waited.code, waited.out, waited.err) == (code, f"run {run.id} {name} in 4.0s\n", "")
    watched = conveyor("run", "watch", f"run/{run.id}")
    assert watched.code == code
    assert watched.out.splitlines()[-1] == f"run {run.id} {name} in 4.0s"


def test_watch_tells_each_change_once(conveyor: Conveyor, server: Any, make_run: Any) -> None:
    run = make_run()
    server.runs[run.id] = run
    server.changes.put(run)
    server.changes.put(make_run(RunState.RUN_STATE_FAILED, message="step test failed"))
    done = conveyor("run", "watch", run.id)
    assert done.code == 3
    assert [line.split() for line in done.out.splitlines()] == [
        ["2.0s", "(run)", "RUNNING"],
        ["2.0s", "build", "SUCCEEDED"],
        ["2.0s", "test", "RUNNING", "attempt", "2/3"],
        ["2.0s", "(run)", "FAILED", "step", "test", "failed"],
        ["run", run.id, "FAILED", "in", "4.0s:", "step", "test", "failed"],
    ]


def test_watch_in_json_is_a_line_per_change(conveyor: Conveyor, server: Any, make_run: Any) -> None:
    run = make_run()
    server.runs[run.id] = run
    server.changes.put(make_run(RunState.RUN_STATE_SUCCEEDED))
    lines = [json.loads(line) for line in conveyor("run", "watch", run.id, "-o", "json").out.splitlines()]
    assert [line["run"]["state"] for line in lines] == ["RUNNING", "SUCCEEDED"]
    assert [step["step"] for step in lines[0]["steps"]] == ["build", "test", "ship"]


def test_wait_waits_for_all_and_tells_the_worst(conveyor: Conveyor, server: Any, make_run: Any) -> None:
    for number, state in enumerate((RunState.RUN_STATE_CANCELLED, RunState.RUN_STATE_FAILED)):
        server.runs[str(number)] = make_run(state, id=str(number))
    done = conveyor("run", "wait", "0", "1")
    assert done.code == 3
    assert sorted(done.out.splitlines()) == ["run 0 CANCELLED in 4.0s", "run 1 FAILED in 4.0s"]
    done = conveyor("run", "wait", "0", "nope", "1", "-o", "json")
    assert done.code == 1
    assert [run["id"] for run in json.loads(done.out)] == ["0", "1"]
    assert done.err == "error: run/nope: there is no run nope\n"


@pytest.mark.parametrize("command", ["wait", "watch"])
def test_a_timeout_has_a_code_of_its_own(conveyor: Conveyor, server: Any, make_run: Any, command: str) -> None:
    run = make_run()
    server.runs[run.id] = run
    done = conveyor("run", command, run.id, "--timeout", "1ms")
    assert done.code == 6
    # gRPC itself may have a word to say before.
    assert f"error: run {run.id} has not ended within 0.001 s" in done.err


@pytest.mark.parametrize(
    "command",
    [
        *("run wait x", "run watch x", "run watch", "run logs x", "run logs x -f", "run start app/shop --wait"),
        *("run get x", "run list", "run cancel x", "run retry x", "driver list", "get pipeline x", "delete pipeline x"),
        "version --server",
    ],
)
def test_every_command_says_when_no_server_can_be_reached(
    conveyor: Conveyor, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CONVEYOR_ADDRESS", "127.0.0.1:1")
    done = conveyor(*command.split())
    assert done.code == 7
    assert "cannot reach the server at 127.0.0.1:1" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_server_whose_broker_or_store_is_away_was_reached(
    conveyor: Conveyor, server: Any, refusal: Any, make_run: Any, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor.cli.commands.logs._PATIENCE", 0.0)
    server.runs[run_id] = make_run()
    server.refusals["ReadLogs"] = refusal(grpc.StatusCode.UNAVAILABLE, "BROKER_UNAVAILABLE", "no broker answers")
    for arguments in ((), ("-f", "--give-up-after", "0s")):
        done = conveyor("run", "logs", run_id, *arguments)
        assert (done.code, done.out) == (1, "")
        assert done.err.splitlines() == [
            "error: given up after 0 s: no broker answers",
            "  the server's broker is away; try again when it is back",
        ]
    # What a proxy or a server that went away looks like.
    server.refusals["ReadLogs"] = refusal(grpc.StatusCode.INTERNAL, "", "RST_STREAM")
    assert conveyor("run", "logs", run_id).code == 7
    server.refusals["ListRuns"] = refusal(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "the store is away")
    assert conveyor("run", "list").code == 1


@pytest.mark.parametrize("command", ["wait", "watch", "logs", "get", "cancel", "delete"])
def test_a_wrong_id_is_an_error(conveyor: Conveyor, server: Any, command: str) -> None:
    done = conveyor("run", command, "nope")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("there is no run nope\n")


def test_start_prints_the_id(conveyor: Conveyor, server: Any, run_id: str) -> None:
    assert conveyor("run", "start", "app/shop").out == f"run {run_id} started\n"
    assert conveyor("run", "start", "app/shop", "-q").out == f"{run_id}\n"
    assert conveyor("run", "start", "app/shop", "-o", "name").out == f"run/{run_id}\n"
    assert json.loads(conveyor("run", "start", "app/shop", "-o", "json").out)["id"] == run_id


def test_start_sends_what_it_was_given(conveyor: Conveyor, server: Any, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("n: 1\nl: [1, two]\nv: '1.10'\n")
    given = (
        "--pipeline",
        "other",
        "-l",
        "a=b=c",
        "-p",
        "t=5",
        "--param-json",
        "n=5",
        "--param-json",
        'o={"a": [true]}',
    )
    done = conveyor("run", "start", "app/shop", *given, "--params", str(file), "--request-id", "r")
    assert done.code == 0, done.err
    (request,) = server.requests
    assert (request.definition, request.resource, request.pipeline) == ("app", "shop", "other")
    assert (dict(request.labels), request.request_id) == ({"a": "b=c"}, "r")
    assert from_struct(request.params) == {"n": 5, "l": [1, "two"], "v": "1.10", "t": "5", "o": {"a": [True]}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--param-json", "n=five"], "--param-json n is not JSON; text is given by -p n=…"),
        (["--param-json", "n=5", "-p", "n=5"], "the parameter n is given by -p and by --param-json"),
        (["--param-json", "n=9007199254740993"], "send it as a string"),
        (["-p", "n"], "-p takes key=value, not 'n'"),
        (["-p", "n=1", "-p", "n=2"], "-p n is given twice"),
    ],
)
def test_parameters_that_cannot_be_sent(conveyor: Conveyor, server: Any, given: list[str], said: str) -> None:
    done = conveyor("run", "start", "app/shop", *given)
    assert (done.code, server.requests) == (2, [])
    assert said in done.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n", "is no single map"),
        ("a: 1\n---\nb: 2\n", "is no single map"),
        ("a: 1\na: 2\n", "params.yaml:2: "),
        ("a: .nan\n", "params.yaml:1: "),
        ("", "is no single map"),
    ],
)
def test_files_that_hold_no_parameters(
    conveyor: Conveyor, server: Any, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(content)
    done = conveyor("run", "start", "app/shop", "--params", str(file))
    assert (done.code, server.requests) == (1, [])
    assert said in done.err
    assert "params.yaml" in done.err


@pytest.mark.parametrize("option", ["--wait", "--watch"])
def test_start_and_follow(conveyor: Conveyor, server: Any, make_run: Any, run_id: str, option: str) -> None:
    server.runs[run_id] = make_run(RunState.RUN_STATE_FAILED)
    done = conveyor("run", "start", "app/shop", option)
    assert done.code == 3
    lines = done.out.splitlines()
    assert (lines[0], lines[-1]) == (f"run {run_id} started", f"run {run_id} FAILED in 4.0s")
    done = conveyor("run", "start", "app/shop", "--wait", "-o", "json")
    assert (json.loads(done.out)["state"], done.err) == ("FAILED", f"run {run_id} started\n")


def test_cancel_and_delete(conveyor: Conveyor, server: Any, make_run: Any, run_id: str) -> None:
    server.runs[run_id] = make_run()
    done = conveyor("run", "cancel", run_id, "-m", "why not", "--grace", "1m", "--force")
    assert (done.code, done.out) == (0, f"run/{run_id} CANCELLING\n")
    (request,) = server.requests
    assert (request.message, request.force, request.grace.seconds) == ("why not", True, 60)
    assert conveyor("delete", f"run/{run_id}").out == f"run/{run_id} deleted\n"
    assert server.runs == {}


def test_delete_what_files_describe(conveyor: Conveyor, server: Any, file: str) -> None:
    conveyor("apply", "-f", file)
    assert conveyor("delete", "-f", file).out.splitlines() == [
        "resource/app/shop deleted",
        "pipeline/release deleted",
        "definition/app deleted",
    ]
    assert server.objects == {}


def test_hints_and_ids_of_errors(conveyor: Conveyor, server: Any, refusal: Any) -> None:
    server.refusals["ListPipelines"] = refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "a mistake in the server, id 4711")
    assert conveyor("list", "pipelines").err == "error: a mistake in the server, id 4711\n"
    server.refusals["DeletePipeline"] = refusal(grpc.StatusCode.ABORTED, "ETAG_MISMATCH", "not the current etag")
    assert conveyor("delete", "pipeline/a").err.splitlines() == [
        "error: pipeline/a: not the current etag",
        "  it changed in between: get it again and repeat",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nope",),
        ("get",),
        ("get", "pipeline"),
        ("get", "thing", "x"),
        ("get", "resource", "shop"),
        ("get", "run", "x", "--generation", "2"),
        ("list", "pipelines", "--state", "FAILED"),
        ("list", "runs", "--state", "NOPE"),
        ("list", "runs", "--since", "yesterday"),
        ("list", "runs", "-l", "novalue"),
        ("list", "runs", "-o", "xml"),
        ("run",),
        ("run", "start", "shop"),
        ("run", "start", "app/shop", "--timeout", "1m"),
        ("run", "start", "app/shop", "--param-json", "a=9007199254740993"),
        ("run", "watch", "x", "--pipeline", "p"),
        ("run", "wait", "x", "--timeout", "5"),
        ("run", "logs", "x", "--attempt", "2"),
        ("delete",),
        ("delete", "pipeline", "x", "-f", "y"),
        ("list", "runs", "--address", "http://localhost"),
        ("list", "runs", "--tls-cert", "only.pem"),
        ("completion", "tcsh"),
        ("get", "pipeline", "\udcff"),
    ],
)
def test_usage(conveyor: Conveyor, arguments: tuple[str, ...]) -> None:
    done = conveyor(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err
    assert "Traceback" not in done.err


def test_version(conveyor: Conveyor, server: Any) -> None:
    from conveyor.version import VERSION

    for words in (("version",), ("--version",)):
        done = conveyor(*words)
        assert (done.code, done.out, done.err) == (0, f"conveyor {VERSION}\n", "")
    assert conveyor("version", "--server").out.splitlines() == [f"conveyor {VERSION}", "server 9.9.9 (sqlite)"]
    assert json.loads(conveyor("version", "-o", "json").out) == {"client": {"version": VERSION}}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(conveyor: Conveyor, shell: str) -> None:
    assert "_CONVEYOR_COMPLETE" in conveyor("completion", shell).out


def test_help_names_every_command(conveyor: Conveyor) -> None:
    done = conveyor("--help")
    assert done.code == 0
    for name in ("apply", "get", "list", "delete", "run", "driver", "version", "completion", "server"):
        assert f"\n  {name} " in done.out

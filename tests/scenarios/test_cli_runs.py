"""The command line against a real server: files in, runs through, exit codes out."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.server import ConveyorServer

CONVEYOR = str(Path(sys.executable).parent / "conveyor")

# One worker for each kind of behaviour; `hold` ends when the file HOLD is gone, or when it is told to.
DRIVERS = """
import asyncio, os, sys
from pathlib import Path
from conveyor.sdk import Driver, Job

name = sys.argv.pop(1)
driver = Driver(name, slots=8)

@driver.reconcile
async def work(job: Job) -> dict:
    job.log("%s says hello", name)
    if name == "fail":
        raise job.fail("it is broken")
    if name == "flaky" and job.attempt < 3:
        raise job.fail("not yet")
    if name == "hold":
        while Path(os.environ["HOLD"]).exists():
            await asyncio.sleep(0.02)
    if name == "escape":
        job.log("\\x1b]0;title\\x07\\x1b[2Jdone")
    return {"by": name}

driver.run()
"""

FILES = """
kind: ResourceDefinition
name: app
schema: {type: object, required: [size], properties: {size: {type: integer}}}
---
kind: Resource
definition: app
name: shop
spec: {size: 1}
"""


def pipeline(name: str, *drivers: str, retry: bool = False) -> str:
    steps = [{"id": f"s{number}-{driver}", "driver": driver} for number, driver in enumerate(drivers, 1)]
    if retry:
        steps = [{**step, "retry": {"maxAttempts": 3, "initialBackoff": "10ms"}} for step in steps]
    return json.dumps({"kind": "Pipeline", "name": name, "steps": steps})


@dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass
class World:
    """A server with drivers, and the command line before it."""

    server: ConveyorServer
    hold: Path
    environment: dict[str, str]
    processes: "list[subprocess.Popen[str]]" = field(default_factory=list)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command."""
        process = subprocess.Popen(
            [CONVEYOR, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        self.processes.append(process)
        return process

    def tidy(self) -> None:
        """End what a failed test left behind."""
        while self.processes:
            process = self.processes.pop()
            if process.poll() is None:
                process.kill()
                process.communicate()

    def __call__(self, *arguments: str, stdin: str = "") -> Done:
        """Run a command to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout=60)
        return Done(process.returncode, out, err)

    def started(self, name: str) -> str:
        """The id of a new run on a pipeline."""
        done = self("run", "start", "app/shop", "--pipeline", name, "-q")
        assert (done.code, done.err) == (0, "")
        return done.out.strip()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("cli")
    server = ConveyorServer(directory / "server").start()
    hold = directory / "hold"
    environment = {**os.environ, "CONVEYOR_ADDRESS": server.address, "HOLD": str(hold), "NO_COLOR": "1"}
    script = directory / "drivers.py"
    script.write_text(textwrap.dedent(DRIVERS))
    drivers = [
        subprocess.Popen([sys.executable, str(script), name], env=environment, stderr=subprocess.DEVNULL)
        for name in ("ok", "fail", "flaky", "hold", "escape")
    ]
    world = World(server, hold, environment)
    applied = world(
        "apply",
        "-f",
        "-",
        stdin="\n---\n".join(
            (
                FILES,
                pipeline("fine", "ok", "ok"),
                pipeline("broken", "ok", "fail", "ok"),
                pipeline("flaky", "flaky", retry=True),
                pipeline("held", "hold", "ok"),
                pipeline("waiting", "nosuch"),
                pipeline("escape", "escape"),
            )
        ),
    )
    assert (applied.code, applied.err) == (0, "")
    try:
        yield world
    finally:
        hold.unlink(missing_ok=True)
        for driver in drivers:
            driver.kill()
            driver.wait()
        server.stop()


@pytest.fixture(autouse=True)
def _tidy(world: World) -> Iterator[None]:
    yield
    world.tidy()


@pytest.fixture
def held(world: World) -> Iterator[Path]:
    """The file that makes the driver `hold` wait."""
    world.hold.touch()
    yield world.hold
    world.hold.unlink(missing_ok=True)


def test_a_run_from_start_to_end(world: World) -> None:
    done = world("run", "start", "app/shop", "--pipeline", "fine", "--watch")
    assert (done.code, done.err) == (0, "")
    first, *_, last = done.out.splitlines()
    run_id = first.split()[1]
    assert first == f"run {run_id} started"
    assert last.startswith(f"run {run_id} SUCCEEDED in ")

    got = json.loads(world("run", "get", run_id, "-o", "json").out)
    assert (got["kind"], got["state"], got["pipeline"]) == ("Run", "SUCCEEDED", "fine")
    assert [(step["step"], step["state"]) for step in got["steps"]] == [("s1-ok", "SUCCEEDED"), ("s2-ok", "SUCCEEDED")]
    assert got["steps"][0]["result"]["data"] == {"by": "ok"}
    assert run_id in world("list", "runs", "--pipeline", "fine", "--state", "succeeded").out
    assert world("list", "runs", "--pipeline", "fine", "--state", "failed", "-o", "json").out == "[]\n"
    assert world("run", "logs", run_id).out == "[s1-ok] ok says hello\n[s2-ok] ok says hello\n"
    assert world("run", "delete", run_id).out == f"run/{run_id} deleted\n"
    assert world("run", "get", run_id).code == 1


def test_a_failed_run_fails_whoever_follows_it(world: World) -> None:
    run_id = world.started("broken")
    for command in ("wait", "watch"):
        done = world("run", command, run_id)
        assert done.code == 3
        assert f"run {run_id} FAILED in " in done.out
    assert "it is broken" in world("run", "watch", run_id).out
    states = [line.split()[2] for line in world("run", "get", run_id).out.splitlines() if line.startswith("s")]
    assert states == ["SUCCEEDED", "FAILED", "SKIPPED"]
    retried = world("run", "retry", run_id, "--wait", "-o", "json")
    assert retried.code == 3
    assert json.loads(retried.out)["parentRun"] == run_id
    assert world("run", "retry", "run/nope").code == 1


def test_waiting_for_two(world: World, held: Path) -> None:
    failed, slow = world.started("broken"), world.started("held")
    process = world.start("run", "wait", failed, slow)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"run {failed} FAILED")
    held.unlink()
    out, _ = process.communicate(timeout=60)
    assert out.startswith(f"run {slow} SUCCEEDED")
    assert process.returncode == 3


def test_cancel_and_timeout(world: World, held: Path) -> None:
    run_id = world.started("held")
    done = world("run", "wait", run_id, "--timeout", "50ms")
    assert (done.code, done.out) == (6, "")
    process = world.start("run", "watch", run_id)
    assert process.stdout is not None
    assert process.stdout.readline()
    cancelled = world("run", "cancel", run_id, "-m", "enough")
    assert (cancelled.code, cancelled.err) == (0, "")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 5
    assert f"run {run_id} CANCELLED" in out
    assert "enough" in world("run", "get", run_id).out


def test_who_is_waited_for(world: World) -> None:
    run_id = world.started("waiting")
    assert "nosuch" in world("run", "get", run_id).out
    process = world.start("run", "watch", run_id)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    (waiting,) = (line for line in (next(lines), next(lines)) if "QUEUED" in line)
    assert "no worker of driver nosuch" in waiting
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (130, False)
    assert f"run {run_id} goes on" in err
    assert json.loads(world("run", "get", run_id, "-o", "json").out)["state"] == "RUNNING"
    assert world("run", "cancel", run_id).code == 0


def test_logs_of_all_attempts(world: World) -> None:
    run_id = world.started("flaky")
    followed = world("run", "logs", "-f", run_id)
    assert (followed.code, followed.err) == (0, "")
    assert followed.out.splitlines() == [
        "[s1-flaky] flaky says hello",
        "[s1-flaky#2] flaky says hello",
        "[s1-flaky#3] flaky says hello",
    ]
    assert world("run", "logs", "-f", run_id).out == followed.out
    assert world("run", "logs", run_id, "--step", "s1-flaky", "--attempt", "2", "--raw").out == "flaky says hello\n"
    assert "3/3" in world("run", "get", run_id).out


def test_a_pipe_gets_what_the_driver_wrote(world: World) -> None:
    run_id = world.started("escape")
    assert world("run", "wait", run_id).code == 0
    assert world("run", "logs", run_id).out.splitlines()[1] == "[s1-escape] \x1b]0;title\x07\x1b[2Jdone"


def test_a_watch_outlives_its_server(world: World, held: Path) -> None:
    run_id = world.started("held")
    process = world.start("run", "watch", run_id)
    assert process.stdout is not None
    assert process.stdout.readline()
    world.server.kill()
    world.server.start()
    held.unlink()
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0
    assert f"run {run_id} SUCCEEDED" in out
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [("run", "wait"), ("run", "watch"), ("run", "logs", "-f")])
def test_ctrl_c_before_a_frozen_server(world: World, held: Path, command: tuple[str, ...]) -> None:
    run_id = world.started("held")
    process = world.start(*command, run_id)
    world.server.freeze()
    try:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        world.server.thaw()
    assert process.returncode in {130, -signal.SIGINT}
    assert "Traceback" not in err
    held.unlink()
    assert world("run", "wait", run_id).code == 0


def test_three_different_errors(world: World) -> None:
    wrong_id = world("run", "watch", "01a00000-0000-7000-8000-000000000000")
    assert (wrong_id.code, "error: " in wrong_id.err) == (1, True)
    no_server = world("run", "watch", "x", "--address", "127.0.0.1:1")
    assert (no_server.code, "cannot reach" in no_server.err) == (7, True)
    assert world("run", "wait", "--timeout", "soon", "x").code == 2


def test_values_come_back_as_they_went(world: World) -> None:
    text = textwrap.dedent(
        """
        kind: ResourceDefinition
        name: free
        ---
        kind: Resource
        definition: free
        name: odd
        spec:
          A: no
          B: on
          K: 12:30:00
          L: null
          released: 2022-01-16
          n: [386, -1, 3, 3.0, 0.1, 9007199254740992, 1e10]
          on: {e: é😀}
          text: "  a\\tb\\r\\n"
        """
    )
    assert world("apply", "-f", "-", stdin=text).code == 0
    got = world("get", "resource", "free/odd", "-o", "json").out
    assert json.loads(got)["spec"] == {
        "A": "no",
        "B": "on",
        "K": "12:30:00",
        "L": None,
        "released": "2022-01-16",
        "n": [386, -1, 3, 3, 0.1, 9007199254740992, 10000000000],
        "on": {"e": "é😀"},
        "text": "  a\tb\r\n",
    }
    assert "3.0" not in got
    for form in ("json", "yaml"):
        printed = world("get", "resource/free/odd", "-o", form).out
        assert world("apply", "-f", "-", stdin=printed).out == "resource/free/odd unchanged\n"


def test_what_the_server_refuses_is_told_by_field(world: World) -> None:
    cycle = {
        "kind": "Pipeline",
        "name": "round",
        "order": "GRAPH",
        "steps": [{"id": "a", "driver": "ok", "needs": ["b"]}, {"id": "b", "driver": "ok", "needs": ["a"]}],
    }
    done = world("apply", "-f", "-", stdin=json.dumps(cycle))
    assert (done.code, done.out) == (1, "")
    (told,) = done.err.splitlines()
    assert told.startswith("error: standard input:1: pipeline/round: ")
    assert "a -> b -> a" in told
    wrong = "kind: Resource\ndefinition: app\nname: wrong\nspec: {size: big}\n"
    done = world("apply", "-f", "-", stdin=wrong)
    assert done.code == 1
    assert any("size" in line and line.startswith("  ") for line in done.err.splitlines())
    assert world("get", "resource", "app/wrong").code == 1


def test_namespaces_are_apart(world: World) -> None:
    assert world("apply", "-n", "blue", "-f", "-", stdin=pipeline("only-blue", "ok")).code == 0
    assert world("get", "pipeline", "only-blue").code == 1
    assert json.loads(world("get", "pipeline", "only-blue", "-n", "blue", "-o", "json").out)["namespace"] == "blue"
    assert world("delete", "pipeline/only-blue", "-n", "blue").code == 0


def test_drivers_and_the_server(world: World) -> None:
    listed = json.loads(world("driver", "list", "-o", "json").out)
    assert {"ok", "fail", "flaky", "hold", "escape"} <= {driver["name"] for driver in listed}
    assert "conveyor" in world("driver", "get", "ok").out
    assert world("version", "--server").out.count("\n") == 2
    assert world("server", "--help").code == 0

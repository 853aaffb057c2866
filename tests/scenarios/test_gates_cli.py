"""Gates on the command line: approved, rejected, shown, completed, drawn."""

from __future__ import annotations

import asyncio
import getpass
import json
import re
import socket

import pytest

from conveyor.v1.run_pb2 import Run
from tests.support.behaviour import Hold
from tests.support.belt import Belt, one, state, step
from tests.support.cli import Cli, Done
from tests.support.gates import APPROVED, gate, opened
from tests.support.wait import until


@pytest.fixture
def cli(belt: Belt) -> Cli:
    return Cli(belt.address, belt.namespace)


async def ran(cli: Cli, *arguments: str) -> Done:
    """A command, to its end."""
    return await asyncio.to_thread(cli, *arguments)


async def test_approve_in_the_name_of_who_is_logged_in(belt: Belt, cli: Cli) -> None:
    run = await opened(belt, gate("ask"))
    done = await ran(cli, "run", "approve", run.id, "ask", "--comment", "looks good")
    me = f"{getpass.getuser()}@{socket.gethostname()}"
    assert (done.code, done.err) == (0, "")
    assert done.out == f"gate ask of run/{run.id}: SUCCEEDED: approved by {me}: looks good\n"
    assert one((await belt.ended(run)).steps, "ask").decisions[0].by == me
    waited = await ran(cli, "run", "wait", run.id)
    assert waited.code == 0


async def test_reject_the_only_gate_that_waits(belt: Belt, cli: Cli) -> None:
    run = await opened(belt, gate("ask"))
    done = await ran(cli, "run", "reject", f"run/{run.id}", "--as", "bob", "-m", "not on Friday")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"gate ask of run/{run.id}: FAILED: rejected by bob: not on Friday\n"
    waited = await ran(cli, "run", "wait", run.id)
    assert (waited.code, "rejected by bob" in waited.out) == (3, True)
    again = await ran(cli, "run", "approve", run.id)
    assert (again.code, again.out) == (1, "")
    assert again.err == f"error: no gate of run {run.id} waits for a decision; the run is FAILED\n"


async def test_one_of_several_gates_is_named(belt: Belt, cli: Cli) -> None:
    run = await opened(belt, gate("ask"), gate("other"), graph=True)
    done = await ran(cli, "run", "approve", run.id)
    assert (done.code, done.out) == (2, "")
    assert f"2 gates of run {run.id} wait; name one of ask, other" in done.err
    assert (await ran(cli, "run", "approve", run.id, "other")).code == 0


async def test_refusals_say_what_to_do(belt: Belt, cli: Cli) -> None:
    run = await opened(belt, gate("ask"), step("deploy"))
    await belt.client.runs.approve(run.id, "ask", "ann")
    done = await ran(cli, "run", "reject", run.id, "ask", "--as", "ann")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: ann has approved gate ask already; that cannot be taken back\n"
    done = await ran(cli, "run", "approve", run.id, "ask", "--as", "bob")
    assert done.err == (
        "error: gate ask is closed already: SUCCEEDED, approved by ann\n  `conveyor run get` shows which gates wait\n"
    )
    done = await ran(cli, "run", "approve", run.id, "ask", "--as", "bob\n")
    assert (done.code, "by: must be one line" in done.err) == (1, True)


async def test_get_shows_what_is_asked_of_whom(belt: Belt, cli: Cli) -> None:
    run = await opened(belt, gate("ask", message="Deploy version ${{ resource.spec.version }}?", approvals=3))
    await belt.client.runs.approve(run.id, "ask", "ann", "good")
    shown = (await ran(cli, "run", "get", run.id)).out
    assert re.search(r"Deploy version 7\? \((waiting [\d.ms]+, )?approved by ann, 2 more must approve\)", shown)
    assert shown.endswith(
        f"Gate ask waits for a decision: Deploy version 7?, 2 more must approve\n"
        f"  conveyor run approve -n {belt.namespace} {run.id} ask\n"
        f"  conveyor run reject -n {belt.namespace} {run.id} ask\n"
    )
    (row,) = (line for line in shown.splitlines() if line.startswith("ask   APPROVED"))
    assert row.split()[2:] == ["ann", *row.split()[3:-1], "good"]
    value = json.loads((await ran(cli, "run", "get", run.id, "-o", "json")).out)
    (asked,) = value["steps"]
    assert (asked["wait"]["approvals"], asked["decisions"][0]["decision"]) == (2, "APPROVED")


async def test_what_is_shown_is_typed(belt: Belt, cli: Cli) -> None:
    """The command that `run get` shows works as it is."""
    run = await opened(belt, gate("ask"))
    shown = (await ran(cli, "run", "get", run.id)).out
    (line,) = (line.strip() for line in shown.splitlines() if "run approve" in line)
    done = await ran(Cli(belt.address), *line.split()[1:])
    assert done.code == 0
    assert state(await belt.ended(run)) == "SUCCEEDED"


async def test_output_for_programs(belt: Belt, cli: Cli) -> None:
    run = await opened(belt, gate("ask", approvals=4))
    done = await ran(cli, "run", "approve", run.id, "ask", "--as", "ann")
    assert done.out == f"gate ask of run/{run.id}: 3 more must approve\n"
    done = await ran(cli, "run", "approve", run.id, "ask", "--as", "bob", "-o", "json")
    value = json.loads(done.out)
    assert (value["kind"], value["step"], [made["by"] for made in value["decisions"]]) == (
        "StepRun",
        "ask",
        ["ann", "bob"],
    )
    done = await ran(cli, "run", "approve", run.id, "ask", "--as", "cleo", "-o", "name")
    assert done.out == f"run/{run.id}\n"
    done = await ran(cli, "run", "approve", run.id, "ask", "--as", "dan", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")


async def test_watch_tells_how_to_decide_and_who_did(belt: Belt, cli: Cli) -> None:
    run = await opened(belt, gate("ask", message="Deploy?", approvals=2))
    watching = cli.start("run", "watch", run.id)
    try:
        assert watching.stdout is not None
        await asyncio.to_thread(watching.stdout.readline)
        for by in ("ann", "bob"):
            await belt.client.runs.decide(run.id, "ask", APPROVED, by)
        out, err = await asyncio.to_thread(watching.communicate, timeout=60)
    finally:
        watching.kill()
    assert watching.returncode == 0
    assert f"gate ask waits for a decision: `conveyor run approve -n {belt.namespace} {run.id} ask`" in err
    lines = [line.split(maxsplit=2)[2] for line in out.splitlines() if " ask " in line]
    assert any("Deploy?" in line and "approved by ann" in line for line in lines)
    assert lines[-1].endswith("approved by ann and bob")


async def test_completion_offers_the_gates_that_wait(belt: Belt) -> None:
    run = await opened(belt, gate("ask"), gate("other"), step("build"), graph=True)
    words = f"conveyor run approve {run.id} "
    complete = Cli(belt.address, belt.namespace, _CONVEYOR_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD="4")

    async def offered() -> bool:
        # The server is given a second, which a busy machine may take.
        return (await ran(complete)).out.split() == ["plain,ask", "plain,other"]

    await until(offered, "the gates that wait")


async def test_a_drawing_tells_gates_from_work(belt: Belt, cli: Cli) -> None:
    await belt.pipeline(step("build"), gate("ask", approvals=2, timeout=3600, default_decision=APPROVED))
    text = (await ran(cli, "pipeline", "graph", "release")).out
    assert "ask    gate   2 approvals, APPROVED after 1h00m" in text
    assert (
        '"ask" [label="ask\\ngate\\n2 approvals\\nAPPROVED after 1h00m", shape=hexagon]'
        in (await ran(cli, "pipeline", "graph", "release", "-o", "dot")).out
    )
    assert (
        's2{{"ask<br/>gate<br/>2 approvals<br/>APPROVED after 1h00m"}}'
        in (await ran(cli, "pipeline", "graph", "release", "-o", "mermaid")).out
    )
    described = (await ran(cli, "pipeline", "get", "release")).out
    (row,) = (line for line in described.splitlines() if line.startswith("ask"))
    assert row.split() == ["ask", "gate", "1h00m"]


async def test_cancel_on_the_command_line(belt: Belt, cli: Cli) -> None:
    hold = Hold()
    belt.drive("build", hold)
    run: Run = await opened(belt, gate("ask"), step("build"), graph=True)
    await until(lambda: hold.count)
    waiting = cli.start("run", "wait", run.id)
    await belt.client.runs.cancel(run.id)
    await asyncio.to_thread(waiting.communicate, timeout=60)
    assert waiting.returncode == 5

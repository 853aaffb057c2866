"""The command line as scripts and people use it: exit codes, pipes, errors that tell each other apart."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path

import pytest

from conveyor.sdk import Job
from tests.support.behaviour import Hold, fail, ok
from tests.support.belt import Belt, Site, step
from tests.support.cli import CONVEYOR, Cli, Done
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer
from tests.support.wait import until


@pytest.fixture
def cli(belt: Belt) -> Cli:
    """Before the shared server, in the test's namespace."""
    return Cli(belt.address, belt.namespace)


async def run(cli: Cli, *arguments: str, stdin: str = "") -> Done:
    return await asyncio.to_thread(lambda: cli(*arguments, stdin=stdin))


async def test_f93_wait_and_watch_reflect_the_run(belt: Belt, cli: Cli) -> None:
    hold = Hold()
    belt.drive("fail", fail)
    belt.drive("hold", hold)
    await belt.pipeline(step("a", "fail"), name="broken")
    await belt.pipeline(step("a", "hold"), name="held")
    failed, held, cancelled = await belt.start("broken"), await belt.start("held"), await belt.start("held")
    await belt.ended(failed)
    for command in ("wait", "watch"):
        assert (await run(cli, "run", command, failed.id)).code == 3
        assert (await run(cli, "run", command, held.id, "--timeout", "10ms")).code == 6
    both = await asyncio.to_thread(cli.start, "run", "wait", failed.id, held.id)
    watching = await asyncio.to_thread(cli.start, "run", "watch", cancelled.id)
    assert both.stdout is not None
    assert watching.stdout is not None
    assert failed.id in await asyncio.to_thread(both.stdout.readline)
    await asyncio.to_thread(watching.stdout.readline)
    await belt.client.runs.cancel(cancelled.id)
    hold.released.set()
    assert f"{held.id} SUCCEEDED" in (await asyncio.to_thread(both.communicate, timeout=60))[0]
    await asyncio.to_thread(watching.communicate, timeout=60)
    assert (both.returncode, watching.returncode) == (3, 5)
    assert (await run(cli, "run", "wait", held.id)).code == 0


async def test_f94_nothing_and_what_is_missing(cli: Cli) -> None:
    for kind in ("definitions", "pipelines", "resources", "runs", "drivers"):
        done = await run(cli, "list", kind, "-o", "json")
        assert (done.code, done.out, done.err) == (0, "[]\n", "")
    assert (await run(cli, "list", "runs", "-o", "yaml")).out == "[]\n"
    assert (await run(cli, "list", "runs", "-o", "name")).out == ""
    table = await run(cli, "list", "runs")
    assert (table.code, table.out) == (0, "")
    assert (await run(cli, "list", "runs", "-q")).err == ""
    for kind, name in (("pipeline", "nope"), ("resource", "app/nope"), ("driver", "nope")):
        for verb in ("get", "delete"):
            done = await run(cli, verb, kind, name)
            assert (done.code, done.out) == (1, "")
            assert done.err.startswith("error: ")
            assert "nope" in done.err


@pytest.mark.parametrize("command", ["list runs", "run logs -f"])
async def test_f95_a_closed_pipe_is_the_end_and_no_error(belt: Belt, cli: Cli, command: str) -> None:
    async def talks(job: Job) -> None:
        for number in range(20_000):
            job.log("%d", number)
            if not number % 1_000:
                await asyncio.sleep(0)
        await hold(job)

    hold = Hold()
    belt.drive("talks", talks)
    await belt.pipeline(step("a", "talks"))
    runs = [await belt.start() for _ in range(20)]
    await hold.started.wait()
    line = f"{CONVEYOR} {command} {runs[0].id if 'logs' in command else ''} | head -1"
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", line], capture_output=True, text=True, timeout=60, env=cli.environment
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    hold.released.set()
    await belt.ended(runs[0])


async def test_f95_ctrl_c_leaves_the_run_alone(belt: Belt, cli: Cli) -> None:
    hold = Hold()
    belt.drive("hold", hold)
    await belt.pipeline(step("a", "hold"))
    started = await belt.start(resource="shop")
    for arguments in (("run", "watch", started.id), ("run", "start", "app/shop", "--wait"), ("run", "watch")):
        count = hold.count
        process = await asyncio.to_thread(cli.start, *arguments)
        if "start" in arguments:
            await until(lambda count=count: hold.count > count, "the run to start")
        else:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.to_thread(process.communicate, timeout=60)
        assert (process.returncode, "Traceback" in err) == (130, False)
    hold.released.set()
    for run_ in [each async for each in belt.client.runs.list()]:
        assert (await run(cli, "run", "wait", run_.id)).code == 0


async def test_f97_who_is_waited_for_and_three_different_errors(belt: Belt, cli: Cli) -> None:
    hold = Hold()
    belt.drive("busy", hold, slots=1)
    await belt.pipeline(step("a", "nosuch"), name="nosuch")
    await belt.pipeline(step("a", "busy"), name="busy")
    nobody, first, second = await belt.start("nosuch"), await belt.start("busy"), await belt.start("busy")
    await hold.started.wait()
    await belt.until_step(nobody, "a", "QUEUED", reason="NO_WORKER")
    waiting = second if hold.jobs[0].run == first.id else first
    await belt.until_step(waiting, "a", "QUEUED", reason="WORKERS_BUSY")
    told = (await run(cli, "run", "get", nobody.id)).out
    # From a second on, people also read how long it has been.
    assert "no worker of driver nosuch is connected (" in told
    assert "none was ever seen)" in told
    as_json = json.loads((await run(cli, "run", "get", nobody.id, "-o", "json")).out)
    assert "since" in as_json["steps"][0]["wait"]
    told = (await run(cli, "run", "get", waiting.id)).out
    assert "all workers of driver busy are busy (" in told
    assert "1 worker with 1 slot, next in line)" in told
    wrong = await run(cli, "run", "watch", "01a00000-0000-7000-8000-000000000000")
    no_id = await run(cli, "run", "watch", "not an id")
    away = await run(Cli("127.0.0.1:1"), "run", "watch", nobody.id)
    assert (wrong.code, away.code) == (1, 7)
    assert no_id.code in {1, 2}
    assert len({wrong.err, no_id.err, away.err}) == 3
    hold.released.set()


async def test_f50_a_watch_outlives_a_restart_of_its_server(tmp_path: Path) -> None:
    """Its exit code is the run's; a watch that gives up says so with another one."""
    server = ConveyorServer(tmp_path / "server")
    await asyncio.to_thread(server.start)
    try:
        async with Belt(Site(server, NatsServer(tmp_path / "unused")), tmp_path) as belt:
            cli = Cli(belt.address, belt.namespace)
            await belt.pipeline(step("a", "late"))
            started = await belt.start()
            patient = await asyncio.to_thread(cli.start, "run", "watch", started.id)
            hasty = await asyncio.to_thread(cli.start, "run", "watch", started.id, "--give-up-after", "100ms")
            for process in (patient, hasty):
                assert process.stdout is not None
                await asyncio.to_thread(process.stdout.readline)
            await asyncio.to_thread(server.kill)
            _, err = await asyncio.to_thread(hasty.communicate, timeout=60)
            assert (hasty.returncode, "given up" in err) == (7, True)
            await asyncio.to_thread(server.start)
            belt.drive("late", ok)
            out, err = await asyncio.to_thread(patient.communicate, timeout=60)
            assert (patient.returncode, "SUCCEEDED" in out, "Traceback" in err) == (0, True, False)
    finally:
        await asyncio.to_thread(server.kill)


async def test_names_of_json_fields_are_those_of_yaml(belt: Belt, cli: Cli) -> None:
    belt.drive("a", ok)
    await belt.pipeline(step("a"))
    ended = await belt.ended(await belt.start())
    as_json = json.loads((await run(cli, "run", "get", ended.id, "-o", "json")).out)
    assert (as_json["state"], as_json["steps"][0]["state"]) == ("SUCCEEDED", "SUCCEEDED")

"""P07 of examples/pipelines: jobs that share a lock, have limits in common, and report each outcome; by scenario."""

from __future__ import annotations

import contextlib
from pathlib import Path

from conveyor.sdk import NotFound
from conveyor.v1.run_pb2 import Run
from tests.support.belt import Belt, Site, state
from tests.support.nats import NatsServer
from tests.support.pipeline_files import Played, Stage, staged
from tests.support.raw_worker import RawWorker
from tests.support.server import ConveyorServer
from tests.support.wait import until

SHARED = {"pr-image", "unit", "compile-check", "testflight", "watsjs", "integration"}


async def concourse(belt: Belt) -> Stage:
    return await staged(belt, "p07-concourse-pr.yaml", "p07")


async def jobs(belt: Belt, run: str) -> dict[str, Run]:
    """The last run of each job that is a pipeline of its own. A step names its run before that is there."""
    found: dict[str, Run] = {}
    for each in (await belt.client.runs.get(run)).steps:
        if each.child_run:
            with contextlib.suppress(NotFound):
                found[each.step] = await belt.client.runs.get(each.child_run)
    return found


def hooks(job: Run) -> list[str]:
    """The outcomes that a job has reported."""
    return [each.step for each in job.steps if each.finally_step and each.attempts]


def together(runs: list[Run]) -> int:
    """How many of the runs were under way at the same time, at most."""
    times = [(run.start_time.ToMicroseconds(), 1) for run in runs]
    times += [(run.end_time.ToMicroseconds(), -1) for run in runs]
    level = most = 0
    for _, change in sorted(times):
        level += change
        most = max(most, level)
    return most


async def test_p07(belt: Belt) -> None:
    stage = await concourse(belt)
    ended: Played = await stage.play({"yarn-test": ["fail", "fail", "ok"]})
    assert (ended.state, ended.code) == ("SUCCEEDED", 0)
    done = await jobs(belt, ended.run.id)
    assert set(done) == SHARED | {"validate-labels", "containerd-integration"}
    assert together([done[name] for name in SHARED]) == 1
    assert {name: hooks(job) for name, job in done.items()} == {name: ["on-success"] for name in done}
    for name in ("testflight", "watsjs", "integration"):
        assert done[name].start_time.ToMicroseconds() >= done["pr-image"].end_time.ToMicroseconds()
    given = [each.step for each in stage.given(done["unit"].id)]
    assert given.count("yarn-test") == 3
    assert [each.step for each in stage.given(done["compile-check"].id)][:3] == [f"compile[{n}]" for n in range(3)]
    locks = await stage.cli("lock", "list", "-o", "json")
    assert locks.out.strip() == "[]"


async def test_p07_the_limit_of_a_group(belt: Belt) -> None:
    stage = await concourse(belt)
    inner = await belt.client.pipelines.get("p07-unit-go")
    inner.timeout.FromSeconds(1)
    await belt.client.pipelines.update(inner)
    ended = await stage.play({"go-unit": "sleep 60", "go-unit-baggageclaim": "sleep 60"})
    assert (ended.state, ended.code) == ("FAILED", 3)
    unit = (await jobs(belt, ended.run.id))["unit"]
    assert (state(unit), hooks(unit)) == ("FAILED", ["on-failure"])
    group = (await jobs(belt, unit.id))["go"]
    assert {each.step for each in stage.given(group.id)} == {"go-unit", "go-unit-baggageclaim"}
    assert state(group) == "FAILED"
    await until(lambda: not stage.at_work, "both to be stopped")


async def test_p07_the_image_fails(belt: Belt) -> None:
    stage = await concourse(belt)
    ended = await stage.play({"pr-image": "fail"})
    assert (ended.state, ended.code) == ("FAILED", 3)
    assert {ended.states[name] for name in ("testflight", "watsjs", "integration")} == {"SKIPPED"}
    done = await jobs(belt, ended.run.id)
    assert hooks(done["pr-image"]) == ["on-failure"]
    assert not {"testflight", "watsjs", "integration"} & set(done)


async def test_p07_aborted_in_a_job(belt: Belt) -> None:
    stage = await concourse(belt)
    script = {"check-migration-order": "hold", "pr-image": "sleep 0.1", "compile": "sleep 0.1"}
    run = await stage.start(script)

    async def in_unit() -> Run | None:
        unit = (await jobs(belt, run)).get("unit")
        at_it = unit is not None and "check-migration-order" in {each.step for each in stage.given(unit.id)}
        return unit if at_it else None

    unit = await until(in_unit, "the unit job to be in its tests")
    assert unit is not None
    assert (await stage.cli("run", "cancel", run)).code == 0
    ended = await stage.ended(run)
    assert (ended.state, ended.code) == ("CANCELLED", 5)
    assert hooks(await belt.client.runs.get(unit.id)) == ["on-abort"]
    assert (await stage.cli("lock", "list", "-o", "json")).out.strip() == "[]"


async def test_p07_a_worker_is_lost(tmp_path: Path) -> None:
    """After as many lost workers as a step may have, the hook for errors is called, not the one for failures."""
    nats = NatsServer(tmp_path / "nats").start()
    server = ConveyorServer(tmp_path / "server", ["--nats", nats.url, "--session-ttl", "3s"]).start()
    try:
        async with Belt(Site(server, nats), tmp_path) as belt:
            stage = await staged(belt, "p07-concourse-pr.yaml", "p07", workers=False)
            job = await belt.client.runs.start("source", "p07", "p07-job", {"job": "validate-labels"})
            for _ in range(4):
                async with RawWorker(belt.address, belt.namespace, "stub") as mute:
                    assert (await mute.assignments.get()).step == "task"
            await belt.until_step(job, "task", "FAILED", reason="WORKER_LOST")
            stage.work()
            ended = await belt.ended(job)
            assert (state(ended), hooks(ended)) == ("FAILED", ["on-error"])
    finally:
        server.kill()
        nats.stop()

"""Schedules on a real server whose clock the tests turn: what they start, when, and what they say of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conveyor.sdk import to_struct
from conveyor.sdk.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from conveyor.v1.apply_pb2 import ApplyOutcome
from conveyor.v1.pipeline_pb2 import Param
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.schedule_pb2 import Overlap, Schedule
from tests.support.behaviour import Hold, ok
from tests.support.belt import Belt, Site, reason, state, step
from tests.support.cli import Cli, Done
from tests.support.grpcurl import call
from tests.support.nats import NatsServer
from tests.support.schedules import HOUR, TurnedClock, decided, runs, schedule, started
from tests.support.server import ConveyorServer

FILES = """
kind: Schedule
name: nightly
labels: {kit: shop}
definition: app
resource: shop
params: {env: test}
runLabels: {by: schedule}
cron: "0 * * * *"
timeZone: Europe/Berlin
---
kind: Resource
definition: app
name: shop
labels: {kit: shop, team: web}
pipeline: release
onChange: false
params: {env: prod}
---
kind: Pipeline
name: release
labels: {kit: shop}
params: [{name: env, required: true}]
steps: [{id: pack, driver: pack}]
---
kind: ResourceDefinition
name: app
labels: {kit: shop}
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> TurnedClock:
    return TurnedClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, clock: TurnedClock) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("schedules")
    nats = NatsServer(directory / "nats").start()
    server = ConveyorServer(directory / "server", ["--nats", nats.url], program=clock.program).start()
    yield Site(server, nats)
    server.kill()
    nats.stop()


@pytest.fixture
async def belt(site: Site, clock: TurnedClock, tmp_path: Path) -> AsyncIterator[Belt]:
    async with Belt(site, tmp_path) as belt:
        await clock.agreed(belt.client)
        yield belt
        async for each in belt.client.schedules.list():
            await belt.client.schedules.delete(each.name)


async def test_from_a_file_to_a_run_by_the_command_line(belt: Belt, clock: TurnedClock) -> None:
    belt.drive("pack", ok)
    cli = Cli(belt.address, belt.namespace)

    async def run(*arguments: str, stdin: str = "", code: int = 0) -> Done:
        done = await asyncio.to_thread(cli, *arguments, stdin=stdin)
        assert done.code == code, done.err
        return done

    dry = await run("apply", "--dry-run", "-f", "-", stdin=FILES)
    assert "resource/app/shop" in next(line for line in dry.out.splitlines() if line.startswith("schedule/nightly"))
    assert "schedule/nightly created\n" in (await run("apply", "-f", "-", stdin=FILES)).out
    clock.turn(HOUR)
    (first,) = await started(belt, 1)
    ended = await belt.ended(first)
    assert (state(ended), ended.schedule) == ("SUCCEEDED", "nightly")
    assert dict(ended.labels) == {"kit": "shop", "team": "web", "by": "schedule"}
    assert ended.params["env"] == "test"

    # What came of it is no change, also not of what was read.
    assert "schedule/nightly unchanged\n" in (await run("apply", "-f", "-", stdin=FILES)).out
    read = await run("get", "schedule", "nightly", "-o", "yaml")
    assert f'lastRun: "{first.id}"' in read.out
    assert (await run("apply", "-f", "-", stdin=read.out)).out == "schedule/nightly unchanged\n"
    assert (await run("diff", "-f", "-", stdin=read.out)).out == ""

    shown = await run("schedule", "get", "nightly")
    for said in ("Europe/Berlin", first.id, "1 started", "RUN_ONCE (at most 5m00s late)"):
        assert said in shown.out
    assert first.id in (await run("list", "runs", "--schedule", "nightly", "-o", "name")).out
    assert "Schedule:" in (await run("run", "get", first.id)).out

    assert (await run("schedule", "pause", "nightly")).out == "schedule/nightly paused\n"
    done = await run("schedule", "trigger", "nightly", "--wait")
    assert "SUCCEEDED" in done.out + done.err
    assert (await run("schedule", "resume", "nightly")).out == "schedule/nightly resumed\n"

    pruned = await run("apply", "--prune", "-l", "kit=shop", "-f", "-", stdin=FILES[FILES.index("---") :])
    assert "schedule/nightly pruned\n" in pruned.out
    assert (await run("schedule", "get", "nightly", code=1)).err.startswith("error: there is no schedule nightly")


async def test_each_time_starts_one_run_and_other_namespaces_have_their_own(belt: Belt, clock: TurnedClock) -> None:
    belt.drive("pack", ok)
    made = await schedule(belt)
    assert made.status.next_time.ToSeconds() == clock.hour + HOUR
    assert made.generation == 1
    await schedule(belt, name="hourly")
    for count in (1, 2, 3):
        clock.turn(HOUR)
        found = await started(belt, count)
        await belt.ended(found[-1])
        shown = await decided(belt, clock.hour)
        assert shown.status.last_time == found[-1].schedule_time
        assert shown.status.last_time.ToSeconds() == clock.hour
        assert (shown.status.last_run, shown.status.started) == (found[-1].id, count)
        assert (shown.etag, shown.generation) == (made.etag, 1)
        # What was read, with what came of it, is what can be applied again.
        assert (await belt.client.schedules.apply(shown)).outcome == ApplyOutcome.APPLY_OUTCOME_UNCHANGED
    assert len(await started(belt, 3, "hourly")) == 3


async def test_a_change_takes_effect_at_once(belt: Belt, clock: TurnedClock) -> None:
    belt.drive("pack", ok)
    made = await schedule(belt, cron="0 0 1 1 *")
    made.cron = "30 * * * *"
    changed = await belt.client.schedules.update(made)
    assert changed.status.next_time.ToSeconds() == clock.hour + HOUR // 2
    clock.turn(HOUR / 2)
    await started(belt, 1)
    clock.turn(HOUR / 2)
    with pytest.raises(Aborted):
        await belt.client.schedules.update(made)
    assert (await belt.client.schedules.get("nightly", 1)).cron == "0 0 1 1 *"


async def test_what_passes_while_it_is_paused_is_not_made_up_for(belt: Belt, clock: TurnedClock) -> None:
    belt.drive("pack", ok)
    await schedule(belt, name="witness")
    await schedule(belt, paused=True)
    clock.turn(HOUR)
    await started(belt, 1, "witness")
    assert not (await belt.client.schedules.get("nightly")).status.HasField("next_time")
    resumed = await belt.client.schedules.resume("nightly")
    assert resumed.status.next_time.ToSeconds() == clock.hour + HOUR
    clock.turn(HOUR)
    await started(belt, 2, "witness")
    await started(belt, 1)
    await belt.client.schedules.pause("nightly")
    await belt.client.schedules.delete("witness")
    status = (await belt.client.schedules.get("nightly")).status
    assert (status.started, status.missed, status.skipped) == (1, 0, 0)


async def test_a_time_is_skipped_while_a_run_has_not_ended(belt: Belt, clock: TurnedClock) -> None:
    hold = Hold()
    belt.drive("pack", hold)
    await schedule(belt)
    clock.turn(HOUR)
    (first,) = await started(belt, 1)
    clock.turn(HOUR)
    shown = await decided(belt, clock.hour)
    assert (shown.status.skipped, list(shown.status.active_runs)) == (1, [first.id])
    with pytest.raises(FailedPrecondition, match=f"run {first.id}, which schedule nightly started, has not ended"):
        await belt.client.schedules.trigger("nightly")
    hold.released.set()
    await belt.ended(first)
    clock.turn(HOUR)
    await started(belt, 2)


async def test_runs_overlap_if_they_may(belt: Belt, clock: TurnedClock) -> None:
    hold = Hold()
    belt.drive("pack", hold)
    await schedule(belt, overlap=Overlap.OVERLAP_ALLOW)
    clock.turn(HOUR)
    await started(belt, 1)
    clock.turn(HOUR)
    both = await started(belt, 2)
    shown = await belt.client.schedules.get("nightly")
    assert list(shown.status.active_runs) == [run.id for run in both]
    hold.released.set()
    for run in both:
        assert state(await belt.ended(run)) == "SUCCEEDED"


async def test_a_new_run_replaces_the_one_that_has_not_ended(belt: Belt, clock: TurnedClock) -> None:
    hold = Hold()
    belt.drive("pack", hold)
    await schedule(belt, overlap=Overlap.OVERLAP_REPLACE)
    clock.turn(HOUR)
    (first,) = await started(belt, 1)
    clock.turn(HOUR)
    _, second = await started(belt, 2)
    ended = await belt.ended(first)
    assert (state(ended), reason(ended)) == ("CANCELLED", "REPLACED")
    assert second.id in ended.message
    # By hand it is the same.
    third = await belt.client.schedules.trigger("nightly")
    assert reason(await belt.ended(second)) == "REPLACED"
    hold.released.set()
    assert state(await belt.ended(third)) == "SUCCEEDED"
    assert (third.schedule, third.HasField("schedule_time")) == ("nightly", False)


async def test_a_run_that_is_refused_is_told_and_the_next_time_is_another_try(belt: Belt, clock: TurnedClock) -> None:
    belt.drive("pack", ok)
    await schedule(belt)
    await belt.client.resources.delete("app", "shop")
    clock.turn(HOUR)
    shown = await decided(belt, clock.hour)
    assert shown.status.last_error == "there is no resource app/shop"
    assert (shown.status.last_error_time.ToSeconds(), shown.status.failed) == (clock.hour, 1)
    await belt.client.resources.create(Resource(name="shop", definition="app", pipeline="release", on_change=False))
    await belt.pipeline(step("pack"), params=[Param(name="env", required=True)])
    clock.turn(HOUR)
    shown = await decided(belt, clock.hour)
    assert shown.status.last_error == "params.env: is missing; the pipeline requires it"
    with pytest.raises(InvalidArgument, match=r"params\.env"):
        await belt.client.schedules.trigger("nightly")
    await belt.pipeline(step("pack"))
    clock.turn(HOUR)
    await started(belt, 1)
    shown = await belt.client.schedules.get("nightly")
    assert (shown.status.last_error, shown.status.failed, shown.status.started) == ("", 2, 1)


async def test_what_does_not_fit_is_refused_when_it_is_written(belt: Belt) -> None:
    await schedule(belt)
    await belt.pipeline(step("pack"), name="other", definition="site")
    await belt.pipeline(step("pack"), name="asks", params=[Param(name="env", required=True)])

    def one(**fields: object) -> Schedule:
        return Schedule(**{"name": "b", "definition": "app", "resource": "shop", "cron": "@daily", **fields})

    for wrong, kind, said in (
        (one(resource="nobody"), FailedPrecondition, "there is no resource app/nobody"),
        (one(pipeline="nothing"), FailedPrecondition, "there is no pipeline nothing"),
        (one(pipeline="other"), FailedPrecondition, "takes resources of site"),
        (one(pipeline="asks"), InvalidArgument, "schedule.params.env: is missing"),
        (one(params=to_struct({"x": 1})), InvalidArgument, "schedule.params.x: the pipeline has no such parameter"),
        (one(run_labels={str(i): "" for i in range(65)}), InvalidArgument, "schedule.run_labels"),
        (one(cron="0 0 31 2 *"), InvalidArgument, "schedule.cron: never comes"),
        (one(time_zone="Europe/Berln"), InvalidArgument, "schedule.time_zone: .*did you mean Europe/Berlin"),
    ):
        with pytest.raises(kind, match=said):
            await belt.client.schedules.create(wrong)
    with pytest.raises(AlreadyExists):
        await belt.client.schedules.create(one(name="nightly"))
    with pytest.raises(NotFound):
        await belt.client.schedules.trigger("b")
    # While it is paused, what it names may come later.
    await belt.client.schedules.create(one(resource="nobody", paused=True))
    with pytest.raises(FailedPrecondition, match="there is no resource app/nobody"):
        await belt.client.schedules.resume("b")


async def test_a_trigger_that_is_repeated_starts_one_run(belt: Belt) -> None:
    belt.drive("pack", ok)
    await schedule(belt, overlap=Overlap.OVERLAP_ALLOW)
    first, again = [await belt.client.schedules.trigger("nightly", request_id="once") for _ in range(2)]
    assert first.id == again.id
    many = await asyncio.gather(*(belt.client.schedules.trigger("nightly") for _ in range(10)))
    found = await started(belt, 11)
    assert {run.id for run in found} == {first.id, *(run.id for run in many)}
    assert (await belt.client.schedules.get("nightly")).status.started == 11


async def test_by_hand_with_grpcurl(belt: Belt) -> None:
    await schedule(belt)

    async def rpc(method: str, **request: object) -> dict[str, object]:
        message = {"namespace": belt.namespace, **request}
        return await asyncio.to_thread(call, belt.address, f"conveyor.v1.ScheduleService/{method}", message)

    listed = await rpc("ListSchedules")
    assert [each["name"] for each in listed["schedules"]] == ["nightly"]
    assert listed["schedules"][0]["status"]["nextTime"]
    run = (await rpc("TriggerSchedule", name="nightly"))["run"]
    assert (run["schedule"], run["state"]) == ("nightly", "RUN_STATE_RUNNING")
    assert (await rpc("GetSchedule", name="nightly"))["schedule"]["status"]["activeRuns"] == [run["id"]]
    assert (await rpc("DeleteSchedule", name="nightly"))["schedule"]["name"] == "nightly"
    # A new one of the same name begins anew.
    made = await schedule(belt)
    assert (made.status.started, made.status.last_run) == (0, "")
    assert [each.id for each in await runs(belt)] == [run["id"]]

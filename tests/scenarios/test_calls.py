"""Steps that run another pipeline and wait for its run, on both stores and over both transports."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Value

from conveyor.sdk import FailedPrecondition, Job, NotFound, to_struct
from conveyor.v1.pipeline_pb2 import Concurrency, ConcurrencyPolicy, Lock, Param, ParamType
from conveyor.v1.resource_definition_pb2 import ResourceDefinition
from tests.support.behaviour import Hold, big, echo, fail, ok
from tests.support.belt import Belt, on_both_stores, one, reason, state, states, step, step_reason
from tests.support.calls import call, children, text, there
from tests.support.cli import Cli


class Flaky:
    """Fails once, then succeeds."""

    def __init__(self) -> None:
        self.failed = False

    async def __call__(self, job: Job) -> None:
        if not self.failed:
            self.failed = True
            raise job.fail("not now")


@on_both_stores
@pytest.mark.parametrize("transport", ["grpc", "jetstream"])
async def test_a_step_runs_a_pipeline_and_reads_what_it_came_to(belt: Belt, transport: str) -> None:
    belt.drive("build", ok, transport=transport)
    belt.drive("put", echo, transport=transport)
    belt.drive("notify", echo, transport=transport)
    put = step("put", params=to_struct({"to": "${{ params.env }}"}))
    await belt.pipeline(step("check", "build"), put, name="deploy", params=[text("env", required=True)])
    tell = step("notify", params=to_struct({"url": "${{ steps.deploy.data.steps.check.by }}"}))
    await belt.pipeline(
        step("build"), call("deploy", "deploy", params={"env": "${{ steps.build.data.by + '-env' }}"}), tell
    )
    run = await belt.ended(await belt.start(size=3))
    assert states(run) == {"build": "SUCCEEDED", "deploy": "SUCCEEDED", "notify": "SUCCEEDED"}
    called = one(run.steps, "deploy")
    child = await belt.client.runs.get(called.child_run)
    assert (child.caller_run, child.caller_step, child.depth) == (run.id, "deploy", 1)
    assert (child.pipeline, child.resource, child.params["env"]) == ("deploy", run.resource, "build-env")
    assert child.resource_snapshot == run.resource_snapshot
    assert called.result.data["run"] == child.id
    assert called.result.data["steps"]["check"]["by"] == "build"
    assert [attempt.child_run for attempt in called.attempts] == [child.id]


@on_both_stores
async def test_each_attempt_is_a_run_of_its_own(belt: Belt) -> None:
    flaky = Flaky()
    belt.drive("put", flaky)
    await belt.pipeline(step("put"), name="deploy")
    await belt.pipeline(call("deploy", "deploy", attempts=3))
    run = await belt.ended(await belt.start())
    called = one(run.steps, "deploy")
    found = await children(belt, run)
    assert [state(child) for child in found] == ["SUCCEEDED", "FAILED"]
    assert [attempt.child_run for attempt in called.attempts] == [child.id for child in reversed(found)]
    assert step_reason(called.attempts[0]) == "CHILD_RUN_FAILED"
    assert called.attempts[0].message == f"run {found[1].id} failed: step put failed: not now"


@on_both_stores
async def test_a_failure_within_fails_the_run_and_names_the_way(belt: Belt) -> None:
    belt.drive("put", fail)
    await belt.pipeline(step("put"), name="deploy")
    await belt.pipeline(call("deploy", "deploy"), finally_steps=[step("tell", "put")])
    run = await belt.ended(await belt.start())
    child = one(run.steps, "deploy").child_run
    assert (state(run), reason(run)) == ("FAILED", "STEP_FAILED")
    assert run.message == f"step deploy failed: run {child} failed: step put failed: it is broken"


@on_both_stores
@pytest.mark.parametrize("force", [False, True])
async def test_a_cancel_reaches_all_runs_within(belt: Belt, force: bool) -> None:
    hold = Hold()
    belt.drive("put", hold)
    belt.drive("tidy", ok)
    await belt.pipeline(step("put"), name="inner", finally_steps=[step("tidy")])
    await belt.pipeline(call("again", "inner"), name="middle")
    await belt.pipeline(call("first", "middle"))
    run = await belt.start()
    await hold.started.wait()
    await belt.client.runs.cancel(run.id, message="enough", force=force)
    ended = await belt.ended(run)
    assert (state(ended), step_reason(ended.steps[0])) == ("CANCELLED", "ABANDONED" if force else "RUN_CANCELLED")
    middle = await belt.ended(ended.steps[0].child_run)
    inner = await belt.ended(middle.steps[0].child_run)
    assert (state(middle), state(inner)) == ("CANCELLED", "CANCELLED")
    assert middle.cancel_message == f"step first of run {run.id} was stopped: enough"
    assert states(inner) == {"put": "CANCELLED", "tidy": "SKIPPED" if force else "SUCCEEDED"}


@on_both_stores
async def test_force_after_a_cancel_reaches_the_run_within_too(belt: Belt) -> None:
    stubborn = Hold(cancellable=False)
    belt.drive("put", stubborn)
    await belt.pipeline(step("put"), name="deploy")
    await belt.pipeline(call("deploy", "deploy"))
    run = await belt.start()
    await stubborn.started.wait()
    await belt.client.runs.cancel(run.id)
    await belt.client.runs.cancel(run.id, force=True)
    ended = await belt.ended(run)
    assert step_reason(ended.steps[0]) == "ABANDONED"
    child = await belt.ended(ended.steps[0].child_run)
    assert (state(child), step_reason(child.steps[0])) == ("CANCELLED", "ABANDONED")
    assert child.steps[0].message.startswith("cancelled by force")
    stubborn.released.set()


@on_both_stores
async def test_a_run_within_that_somebody_cancels(belt: Belt) -> None:
    hold = Hold()
    belt.drive("put", hold)
    await belt.pipeline(step("put"), name="deploy")
    await belt.pipeline(call("deploy", "deploy", attempts=3))
    run = await belt.start()
    await hold.started.wait()
    child = (await belt.client.runs.get(run.id)).steps[0].child_run
    await belt.client.runs.cancel(child, message="not today")
    ended = await belt.ended(run)
    assert (state(ended), reason(ended)) == ("FAILED", "STEP_CANCELLED")
    assert step_reason(ended.steps[0]) == "CHILD_RUN_CANCELLED"
    assert ended.message.startswith("step deploy was cancelled: ")
    assert ended.steps[0].message == f"run {child} was cancelled: not today"


@on_both_stores
async def test_a_timeout_cancels_the_run_and_tries_again(belt: Belt) -> None:
    hold = Hold()
    belt.drive("put", hold)
    await belt.pipeline(step("put"), name="deploy")
    await belt.pipeline(call("deploy", "deploy", timeout=0.3, attempts=2))
    run = await belt.start()
    await hold.started.wait()
    called = one((await belt.ended(run)).steps, "deploy")
    assert step_reason(called) == "TIMED_OUT"
    for attempt in called.attempts:
        assert state(await belt.ended(attempt.child_run)) == "CANCELLED"


@pytest.mark.parametrize(
    ("pipeline", "params", "said"),
    [
        ("nowhere", {}, "its run was refused: there is no pipeline nowhere"),
        ("other", {}, "its run was refused: pipeline other takes resources of lib, not of app"),
        (
            "deploy",
            {"size": 3, "color": "red"},
            "its run was refused: params.color: the pipeline has no such parameter; it has env, size; "
            "params.env: is missing; the pipeline requires it; params.size: must be text, not a number",
        ),
    ],
)
async def test_a_run_that_is_refused(belt: Belt, pipeline: str, params: dict[str, Any], said: str) -> None:
    await belt.client.definitions.apply(ResourceDefinition(name="lib"))
    await belt.pipeline(step("put"), name="other", definition="lib")
    await belt.pipeline(step("put"), name="deploy", params=[text("env", required=True), text("size")])
    await belt.pipeline(call("deploy", pipeline, params=params, attempts=3))
    ended = await belt.ended(await belt.start())
    called = ended.steps[0]
    assert (step_reason(called), called.attempt, called.child_run) == ("CHILD_RUN_REFUSED", 1, "")
    assert called.message == said
    assert [run.id async for run in belt.client.runs.list()] == [ended.id]


async def test_recursion_ends_by_its_condition(belt: Belt) -> None:
    left = Param(name="left", type=ParamType.PARAM_TYPE_NUMBER, default=Value(number_value=5))
    again = call("again", "down", params={"left": "${{ params.left - 1 }}"}, when="params.left > 1")
    await belt.pipeline(again, name="down", params=[left])
    run = await belt.ended(await belt.start("down"))
    assert state(run) == "SUCCEEDED"
    runs = [each async for each in belt.client.runs.list()]
    assert [each.depth for each in runs] == [4, 3, 2, 1, 0]


async def test_recursion_without_end_is_refused_at_its_depth(belt: Belt) -> None:
    await belt.pipeline(call("to-pong", "pong"), name="ping")
    await belt.pipeline(call("to-ping", "ping"), name="pong")
    run = await belt.ended(await belt.start("ping"))
    assert state(run) == "FAILED"
    runs = [each async for each in belt.client.runs.list()]
    assert [each.depth for each in runs] == list(range(8, -1, -1))
    way = " > ".join(["ping", "pong"] * 5)
    assert runs[0].message.endswith(f"it would be within 9 other runs; at most 8: {way}")


@on_both_stores
@pytest.mark.parametrize("policy", ["QUEUE", "REPLACE"])
async def test_a_run_that_would_wait_for_itself_is_refused(belt: Belt, policy: str) -> None:
    one_at_a_time = Concurrency(policy=ConcurrencyPolicy.Value(f"CONCURRENCY_POLICY_{policy}"))
    again = call("again", "deploy", params={"more": "no"}, when="params.more == 'yes'")
    more = text("more", default=Value(string_value="yes"))
    await belt.pipeline(again, name="deploy", params=[more], concurrency=one_at_a_time)
    ended = await belt.ended(await belt.start("deploy"))
    assert step_reason(ended.steps[0]) == "CHILD_RUN_REFUSED"
    assert f"run {ended.id}, which this one would be within, is such a run" in ended.steps[0].message


async def test_a_run_within_waits_for_its_turn(belt: Belt) -> None:
    hold = Hold()
    belt.drive("put", hold)
    queue = Concurrency(policy=ConcurrencyPolicy.CONCURRENCY_POLICY_QUEUE)
    await belt.pipeline(step("put"), name="deploy", concurrency=queue)
    await belt.pipeline(call("deploy", "deploy"))
    first = await belt.start("deploy")
    await hold.started.wait()
    second = await belt.client.runs.start("app", first.resource, "release")
    waiting = (await belt.until_step(second, "deploy", "RUNNING")).child_run
    await there(belt, waiting)
    assert (await belt.client.runs.get(waiting)).wait.run == first.id
    hold.released.set()
    assert state(await belt.ended(second)) == "SUCCEEDED"


async def test_a_retry_takes_over_what_succeeded_within(belt: Belt) -> None:
    flaky = Flaky()
    belt.drive("put", ok)
    belt.drive("flaky", flaky)
    await belt.pipeline(step("put"), name="deploy")
    await belt.pipeline(step("flaky"), name="check")
    await belt.pipeline(call("deploy", "deploy"), call("check", "check"))
    first = await belt.ended(await belt.start())
    assert states(first) == {"deploy": "SUCCEEDED", "check": "FAILED"}
    second = await belt.ended(await belt.client.runs.retry(first.id))
    assert state(second) == "SUCCEEDED"
    assert (second.steps[0].inherited, second.steps[0].child_run) == (True, first.steps[0].child_run)
    assert second.steps[1].child_run not in ("", first.steps[1].child_run)
    alone = await belt.ended(await belt.client.runs.retry(first.steps[1].child_run))
    assert (state(alone), alone.caller_run, alone.depth) == ("SUCCEEDED", "", 0)


async def test_more_data_than_a_result_may_have(belt: Belt) -> None:
    belt.drive("put", big(40_000))
    await belt.pipeline(step("a", "put"), step("b", "put"), name="deploy")
    await belt.pipeline(call("deploy", "deploy"))
    ended = await belt.ended(await belt.start())
    assert step_reason(ended.steps[0]) == "RESULT_TOO_LARGE"
    child = ended.steps[0].child_run
    assert ended.steps[0].message.startswith(f"run {child} succeeded, but the data of its steps together has 80")
    assert ended.steps[0].message.endswith("bytes as JSON; the limit is 65536")


@on_both_stores
async def test_each_instance_of_a_matrix_has_a_run(belt: Belt) -> None:
    belt.drive("put", echo)
    put = step("put", params=to_struct({"to": "${{ params.env }}"}))
    await belt.pipeline(put, name="deploy", params=[text("env")])
    rollout = call("rollout", "deploy", params={"env": "${{ matrix.env }}"})
    rollout.matrix.axes["env"].list_value.extend(["test", "prod"])
    after = step("after", "put", params=to_struct({"runs": "${{ steps.rollout.data.map(each, each.run) }}"}))
    await belt.pipeline(rollout, after)
    run = await belt.ended(await belt.start())
    assert state(run) == "SUCCEEDED"
    instances = [one(run.steps, f"rollout[{i}]") for i in range(2)]
    found = [await belt.client.runs.get(instance.child_run) for instance in instances]
    assert [child.params["env"] for child in found] == ["test", "prod"]
    assert [child.caller_step for child in found] == ["rollout[0]", "rollout[1]"]
    given = one(run.steps, "after").params["runs"]
    assert list(given) == [child.id for child in found]


@on_both_stores
async def test_an_instance_that_fails_cancels_the_runs_of_others(belt: Belt) -> None:
    hold = Hold()

    async def put(job: Job) -> None:
        if job.params["env"] == "prod":
            await hold.started.wait()
            raise job.fail("no")
        await hold(job)

    belt.drive("put", put)
    await belt.pipeline(
        step("put", params=to_struct({"env": "${{ params.env }}"})), name="deploy", params=[text("env")]
    )
    rollout = call("rollout", "deploy", params={"env": "${{ matrix.env }}"})
    rollout.matrix.axes["env"].list_value.extend(["test", "prod"])
    await belt.pipeline(rollout)
    run = await belt.ended(await belt.start())
    assert states(run) == {"rollout": "FAILED", "rollout[0]": "CANCELLED", "rollout[1]": "FAILED"}
    child = await belt.client.runs.get(one(run.steps, "rollout[0]").child_run)
    assert (state(child), child.cancel_message) == (
        "CANCELLED",
        f"step rollout[0] of run {run.id} was stopped: another instance failed",
    )


@on_both_stores
@pytest.mark.parametrize("of", ["run", "step"])
async def test_a_run_that_would_wait_for_a_lock_of_its_own_is_refused(belt: Belt, of: str) -> None:
    lock = Lock(key="prod")
    belt.drive("put", ok)
    await belt.pipeline(step("put"), name="inner", lock=lock)
    await belt.pipeline(call("inner", "inner"), name="middle")
    if of == "run":
        await belt.pipeline(call("middle", "middle"), lock=lock)
    else:
        await belt.pipeline(call("middle", "middle", lock=lock))
    ended = await belt.ended(await belt.start())
    middle = await belt.client.runs.get(ended.steps[0].child_run)
    assert step_reason(middle.steps[0]) == "CHILD_RUN_REFUSED"
    assert middle.steps[0].message.startswith("its run was refused: it would wait for lock prod, which is held")
    wider = Lock(key="prod", limit=2)
    await belt.pipeline(step("put"), name="inner", lock=wider)
    await belt.pipeline(call("middle", "middle", lock=wider))
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"


@pytest.mark.parametrize("of", ["run", "step", "inner run"])
async def test_a_step_that_would_wait_for_a_lock_of_its_own_run_fails(belt: Belt, of: str) -> None:
    """Its key comes of an expression, or its lock is one that an outer run has: neither shows at registration."""
    lock, same = Lock(key="prod"), Lock(key="${{ 'prod' }}")
    belt.drive("put", ok)
    inner = {"lock": lock} if of == "inner run" else {}
    await belt.pipeline(step("put", lock=same), name="inner", **inner)
    await belt.pipeline(call("inner", "inner", **({"lock": lock} if of == "step" else {})), name="middle")
    await belt.pipeline(call("middle", "middle"), **({"lock": lock} if of == "run" else {}))
    ended = await belt.ended(await belt.start())
    middle = await belt.client.runs.get(ended.steps[0].child_run)
    failed = (await belt.client.runs.get(middle.steps[0].child_run)).steps[0]
    assert (state(ended), step_reason(failed), failed.attempt) == ("FAILED", "INPUT_INVALID", 0)
    assert failed.message.startswith("it would wait for lock prod, which a run that it is within holds")
    assert [lock async for lock in belt.client.runs.locks()] == []


@on_both_stores
async def test_runs_are_listed_by_their_caller(belt: Belt) -> None:
    belt.drive("put", ok)
    await belt.pipeline(step("put"), name="inner")
    await belt.pipeline(call("one", "inner"), call("two", "inner"), name="middle")
    await belt.pipeline(call("middle", "middle"))
    outer = await belt.ended(await belt.start())
    await belt.ended(await belt.start())
    (middle,) = await children(belt, outer)
    inner = await children(belt, middle)
    assert [run.caller_step for run in inner] == ["two", "one"]
    paged = [run.id async for run in belt.client.runs.list(caller_run=middle.id, page_size=1)]
    assert paged == [run.id for run in inner]
    await belt.client.runs.delete(middle.id)
    assert await children(belt, outer) == []
    assert [run.id for run in await children(belt, middle)] == paged
    await belt.client.runs.delete(outer.id)
    await belt.client.runs.delete(inner[0].id)
    assert [run.id for run in await children(belt, middle)] == paged[1:]


@on_both_stores
async def test_a_run_within_that_runs_is_deleted_with_nobody_waiting_only(belt: Belt) -> None:
    hold = Hold()
    belt.drive("put", hold)
    await belt.pipeline(step("put"), name="inner")
    await belt.pipeline(call("inner", "inner"))
    outer = await belt.start()
    await hold.started.wait()
    (child,) = await children(belt, outer)
    with pytest.raises(FailedPrecondition, match="has not ended"):
        await belt.client.runs.delete(child.id)
    hold.released.set()
    await belt.ended(outer)
    await belt.client.runs.delete(child.id)
    assert (await belt.client.runs.get(outer.id)).steps[0].child_run == child.id
    with pytest.raises(NotFound):
        await belt.client.runs.get(child.id)


async def test_the_command_line_shows_runs_within_and_their_logs(belt: Belt) -> None:
    hold = Hold()

    async def say(job: Job) -> None:
        job.log("at %s", job.step)
        if job.step == "last":
            await hold(job)

    belt.drive("say", say)
    cli = Cli(belt.address, belt.namespace)
    await belt.pipeline(step("first", "say"), step("last", "say"), name="inner")
    await belt.pipeline(call("inner", "inner"), name="middle")
    await belt.pipeline(step("begin", "say"), call("middle", "middle"))
    run = await belt.start()
    followed = asyncio.create_task(asyncio.to_thread(cli, "run", "logs", run.id, "--children", "-f"))
    await hold.started.wait()
    (middle,) = await children(belt, run)
    (inner,) = await children(belt, middle)
    shown = await asyncio.to_thread(cli, "run", "get", run.id)
    assert f"run {middle.id}" in shown.out.partition("Runs of its steps:")[0]
    assert middle.id in shown.out.partition("Runs of its steps:")[2]
    shown = await asyncio.to_thread(cli, "run", "get", inner.id)
    assert f"Step of: run {middle.id}, step inner" in " ".join(shown.out.split())
    hold.released.set()
    assert state(await belt.ended(run)) == "SUCCEEDED"
    said = ["[begin] at begin", "[middle/inner/first] at first", "[middle/inner/last] at last"]
    assert sorted((await followed).out.splitlines()) == said
    stored = await asyncio.to_thread(cli, "run", "logs", run.id, "--children")
    assert stored.out.splitlines() == said
    assert (await asyncio.to_thread(cli, "run", "logs", run.id)).out.splitlines() == said[:1]
    refused = await asyncio.to_thread(cli, "run", "logs", run.id, "--children", "--step", "begin")
    assert (refused.code, "--children shows all lines of all steps" in refused.err) == (2, True)

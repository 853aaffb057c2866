"""Steps with a matrix on a real server, over both transports and with both stores."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from conveyor.sdk import InvalidArgument, Job, RunUpdate, to_struct
from conveyor.v1.run_pb2 import Run
from tests.support.behaviour import Counted, Hold, Late, ok
from tests.support.belt import Belt, matrix, on_both_stores, one, state, states, step, step_reason
from tests.support.cli import Cli
from tests.support.wait import until

TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "jetstream"])


def values(run: Run) -> dict[str, str]:
    """What each instance shows of its values."""
    return {
        each.step: " ".join(f"{name}={each.matrix[name]}" for name in sorted(each.matrix))
        for each in run.steps
        if each.matrix_step
    }


@on_both_stores
@TRANSPORTS
async def test_a_list_of_an_earlier_step(belt: Belt, transport: str) -> None:
    async def plan(job: Job) -> dict[str, object]:
        return {"versions": ["3.11", "3.12", "3.13"]}

    async def test(job: Job) -> dict[str, object]:
        return {"tested": job.params["version"]}

    async def ship(job: Job) -> dict[str, object]:
        return {"results": {name: result.data for name, result in job.results.items()}, "params": job.params}

    for name, handler in (("plan", plan), ("test", test), ("ship", ship)):
        belt.drive(name, handler, transport=transport)
    await belt.pipeline(
        step("plan"),
        step(
            "test",
            matrix=matrix({"py": "${{ steps.plan.data.versions }}"}),
            params=to_struct({"version": "${{ matrix.py }}"}),
        ),
        step("ship", params=to_struct({"first": "${{ steps.test.data[0].tested }}", "all": "${{ steps.test.data }}"})),
    )
    ended = await belt.ended(await belt.start())
    assert states(ended) == dict.fromkeys(["plan", "test", "ship", "test[0]", "test[1]", "test[2]"], "SUCCEEDED")
    assert list(states(ended))[3:] == ["test[0]", "test[1]", "test[2]"]
    assert values(ended) == {"test[0]": "py=3.11", "test[1]": "py=3.12", "test[2]": "py=3.13"}
    assert (one(ended.steps, "test").instances, one(ended.steps, "test[2]").matrix_step) == (3, "test")
    data = one(ended.steps, "ship").result.data
    tested = [{"tested": each} for each in ("3.11", "3.12", "3.13")]
    assert data["params"] == to_struct({"first": "3.11", "all": tested})
    assert {name: data["results"][name] for name in ("test[0]", "test[1]", "test[2]")} == {
        f"test[{i}]": to_struct(each) for i, each in enumerate(tested)
    }


@on_both_stores
@TRANSPORTS
async def test_f12_an_empty_list_is_success(belt: Belt, transport: str) -> None:
    """The fan-out is the last step but one, and then the last."""

    async def plan(job: Job) -> dict[str, object]:
        return {"versions": []}

    seen = Counted()
    belt.drive("plan", plan, transport=transport)
    for name in ("test", "ship"):
        belt.drive(name, seen, transport=transport)
    test = step("test", matrix=matrix({"py": "${{ steps.plan.data.versions }}"}))
    for rest in ([step("ship", params=to_struct({"n": "${{ size(steps.test.data) }}"}))], []):
        await belt.pipeline(step("plan"), test, *rest)
        ended = await belt.ended(await belt.start())
        assert set(states(ended).values()) == {"SUCCEEDED"}
        assert one(ended.steps, "test").message == "its matrix has no combinations"
        assert not values(ended)
    assert [(job.step, job.params) for job in seen.jobs] == [("ship", {"n": 0})]


@on_both_stores
async def test_excludes_that_leave_nothing(belt: Belt) -> None:
    await belt.pipeline(
        step("test", matrix=matrix({"os": ["a", "b"], "n": [1]}, exclude=[{"n": 1}])),
        step("ship", "test", matrix=matrix({"os": ["a"]}, exclude=[{"os": "b"}], include=[{"os": "z", "x": True}])),
    )
    belt.drive("test", ok)
    ended = await belt.ended(await belt.start())
    assert state(ended) == "SUCCEEDED"
    assert values(ended) == {"ship[0]": "os=a", "ship[1]": "os=z x=True"}


@on_both_stores
async def test_so_many_at_a_time(belt: Belt) -> None:
    hold = Hold()
    belt.drive("test", hold, slots=8)
    await belt.pipeline(step("test", matrix=matrix({"n": [1, 2, 3, 4, 5]}, max_parallel=2)))
    run = await belt.start()
    await until(lambda: hold.count == 2)
    waiting = one((await belt.client.runs.get(run.id)).steps, "test[2]")
    assert (list(waiting.wait.needs), waiting.matrix["n"]) == (["test[0]", "test[1]"], 3)
    hold.released.set()
    ended = await belt.ended(run)
    assert state(ended) == "SUCCEEDED"
    assert sorted(job.step for job in hold.jobs) == [f"test[{i}]" for i in range(5)]


@TRANSPORTS
async def test_the_first_failure_stops_the_others(belt: Belt, transport: str) -> None:
    hold, seen = Hold(), Counted()

    async def test(job: Job) -> Any:
        if job.params["n"] == 2:
            await hold.started.wait()
            raise job.fail("it is broken")
        return await hold(job)

    belt.drive("test", test, transport=transport)
    belt.drive("after", seen, transport=transport)
    matrix_ = matrix({"n": [1, 2, 3]}, max_parallel=2)
    await belt.pipeline(
        step("test", matrix=matrix_, params=to_struct({"n": "${{ matrix.n }}"})), step("after"), graph=False
    )
    ended = await belt.ended(await belt.start())
    # On JetStream its delivery may not have been seen yet.
    assert states(ended).pop("test[0]") in ("CANCELLED", "SKIPPED")
    assert {each.step: step_reason(each) for each in ended.steps} == {
        "test": "INSTANCE_FAILED",
        "after": "FAIL_FAST",
        "test[0]": "INSTANCE_FAIL_FAST",
        "test[1]": "DRIVER_FAILED",
        "test[2]": "INSTANCE_FAIL_FAST",
    }
    assert ended.message == "step test failed: test[1] failed: it is broken"
    assert not seen.count


async def test_a_stopped_instance_that_succeeds_all_the_same(belt: Belt) -> None:
    late = Late()

    async def test(job: Job) -> Any:
        if job.step == "test[1]":
            await asyncio.to_thread(late.started.wait)
            raise job.fail("no")
        return await asyncio.to_thread(late, job)

    belt.drive("test", test)
    await belt.pipeline(step("test", matrix=matrix({"n": [1, 2]})))
    run = await belt.start()
    await belt.until_step(run, "test[1]", "FAILED")
    late.released.set()
    ended = await belt.ended(run)
    assert states(ended)["test[0]"] in ("SUCCEEDED", "CANCELLED")  # a thread's job may be given up at once
    assert states(ended)["test"] == "FAILED"


@on_both_stores
@TRANSPORTS
async def test_a_cancel_in_the_fan_out(belt: Belt, transport: str) -> None:
    hold = Hold()
    belt.drive("test", hold, transport=transport, slots=2)
    await belt.pipeline(step("test", matrix=matrix({"n": list(range(100))}, max_parallel=70)), step("after", "test"))
    run = await belt.start()
    await until(lambda: hold.count == 2)
    await belt.client.runs.cancel(run.id)
    ended = await belt.ended(run)
    assert state(ended) == "CANCELLED"
    shown = states(ended)
    assert (shown.pop("after"), shown.pop("test")) == ("SKIPPED", "CANCELLED")
    assert len(shown) == 100
    assert set(shown.values()) == {"CANCELLED", "SKIPPED"}
    assert hold.count < 100


@TRANSPORTS
async def test_conditions_locks_and_gates_of_instances(belt: Belt, transport: str) -> None:
    running: set[str] = set()
    most = 0

    async def test(job: Job) -> None:
        nonlocal most
        running.add(job.step)
        most = max(most, len(running))
        await asyncio.sleep(0.02)
        running.discard(job.step)

    belt.drive("test", test, transport=transport)
    locked = step("test", when="matrix.n != 2", matrix=matrix({"n": [1, 2, 3, 4]}))
    locked.lock.key = "n-${{ matrix.n > 2 }}"
    await belt.pipeline(locked, step("skipped", when="false", matrix=matrix({"n": [1]})))
    ended = await belt.ended(await belt.start())
    assert list(states(ended).items()) == [
        ("test", "SUCCEEDED"),
        ("skipped", "SKIPPED"),
        ("test[0]", "SUCCEEDED"),
        ("test[1]", "SKIPPED"),
        ("test[2]", "SUCCEEDED"),
        ("test[3]", "SUCCEEDED"),
    ]
    assert most <= 2
    assert [one(ended.steps, f"test[{i}]").lock for i in (0, 2, 3)] == ["n-false", "n-true", "n-true"]


async def test_a_gate_for_each_value(belt: Belt) -> None:
    gate = step("ask", matrix=matrix({"env": ["test", "prod"]}))
    gate.gate.message = "Deploy to ${{ matrix.env }}?"
    await belt.pipeline(gate, step("done"))
    belt.drive("done", ok)
    run = await belt.start()
    asked = await belt.until_step(run, "ask[1]", "QUEUED")
    assert asked.message == "Deploy to prod?"
    for name in ("ask[0]", "ask[1]"):
        await belt.client.runs.approve(run.id, name, "ann")
    assert state(await belt.ended(run)) == "SUCCEEDED"


async def test_workers_by_the_values_of_an_instance(belt: Belt) -> None:
    taken: dict[str, str] = {}

    def driver(os: str) -> Any:
        async def handle(job: Job) -> None:
            taken[job.step] = os

        return handle

    for os in ("linux", "mac"):
        belt.drive("test", driver(os), labels={"os": os})
    test = step("test", matrix=matrix({"os": ["linux", "mac", "linux"]}))
    test.worker_selector.match_labels["os"] = "${{ matrix.os }}"
    await belt.pipeline(test)
    assert state(await belt.ended(await belt.start())) == "SUCCEEDED"
    assert taken == {"test[0]": "linux", "test[1]": "mac", "test[2]": "linux"}


async def test_a_pipeline_for_each_value(belt: Belt) -> None:
    belt.drive("build", ok)
    await belt.pipeline(step("build"), name="part")
    call = step("all", matrix=matrix({"part": ["a", "b"]}))
    call.runs.pipeline = "part"
    await belt.pipeline(call)
    ended = await belt.ended(await belt.start())
    assert state(ended) == "SUCCEEDED"
    children = [one(ended.steps, f"all[{i}]").child_run for i in (0, 1)]
    assert len(set(children)) == 2
    assert [(await belt.client.runs.get(child)).caller_step for child in children] == ["all[0]", "all[1]"]


@on_both_stores
async def test_a_retry_takes_over_the_instances_that_succeeded(belt: Belt) -> None:
    broken = True
    seen = Counted()

    async def test(job: Job) -> dict[str, object]:
        if broken and job.params["n"] == 2:
            raise job.fail("it is broken")
        await seen(job)
        return {"n": job.params["n"]}

    belt.drive("test", test)
    test_step = step("test", matrix=matrix({"n": [1, 2, 3]}, fail_fast=False))
    test_step.params.CopyFrom(to_struct({"n": "${{ matrix.n }}"}))
    await belt.pipeline(test_step, step("after", "test", params=to_struct({"n": "${{ steps.test.data[2].n }}"})))
    first = await belt.ended(await belt.start())
    assert (state(first), sorted(seen.steps)) == ("FAILED", ["test[0]", "test[2]"])
    broken = False
    second = await belt.ended(await belt.client.runs.retry(first.id))
    assert state(second) == "SUCCEEDED"
    assert seen.steps[2:] == ["test[1]", "after"]
    assert [one(second.steps, f"test[{i}]").inherited for i in range(3)] == [True, False, True]
    assert one(second.steps, "after").result.data["n"] == 3
    await belt.client.runs.delete(second.id)


# What an expression comes to, and what is refused


@pytest.mark.parametrize(
    ("given", "why", "said"),
    [
        ("x" * 3, "INPUT_INVALID", "matrix.axes.n: it is no list"),
        (list(range(257)), "INPUT_TOO_LARGE", "matrix: it comes to 257 instances; at most 256"),
        (list(range(1025)), "INPUT_TOO_LARGE", "matrix: it comes to 1025 combinations before its excludes; at most"),
        (["x" * 3000] * 50, "INPUT_TOO_LARGE", "takes more than 131072 bytes"),
    ],
)
async def test_a_list_that_does_not_fit(belt: Belt, given: object, why: str, said: str) -> None:
    seen = Counted()
    belt.drive("test", seen)
    await belt.pipeline(
        step("test", matrix=matrix({"n": "${{ resource.spec.n }}"}), attempts=3), context=to_struct({"n": given})
    )
    ended = await belt.ended(await belt.start(n=given))
    found = one(ended.steps, "test")
    assert (state(ended), step_reason(found), len(ended.steps)) == ("FAILED", why, 1)
    assert said in found.message
    assert not seen.count


async def test_a_million_is_refused(belt: Belt) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await belt.pipeline(step("test", matrix=matrix({"a": list(range(1000)), "b": list(range(1000))})))
    assert [(each.field, each.description) for each in raised.value.violations] == [
        ("pipeline.steps[0].matrix", "comes to 1000000 combinations before its excludes; at most 1024")
    ]


# Those who look on


async def test_watchers_see_all_instances_in_their_order(belt: Belt) -> None:
    belt.drive("test", ok, slots=3)
    await belt.pipeline(step("test", matrix=matrix({"n": list(range(80))}, max_parallel=3)))
    run = await belt.start()
    last: RunUpdate | None = None
    async for update in belt.client.runs.watch(run.id):
        last = update
        if len(update.run.steps) > 1:
            assert [each.step for each in update.run.steps] == ["test", *(f"test[{i}]" for i in range(80))]
            assert [each.state for each in update.run.steps] == list(update.run.step_states)
            assert [int(each.matrix["n"]) for each in update.run.steps[1:]] == list(range(80))
    assert last is not None
    assert {each.state for each in last.run.steps} == {3 + 2}


async def test_the_command_line(belt: Belt, tmp_path: Path) -> None:
    async def test(job: Job) -> None:
        job.log("on %s", job.params["os"])
        if job.params["os"] == "mac":
            raise job.fail("it is broken")

    belt.drive("test", test)
    (tmp_path / "check.yaml").write_text(
        """
kind: Pipeline
name: check
steps:
- id: test
  driver: test
  matrix:
    axes: {os: [linux, mac], py: ["3.12"]}
    maxParallel: 1
  params: {os: "${{ matrix.os }}"}
---
kind: ResourceDefinition
name: app
---
kind: Resource
definition: app
name: web
"""
    )
    cli = Cli(belt.address, belt.namespace)

    async def conveyor(*arguments: str) -> Any:
        return await asyncio.to_thread(cli, *arguments)

    assert (await conveyor("apply", "-f", str(tmp_path))).code == 0
    drawn = (await conveyor("pipeline", "graph", "check")).out
    assert "matrix os[2] × py[1] (1 at a time)" in drawn
    watched = await conveyor("run", "start", "app/web", "--pipeline", "check", "--watch")
    assert watched.code != 0
    assert "test[0] os=linux py=3.12  SUCCEEDED" in watched.out
    (listed, *_) = [each async for each in belt.client.runs.list()]
    shown = (await conveyor("run", "get", listed.id)).out
    assert shown.index("└ test[0] os=linux py=3.12") < shown.index("└ test[1] os=mac py=3.12")
    assert "test[1] failed: it is broken (2 instances)" in shown
    assert (await conveyor("run", "logs", listed.id, "--step", "test[1]")).out == "[test[1]] on mac\n"
    both = (await conveyor("run", "logs", listed.id, "--step", "test")).out
    assert sorted(both.splitlines()) == ["[test[0]] on linux", "[test[1]] on mac"]
    assert (await conveyor("run", "logs", listed.id, "--step", "test[2]")).code != 0


# A pipeline of a real project


def p09() -> list[Any]:
    """python/cpython's build, as structure."""
    wanted = "steps.check.data.?run_tests.orValue('') == 'true'"
    names = ["abi", "generated", "win32", "amd64", "macos", "ubuntu"]
    ssl = matrix({"openssl": ["3.0", "3.5"]}, fail_fast=False)
    return [
        step("check"),
        *(step(name, "build", "check", when=wanted) for name in names),
        step(
            "ssltests",
            "ssl",
            "check",
            when=f"{wanted} && steps.check.data.?run_ssl_tests.orValue('') == 'true'",
            matrix=ssl,
        ),
    ]


@pytest.mark.parametrize(
    ("said", "builds", "ssl"),
    [
        ({"run_tests": "true", "run_ssl_tests": "true"}, 6, 2),
        ({}, 0, 0),
        ({"run_tests": "true"}, 6, 0),
    ],
    ids=["S1", "S2", "S3"],
)
async def test_p09_over_jetstream(belt: Belt, said: dict[str, str], builds: int, ssl: int) -> None:
    async def check(job: Job) -> dict[str, str]:
        return said

    built, tested = Counted(), Counted()
    for name, handler in (("check", check), ("build", built), ("ssl", tested)):
        belt.drive(name, handler, transport="jetstream")
    await belt.pipeline(*p09(), graph=True)
    ended = await belt.ended(await belt.start())
    assert (state(ended), built.count, tested.count) == ("SUCCEEDED", builds, ssl)
    assert states(ended)["ssltests"] == ("SUCCEEDED" if ssl else "SKIPPED")
    assert len(values(ended)) == ssl

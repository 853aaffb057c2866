"""Parameters, conditions and expressions on a real server, over both transports."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conveyor.sdk import InvalidArgument, Job, to_struct
from conveyor.v1.pipeline_pb2 import FailurePolicy, Param, ParamType, TriggerRule
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run
from tests.support.behaviour import Counted, Handler, fail, ok
from tests.support.belt import Belt, Site, on_both_stores, one, reason, state, states, step, step_reason
from tests.support.nats import NatsServer
from tests.support.server import ConveyorServer


class Given:
    """Keeps the params of each job, and answers with what it was made with."""

    def __init__(self, **output: object) -> None:
        self.params: dict[str, dict[str, object]] = {}
        self._output = output

    async def __call__(self, job: Job) -> dict[str, object]:
        self.params[job.step] = job.params
        return self._output


def param(name: str, kind: ParamType.ValueType = ParamType.PARAM_TYPE_STRING, **fields: object) -> Param:
    """A parameter."""
    default = fields.pop("default", None)
    made = Param(name=name, type=kind, **fields)  # type: ignore[arg-type]
    if default is not None:
        made.default.CopyFrom(to_struct({"v": default}).fields["v"])
    return made


def reasons(run: Run) -> dict[str, str]:
    """The reason of each step."""
    return {each.step: step_reason(each) for each in run.steps}


TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "jetstream"])


@on_both_stores
@TRANSPORTS
async def test_params_reach_the_driver(belt: Belt, transport: str) -> None:
    given = Given(image="web:7")
    for name in ("build", "ship"):
        belt.drive(name, given, transport=transport)
    await belt.pipeline(
        step("build", params=to_struct({"env": "${{ params.env }}", "n": "${{ params.n }}", "plain": [1, "x"]})),
        step(
            "ship",
            when="params.n == 3 && steps.build.state == 'SUCCEEDED'",
            params=to_struct(
                {"text": "to ${{ params.env }}: ${{ steps.build.data.image }}, ${{ params.n }}", "raw": "$${{ x }}"}
            ),
        ),
        params=[param("env", default="test"), param("n", ParamType.PARAM_TYPE_NUMBER, default=3)],
    )
    ended = await belt.ended(await belt.start())
    assert states(ended) == {"build": "SUCCEEDED", "ship": "SUCCEEDED"}
    assert given.params == {
        "build": {"env": "test", "n": 3, "plain": [1, "x"]},
        "ship": {"text": "to test: web:7, 3", "raw": "${{ x }}"},
    }
    assert ended.params == to_struct({"env": "test", "n": 3})


@pytest.mark.parametrize("release", [True, False])
@pytest.mark.parametrize("tests", ["true", "false"])
async def test_p01_edges_that_are_order_only(belt: Belt, tests: str, release: bool) -> None:
    seen = Counted()
    for name in ("clone", "unit", "build", "images", "latest"):
        belt.drive(name, seen)
    await belt.pipeline(
        step("clone"),
        step("unit", "unit", "clone", when="params.runTests == 'true'"),
        step("build", "build", "clone", when="params.runTests == 'true'"),
        step("images", "images", "unit", "build", trigger_rule=TriggerRule.TRIGGER_RULE_NONE_FAILED),
        step("latest", "latest", "images", when="params.latest"),
        graph=True,
        params=[
            param("runTests", enum=to_struct({"e": ["true", "false"]}).fields["e"].list_value.values, default="true"),
            param("latest", ParamType.PARAM_TYPE_BOOLEAN, required=True),
        ],
    )
    await belt.client.resources.create(Resource(name="web", definition="app"))
    started = await belt.client.runs.start("app", "web", "release", {"runTests": tests, "latest": release})
    ended = await belt.ended(started)
    assert state(ended) == "SUCCEEDED"
    wanted = {"clone", "images", *(["unit", "build"] if tests == "true" else []), *(["latest"] if release else [])}
    assert set(seen.steps) == wanted
    assert {each for each, why in reasons(ended).items() if why == "CONDITION_FALSE"} == set(states(ended)) - wanted


async def test_all_that_is_wrong_with_given_params_is_said_at_once(belt: Belt) -> None:
    await belt.pipeline(
        step("a"),
        params=[
            param("env", required=True, enum=to_struct({"e": ["test", "prod"]}).fields["e"].list_value.values),
            param("n", ParamType.PARAM_TYPE_NUMBER),
            param("flag", ParamType.PARAM_TYPE_BOOLEAN, required=True),
        ],
    )
    await belt.client.resources.create(Resource(name="web", definition="app"))
    with pytest.raises(InvalidArgument) as raised:
        await belt.client.runs.start("app", "web", "release", {"env": "stage", "n": "3", "nn": 1})
    assert [(each.field, each.description) for each in raised.value.violations] == [
        ("params.nn", "the pipeline has no such parameter; it has env, n, flag"),
        ("params.env", 'must be one of "test", "prod"'),
        ("params.n", "must be a number, not text"),
        ("params.flag", "is missing; the pipeline requires it"),
    ]
    with pytest.raises(InvalidArgument) as raised:
        await belt.client.resources.create(
            Resource(name="shop", definition="app", pipeline="release", params=to_struct({"env": "test"}))
        )
    assert [each.field for each in raised.value.violations] == ["resource.params.flag"]
    with pytest.raises(InvalidArgument, match="moves on no pipeline"):
        await belt.client.runs.start("app", "web", params={"env": "test"})
    assert [run async for run in belt.client.runs.list(pipeline="release")] == []


async def test_params_of_a_resource_are_for_its_own_pipeline(belt: Belt) -> None:
    given = Given()
    belt.drive("a", given)
    params = {"env": "${{ params.env }}", "n": "${{ has(params.n) ? params.n : 'none' }}"}
    for name in ("release", "other"):
        await belt.pipeline(
            step("a", params=to_struct(params)),
            name=name,
            params=[param("env", default="dev"), param("n", ParamType.PARAM_TYPE_NUMBER)],
        )
    _, run = await belt.client.resources.create(
        Resource(name="web", definition="app", pipeline="release", params=to_struct({"env": "prod", "n": 1}))
    )
    assert run is not None
    await belt.ended(run)
    assert given.params["a"] == {"env": "prod", "n": 1}
    await belt.ended(await belt.client.runs.start("app", "web", params={"n": 2}))
    assert given.params["a"] == {"env": "prod", "n": 2}
    await belt.ended(await belt.client.runs.start("app", "web", "other"))
    assert given.params["a"] == {"env": "dev", "n": "none"}


async def test_p09_outputs_that_were_never_set(belt: Belt) -> None:
    seen = Counted()
    belt.drive("check", ok)
    belt.drive("build", seen)
    await belt.pipeline(
        step("check"),
        *(
            step(f"build-{i}", "build", "check", when="steps.check.data.?run_tests.orValue('') == 'true'")
            for i in range(7)
        ),
        graph=True,
    )
    ended = await belt.ended(await belt.start())
    assert (state(ended), seen.steps) == ("SUCCEEDED", [])
    assert set(reasons(ended).values()) == {"UNSPECIFIED", "CONDITION_FALSE"}


@TRANSPORTS
async def test_f13_an_input_that_is_missing(belt: Belt, transport: str) -> None:
    seen = Counted()
    belt.drive("s1", ok, transport=transport)
    belt.drive("s2", seen, transport=transport)
    belt.drive("last", ok)
    await belt.pipeline(
        step("s1"),
        step("s2", params=to_struct({"image": ["${{ steps.s1.data.image }}"]}), attempts=3),
        step("s3", "s2"),
        finally_steps=[step("last")],
    )
    ended = await belt.ended(await belt.start())
    assert (state(ended), reason(ended), seen.steps) == ("FAILED", "STEP_FAILED", [])
    assert states(ended) == {"s1": "SUCCEEDED", "s2": "FAILED", "s3": "SKIPPED", "last": "SUCCEEDED"}
    failed = one(ended.steps, "s2")
    assert (step_reason(failed), failed.attempt, list(failed.attempts)) == ("INPUT_MISSING", 0, [])
    assert failed.message == "params.image[0]: steps.s1.data.image is not there"
    assert ended.message == f"step s2 failed: {failed.message}"


@pytest.mark.parametrize(
    ("fields", "wanted", "said"),
    [
        ({"when": "1 / 0 > params.zero"}, "INPUT_INVALID", "when: divide by zero"),
        ({"when": "params.zero"}, "INPUT_INVALID", "when: it is a number, neither true nor false"),
        ({"when": "context.x"}, "INPUT_MISSING", "when: context.x is not there"),
        ({"params": {"a": "${{ params.zero / 0 }}"}}, "INPUT_INVALID", "params.a: it is nan, which JSON does not have"),
        ({"params": {"a": ["${{ params.long }}", "${{ params.long }}"]}}, "INPUT_TOO_LARGE", "params.a[1]: params"),
    ],
)
async def test_expressions_that_come_to_nothing(belt: Belt, fields: dict[str, object], wanted: str, said: str) -> None:
    seen = Counted()
    for name in ("bad", "next"):
        belt.drive(name, seen)
    given = {key: to_struct(value) if isinstance(value, dict) else value for key, value in fields.items()}
    await belt.pipeline(
        step("bad", allow_failure=True, **given),
        step("next"),
        params=[param("zero", ParamType.PARAM_TYPE_NUMBER, default=0.0), param("long", default="x" * 40_000)],
    )
    ended = await belt.ended(await belt.start())
    bad = one(ended.steps, "bad")
    assert (step_reason(bad), bad.message[: len(said)]) == (wanted, said)
    # Its failure is allowed, like any other.
    assert (state(ended), seen.steps) == ("SUCCEEDED", ["next"])


async def test_f04_f06_f07_a_skip_travels_as_any_other(belt: Belt) -> None:
    seen = Counted()
    for name in ("a", "b", "c", "d", "e"):
        belt.drive(name, seen)
    await belt.pipeline(
        step("a", when="false"),
        step("b", "b", "a"),
        step("c", "c", "b"),
        step("d", "d", "a", trigger_rule=TriggerRule.TRIGGER_RULE_ALL_DONE),
        step("e", "e", "d", when="steps.a.reason == 'CONDITION_FALSE'"),
        graph=True,
    )
    ended = await belt.ended(await belt.start())
    assert seen.steps == ["d", "e"]
    assert [reasons(ended)[each] for each in "abc"] == ["CONDITION_FALSE", "NEED_SKIPPED", "NEED_SKIPPED"]


async def test_f11_nothing_is_left_to_run(belt: Belt) -> None:
    await belt.pipeline(
        step("a", when="params.x == 'go'"),
        *(step(f"b-{i}", "b", "a") for i in range(5)),
        graph=True,
        params=[param("x", default="stay")],
    )
    started = await belt.start()
    assert state(started) == "SUCCEEDED"
    assert set(states(await belt.ended(started)).values()) == {"SKIPPED"}


@pytest.mark.parametrize(("first", "wanted"), [(ok, []), (fail, ["alarm"])])
async def test_finally_steps_look_at_how_the_run_went(belt: Belt, first: Handler, wanted: list[str]) -> None:
    seen = Counted()
    belt.drive("first", first)
    for name in ("alarm", "never"):
        belt.drive(name, seen)
    await belt.pipeline(
        step("first"),
        finally_steps=[
            step("alarm", when="run.state == 'FAILED' && steps.first.reason == 'DRIVER_FAILED'"),
            step("never", when="run.state == 'CANCELLED'"),
        ],
    )
    ended = await belt.ended(await belt.start())
    assert seen.steps == wanted
    assert state(ended) == ("FAILED" if wanted else "SUCCEEDED")


async def test_a_failed_expression_stops_what_was_ready_beside_it(belt: Belt) -> None:
    seen = Counted()
    for name in ("a", "bad", "z", "after"):
        belt.drive(name, seen)
    bad = step("bad", params=to_struct({"a": "${{ context.nothing }}"}))
    after = step("after", "after", "bad", trigger_rule=TriggerRule.TRIGGER_RULE_ONE_FAILED)
    await belt.pipeline(step("a"), bad, step("z"), after, graph=True)
    ended = await belt.ended(await belt.start())
    assert reasons(ended) | {"after": ""} == {"a": "FAIL_FAST", "bad": "INPUT_MISSING", "z": "FAIL_FAST", "after": ""}
    assert (state(ended), seen.steps) == ("FAILED", ["after"])
    await belt.pipeline(
        step("a"), bad, step("z"), after, graph=True, failure_policy=FailurePolicy.FAILURE_POLICY_CONTINUE
    )
    ended = await belt.ended(await belt.start())
    assert (state(ended), sorted(seen.steps[1:])) == ("FAILED", ["a", "after", "z"])


async def test_a_retry_takes_over_parameters_and_what_was_skipped(belt: Belt) -> None:
    given, broken = Given(v=1), [True]

    async def flaky(job: Job) -> None:
        if broken:
            raise job.fail("not yet")
        await given(job)

    belt.drive("a", given)
    belt.drive("c", given)
    belt.drive("d", flaky)
    await belt.pipeline(
        step("a", params=to_struct({"n": "${{ params.n }}"})),
        step("b", "a", "a", when="steps.a.data.v == 2"),
        step("c", "c", "b", trigger_rule=TriggerRule.TRIGGER_RULE_NONE_FAILED),
        step("d", "d", "c", params=to_struct({"n": "${{ params.n }}", "v": "${{ steps.a.data.v }}"})),
        graph=True,
        params=[param("n", ParamType.PARAM_TYPE_NUMBER, required=True)],
    )
    await belt.client.resources.create(Resource(name="web", definition="app"))
    failed = await belt.ended(await belt.client.runs.start("app", "web", "release", {"n": 7}))
    assert state(failed) == "FAILED"
    broken.clear()
    given.params.clear()
    again = await belt.ended(await belt.client.runs.retry(failed.id))
    assert (state(again), again.params) == ("SUCCEEDED", to_struct({"n": 7}))
    # What was skipped because of its condition is going to be again, so what follows it is taken over.
    assert [each.step for each in again.steps if each.inherited] == ["a", "c"]
    assert given.params == {"d": {"n": 7, "v": 1}}


async def test_an_attempt_after_a_crash_gets_the_same_params(tmp_path: Path) -> None:
    nats = NatsServer(tmp_path / "nats").start()
    server = ConveyorServer(tmp_path / "server", ["--nats", nats.url]).start()
    try:
        async with Belt(Site(server, nats), tmp_path) as belt:
            await belt.pipeline(
                step("a"),
                step("b", when="steps.a.data.v == 1", params=to_struct({"at": "${{ run.create_time }}"})),
                step("c", "a", params=to_struct({"n": "${{ params.n }}", "v": "${{ steps.a.data.v }}"})),
                params=[param("n", ParamType.PARAM_TYPE_NUMBER, default=2)],
            )
            given = Given(v=1)
            belt.drive("a", given)
            run = await belt.start()
            await belt.until_step(run, "b", "QUEUED")
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            belt.drive("b", given)
            ended = await belt.ended(run)
            assert (state(ended), given.params["c"]) == ("SUCCEEDED", {"n": 2, "v": 1})
            assert str(given.params["b"]["at"])[:19] == ended.create_time.ToJsonString()[:19]
    finally:
        await asyncio.to_thread(server.kill)
        nats.stop()

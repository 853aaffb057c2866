"""Drivers in Go, over gRPC and over JetStream, on real servers and among drivers in Python."""

from __future__ import annotations

import asyncio

import pytest

from conveyor.sdk import from_struct, to_struct
from conveyor.v1.pipeline_pb2 import FailurePolicy
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import Run
from tests.support.behaviour import echo
from tests.support.belt import Belt, Site, matrix, one, state, states, step, step_reason
from tests.support.golang import Go, Held
from tests.support.wait import until

# The first build on a machine takes a minute.
pytestmark = pytest.mark.timeout(600)
both_transports = pytest.mark.parametrize("transport", ["grpc", "jetstream"])


def outcome(run: Run, name: str) -> tuple[str, str, str, int]:
    """State, reason, message and attempts of a step."""
    found = one(run.steps, name)
    return states(run)[name], step_reason(found), found.result.message or found.message, found.attempt


async def test_one_pipeline_of_both_languages_and_both_transports(belt: Belt, go: Go) -> None:
    belt.drive("python", echo)
    belt.drive("python-js", echo, transport="jetstream")
    go.driver(belt, "go", "echo")
    go.driver(belt, "go-js", "echo", transport="jetstream")
    order = ("go", "python-js", "go-js", "python", "go")
    steps = [step(f"s{i}", driver) for i, driver in enumerate(order)]
    pipeline_context = {"env": "stage", "ids": [1, 2.5, None]}
    await belt.pipeline(*steps, context=to_struct(pipeline_context))
    spec = {"numbers": [3, -1, 2**53, -(2**53), 0.1, 1e300, 5e-324], "text": "ä\u2028<&>", "deep": {"a": [True, None]}}
    run = await belt.ended(await belt.start(**spec))
    assert set(states(run).values()) == {"SUCCEEDED"}
    got = [from_struct(each.result.data) for each in run.steps]
    for i, data in enumerate(got):
        assert data["spec"] == spec
        assert data["context"] == pipeline_context
        assert data["results"] == {f"s{j}": got[j] for j in range(i)}


@both_transports
async def test_the_instances_of_a_matrix(belt: Belt, go: Go, transport: str) -> None:
    go.driver(belt, "go", "echo", transport=transport)
    await belt.pipeline(
        step("test", "go", matrix=matrix({"n": list(range(20))}, max_parallel=6)),
        step("after", "go"),
    )
    run = await belt.ended(await belt.start())
    assert set(states(run).values()) == {"SUCCEEDED"}
    assert len(run.steps) == 22
    results = from_struct(one(run.steps, "after").result.data)["results"]
    assert set(results) == {"test", *(f"test[{i}]" for i in range(20))}
    assert len({attempt.worker for each in run.steps for attempt in each.attempts}) == 1


@both_transports
async def test_what_a_handler_does_becomes_the_result(belt: Belt, go: Go, transport: str) -> None:
    kinds = ("ok", "fail", "permanent", "panic", "data", "giveup", "goexit")
    for kind in kinds:
        go.driver(belt, kind, kind, transport=transport)
    go.driver(belt, "flaky", "flaky", 2, transport=transport)
    steps = [step(kind, attempts=2) for kind in kinds]
    await belt.pipeline(
        *steps,
        step("flaky", attempts=3),
        step("panic-again", "panic"),
        graph=True,
        failure_policy=FailurePolicy.FAILURE_POLICY_CONTINUE,
    )
    run = await belt.ended(await belt.start())
    assert outcome(run, "ok")[0] == "SUCCEEDED"
    assert outcome(run, "flaky")[::3] == ("SUCCEEDED", 3)
    assert outcome(run, "fail") == ("FAILED", "DRIVER_FAILED", "it is broken", 2)
    assert outcome(run, "permanent") == ("FAILED", "DRIVER_FAILED", "never again", 1)
    assert from_struct(one(run.steps, "permanent").result.data) == {"code": 7}
    assert outcome(run, "panic") == ("FAILED", "DRIVER_FAILED", "panic: out of luck", 2)
    assert outcome(run, "panic-again")[2] == "panic: out of luck"
    assert outcome(run, "goexit")[2] == "the handler ended its goroutine"
    assert outcome(run, "data")[2:] == (
        "$.build.id: the integer 1152921504606846977 does not fit a double; send it as a string",
        1,
    )
    assert outcome(run, "giveup")[:3] == ("CANCELLED", "DRIVER_CANCELLED", "cancelled by the driver")
    trace = await belt.lines(run, step="panic", attempt=1)
    assert trace[0] == "panic: out of luck"
    assert any("testdriver/main.go" in line for line in trace)


@both_transports
async def test_lines_come_in_order_and_before_the_result(belt: Belt, go: Go, transport: str) -> None:
    go.driver(belt, "many", "lines", 3000, transport=transport)
    go.driver(belt, "mixed", "logging", transport=transport)
    # The run ends with the step of many lines: who follows them does not wait for more.
    await belt.pipeline(step("mixed"), step("many"))
    run = await belt.start()
    followed = await belt.lines(run, follow=True)
    assert state(await belt.ended(run)) == "SUCCEEDED"
    assert len(followed) == 3000 + 7
    assert await belt.lines(run, step="many") == [f"line {n + 1}" for n in range(3000)]
    lines = await belt.lines(run, step="mixed")
    assert lines[:4] == [
        "two",
        "lines",
        'level=WARN msg="from the job\'s logger" a=1 g.b="x y"',
        'level=INFO msg="from the default logger" c=3',
    ]
    assert sorted(lines[4:]) == ["err", "out", "unended"]


@both_transports
async def test_a_cancel_reaches_the_handlers_context(belt: Belt, go: Go, held: Held, transport: str) -> None:
    go.driver(belt, "work", *held.behaviour, transport=transport)
    await belt.pipeline(step("a", "work"))
    run = await belt.start()
    await held.started()
    # A ticket's delivery is seen a moment later.
    await belt.until_step(run, "a", "RUNNING")
    await belt.client.runs.cancel(run.id, "enough of it")
    ended = await belt.ended(run)
    assert (state(ended), states(ended)) == ("CANCELLED", {"a": "CANCELLED"})
    assert held.lines() == ["started 1", "cancelled: enough of it"]
    assert step_reason(ended.steps[0]) == "RUN_CANCELLED"


@both_transports
async def test_sigterm_drains(belt: Belt, go: Go, held: Held, transport: str) -> None:
    worker = go.driver(belt, "work", *held.behaviour, transport=transport)
    await belt.pipeline(step("a", "work"))
    first = await belt.start()
    await held.started()
    worker.terminate()
    await belt.until_step(first, "a", "RUNNING")
    if transport == "grpc":

        async def draining() -> bool:
            return (await belt.client.drivers.get("work")).workers[0].draining

        await until(draining)
        second = await belt.start()
        await belt.until_step(second, "a", "QUEUED", reason="NO_WORKER")
    await held.release()
    assert state(await belt.ended(first)) == "SUCCEEDED"
    assert await asyncio.to_thread(worker.wait) == 0
    assert held.lines() == ["started 1", "released"]


async def test_a_drain_that_takes_too_long_is_given_up(belt: Belt, go: Go, held: Held) -> None:
    worker = go.driver(belt, "work", *held.behaviour, DRAIN_TIMEOUT="100ms")
    await belt.pipeline(step("a", "work"))
    await belt.start()
    await held.started()
    worker.terminate()
    assert await asyncio.to_thread(worker.wait) == 1
    assert "given up what still ran after 100ms" in worker.log
    assert held.lines()[1:] == ["cancelled: the worker stops"]


async def test_a_ticket_that_was_given_back_goes_to_another_worker(belt: Belt, go: Go, held: Held) -> None:
    """It is the same attempt; its log goes on after the lines that are there."""
    first = go.driver(belt, "work", *held.behaviour, transport="jetstream", DRAIN_TIMEOUT="100ms")
    await belt.pipeline(step("a", "work"))
    run = await belt.start()
    await held.started()
    await belt.until_step(run, "a", "RUNNING")
    go.driver(belt, "work", *held.behaviour, transport="jetstream")
    first.terminate()
    assert await asyncio.to_thread(first.wait) == 1
    await held.release()
    ended = await belt.ended(run)
    assert (state(ended), ended.steps[0].attempt) == ("SUCCEEDED", 1)
    lines = await belt.lines(run)
    assert lines[0] == "holding"
    assert lines[1:] == [
        "[this attempt was given out again: the driver that had it went away]",
        "holding",
        "released",
    ]


@both_transports
async def test_a_broadcast_goes_to_who_names_the_definition(belt: Belt, go: Go, transport: str) -> None:
    await belt.pipeline(step("a", "none"))
    go.driver(belt, "listens", "echo", transport=transport, DEFINITIONS="other,app")
    go.driver(belt, "elsewhere", "echo", transport=transport, DEFINITIONS="other")
    await belt.connected("listens", "elsewhere")
    made = Resource(name="all", definition="app", spec=to_struct({"n": 1}))
    _, run = await belt.client.resources.create(made)
    assert run is not None
    ended = await belt.ended(run)
    assert [(each.driver, each.result.message) for each in ended.steps] == [("listens", "echoed")]


async def test_addresses_that_do_not_answer_are_passed_over(belt: Belt, go: Go) -> None:
    """And nobody asks a proxy for an address of this machine."""
    addresses = f"127.0.0.1:1, {belt.address}"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:1")
    go.driver(belt, "work", "ok", CONVEYOR_ADDRESS=addresses, **proxies)
    await belt.pipeline(step("a", "work"))
    run = await belt.start()
    client = go.client(belt, "wait", run.id, CONVEYOR_ADDRESS=addresses, **proxies)
    assert await asyncio.to_thread(client.wait) == 0
    assert client.output == [f"{run.id} SUCCEEDED"]


async def test_what_is_wrong_with_a_worker_is_said_and_ends_it(belt: Belt, go: Go, site: Site) -> None:
    refused = go.driver(belt, "NOT A NAME")
    assert await asyncio.to_thread(refused.wait) == 1
    assert "INVALID_FIELD" in refused.log
    for name, value, text in (
        ("CONVEYOR_SLOTS", "many", "CONVEYOR_SLOTS is"),
        ("CONVEYOR_SLOTS", "-1", "slots is -1; it must be from 1 to 10000"),
        ("CONVEYOR_TRANSPORT", "pigeon", "none of grpc, jetstream"),
        ("CONVEYOR_ADDRESS", "http://x", "is not a URL but host:port"),
    ):
        process = go.driver(belt, "work", **{name: value})
        assert await asyncio.to_thread(process.wait) == 1
        assert text in process.log

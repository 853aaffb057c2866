"""Contradictory settings and impossible requests: refused with what to do, or working; by each way that takes them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from conveyor.sdk import FailedPrecondition, InvalidArgument
from conveyor.v1.pipeline_pb2 import Pipeline, RetryPolicy, Step
from tests.support.behaviour import Hold, fail, ok
from tests.support.belt import Belt, state, step
from tests.support.cli import Cli

RANGE = "from 100 ms to 366 days"
UNITS = "write numbers with units"

TIMEOUTS: dict[str, tuple[Any, str]] = {
    "none": ("0s", f"steps[0].timeout: must be {RANGE}; leave it out for the default"),
    "a bare 0": (0, 'steps[0].timeout: 0 has no unit; write "0s"'),
    "a bare number": (90, 'steps[0].timeout: 90 has no unit; write "90s"'),
    "a bare number as text": ("90", 'steps[0].timeout: 90 has no unit; write "90s"'),
    "negative": ("-1s", UNITS),
    "infinite": ("inf", UNITS),
    "with a space": ("5 min", UNITS),
    "a power": ("9e15", UNITS),
    "ten years": ("10y", UNITS),
    "ten years in days": ("3650d", f"steps[0].timeout: must be {RANGE}"),
    "for ever": ("99999999999999999s", "longer than 10,000 years"),
    "too short": ("50ms", f"steps[0].timeout: must be {RANGE}"),
    "a month": ("30d", ""),
    "more than a timer of C holds": ("2147484s", ""),
    "half a second": ("0.5s", ""),
    "two units": ("1h30m", ""),
}

RETRIES: dict[str, tuple[RetryPolicy, str]] = {
    "no attempts": (RetryPolicy(max_attempts=0), "max_attempts: must be from 1 to 100"),
    "very many attempts": (RetryPolicy(max_attempts=101), "max_attempts: must be from 1 to 100"),
    "shrinking": (RetryPolicy(multiplier=0.5), "multiplier: must be from 1 to 100"),
    "no number": (RetryPolicy(multiplier=float("nan")), "multiplier: must be from 1 to 100"),
    "endless": (RetryPolicy(multiplier=float("inf")), "multiplier: must be from 1 to 100"),
    "more than all": (RetryPolicy(jitter=1.1), "jitter: must be from 0 to 1"),
    "negative jitter": (RetryPolicy(jitter=-0.1), "jitter: must be from 0 to 1"),
    "a longest wait below the first": (
        RetryPolicy(initial_backoff=Duration(seconds=10), max_backoff=Duration(seconds=5)),
        "max_backoff: must not be shorter than initial_backoff",
    ),
    "a wait in the past": (
        RetryPolicy(initial_backoff=Duration(seconds=-1)),
        "initial_backoff: must be from 0 to 24 h",
    ),
    "a wait of two days": (RetryPolicy(max_backoff=Duration(seconds=172_800)), "max_backoff: must be from 0 to 24 h"),
    "signs that disagree": (
        RetryPolicy(initial_backoff=Duration(seconds=5, nanos=-1)),
        "initial_backoff: must be from 0 to 24 h",
    ),
}


@pytest.mark.parametrize("case", TIMEOUTS)
async def test_f88_timeouts_in_manifests(belt: Belt, case: str) -> None:
    value, words = TIMEOUTS[case]
    manifest = {"kind": "Pipeline", "name": "p", "steps": [{"id": "a", "driver": "x", "timeout": value}]}
    cli = Cli(belt.address, belt.namespace)
    done = await asyncio.to_thread(cli, "apply", "-f", "-", stdin=json.dumps(manifest))
    assert done.code == (1 if words else 0)
    assert words in done.err


@pytest.mark.parametrize("case", RETRIES)
async def test_contradictory_retries_over_the_api(belt: Belt, case: str) -> None:
    policy, words = RETRIES[case]
    with pytest.raises(InvalidArgument) as caught:
        await belt.client.pipelines.create(Pipeline(name="p", steps=[Step(id="a", driver="x", retry=policy)]))
    assert caught.value.reason == "INVALID_FIELD"
    assert f"pipeline.steps[0].retry.{words}" in str(caught.value)


@pytest.mark.parametrize(
    ("grace", "words"),
    [
        ("2h", "grace: must be from 0 to 1 h"),
        ("3600.1s", "grace: must be from 0 to 1 h"),
        ("90", 'has no unit; write "90s"'),
        ("-1s", UNITS),
        ("inf", UNITS),
        ("5 min", UNITS),
    ],
)
async def test_a_grace_that_cannot_be(belt: Belt, grace: str, words: str) -> None:
    await belt.pipeline(step("a", "nobody"))
    run = await belt.start()
    done = await asyncio.to_thread(Cli(belt.address, belt.namespace), "run", "cancel", run.id, "--grace", grace)
    assert done.code in {1, 2}
    assert words in done.err
    assert state(await belt.client.runs.get(run.id)) == "RUNNING"


async def test_what_cannot_be_done_to_a_run_says_why(belt: Belt) -> None:
    hold = Hold()
    belt.drive("hold", hold)
    belt.drive("ok", ok)
    await belt.pipeline(step("a", "hold"))
    await belt.pipeline(step("a", "ok"), name="short")
    running, succeeded = await belt.start(), await belt.ended(await belt.start("short"))
    await hold.started.wait()
    runs = belt.client.runs
    for call, reason, words in (
        (runs.retry(running.id), "RUN_NOT_FINISHED", "cancel it first"),
        (runs.delete(running.id), "RUN_NOT_FINISHED", "cancel it first"),
        (runs.retry(succeeded.id), "RUN_SUCCEEDED", "nothing to retry"),
        (runs.cancel(succeeded.id), "RUN_FINISHED", "has ended already, SUCCEEDED"),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            await call
        assert caught.value.reason == reason
        assert words in str(caught.value)
    await runs.cancel(running.id, force=True)
    with pytest.raises(FailedPrecondition, match="has ended already, CANCELLED"):
        await runs.cancel(running.id, force=True)


async def test_a_run_is_retried_after_its_pipeline_and_resource_are_gone(belt: Belt) -> None:
    belt.drive("fail", fail)
    await belt.pipeline(step("a", "fail"))
    failed = await belt.ended(await belt.start(resource="web"))
    await belt.client.pipelines.delete("release")
    await belt.client.resources.delete("app", "web")
    again = await belt.ended(await belt.client.runs.retry(failed.id))
    assert (state(again), again.parent_run) == ("FAILED", failed.id)

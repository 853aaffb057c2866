"""A real server whose clock is an hour ahead dies, and comes back with the right one."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from conveyor.v1.run_pb2 import RunState
from tests.faults.clock import HOUR, set_clock
from tests.faults.cluster import Cluster, Layout
from tests.support.behaviour import Hold, fail
from tests.support.belt import Belt, Site, one, reason, state, step, step_reason
from tests.support.wait import until

_BOUND = 4.0
"""Seconds: each of the waits."""


async def test_what_waited_while_the_clock_was_ahead_waits_for_its_own_time_once_more(tmp_path: Path) -> None:
    async with Cluster(tmp_path / "cluster", Layout("sqlite", stepping_clock=True)) as cluster:
        assert cluster.clock is not None
        server = cluster.servers[0]
        site = Site(server, cluster.nats)
        async with Belt(site, tmp_path, address=cluster.addresses) as belt, contextlib.AsyncExitStack() as stack:
            set_clock(cluster.clock, HOUR)
            await cluster.restart(server)
            held = Hold(cancellable=False)
            stack.callback(held.released.set)
            belt.drive("slow", held)
            belt.drive("broken", fail)
            await belt.pipeline(step("slow", timeout=_BOUND), name="runs")
            await belt.pipeline(step("nobody", queue_timeout=_BOUND), name="waits")
            await belt.pipeline(step("broken", attempts=2, backoff=_BOUND), name="retries")
            await belt.pipeline(step("slow"), name="cancelled")
            runs = {name: await belt.start(name) for name in ("runs", "waits", "retries", "cancelled")}
            await until(lambda: held.count == 2, "both to be at work")
            await belt.until_step(runs["retries"], "broken", "RETRYING", "FAILED")
            await belt.client.runs.cancel(runs["cancelled"].id, "enough", grace=_BOUND)
            assert runs["runs"].create_time.ToSeconds() > time.time() + HOUR / 2
            await cluster.kill(server)

            set_clock(cluster.clock, 0)
            await cluster.restart(server)
            ended = {name: await belt.ended(run) for name, run in runs.items()}
            assert {name: state(run) for name, run in ended.items()} == {
                "runs": "FAILED",
                "waits": "FAILED",
                "retries": "FAILED",
                "cancelled": "CANCELLED",
            }
            assert step_reason(one(ended["runs"].steps, "slow")) == "TIMED_OUT"
            assert step_reason(one(ended["waits"].steps, "nobody")) == "QUEUE_TIMED_OUT"
            assert len(one(ended["retries"].steps, "broken").attempts) == 2
            assert reason(ended["cancelled"]) == "CANCEL_REQUESTED"
            for run in ended.values():
                times = [run.create_time, run.start_time, run.end_time]
                assert times == sorted(times, key=lambda each: each.ToNanoseconds()) or not run.HasField("start_time")

            # New runs are made by the right clock, and listed below those that were made ahead.
            after = await belt.start("cancelled")
            assert after.create_time.ToSeconds() < time.time() + HOUR / 2
            listed = [run.id async for run in belt.client.runs.list(page_size=2)]
            assert listed == sorted([after.id, *(run.id for run in runs.values())], reverse=True)
            assert listed[-1] == after.id
            unfinished = [RunState.RUN_STATE_PENDING, RunState.RUN_STATE_RUNNING, RunState.RUN_STATE_CANCELLING]
            assert [run.id async for run in belt.client.runs.list(states=unfinished)] == [after.id]

"""Following runs and logs: merging, going on after a loss, giving up."""
# ruff: noqa: N802 (servicers have the names of their rpcs)

import asyncio
from contextlib import aclosing

import grpc
import pytest

import conveyor.sdk.sync.watch
import conveyor.sdk.watch
from conveyor.sdk import ConnectionGivenUp, NotFound, WaitTimeout
from conveyor.v1.log_pb2 import LogLine
from conveyor.v1.log_service_pb2 import ReadLogsResponse
from conveyor.v1.log_service_pb2_grpc import LogServiceServicer, add_LogServiceServicer_to_server
from conveyor.v1.pipeline_pb2 import Pipeline
from conveyor.v1.run_pb2 import (
    Run,
    RunChange,
    RunChanges,
    RunsDeleted,
    RunSnapshot,
    RunState,
    SnapshotEnd,
    StepRun,
    StepState,
    WatchHeartbeat,
    WatchReset,
)
from conveyor.v1.run_service_pb2 import GetRunResponse, WatchRunResponse, WatchRunsResponse
from conveyor.v1.run_service_pb2_grpc import RunServiceServicer, add_RunServiceServicer_to_server

RUNNING, SUCCEEDED = RunState.RUN_STATE_RUNNING, RunState.RUN_STATE_SUCCEEDED
PENDING, WORKING, DONE = StepState.STEP_STATE_PENDING, StepState.STEP_STATE_RUNNING, StepState.STEP_STATE_SUCCEEDED
SKIPPED = StepState.STEP_STATE_SKIPPED


def basic(state, steps, etag, run_id="r1"):
    """A run as changes carry it: without its steps."""
    return Run(id=run_id, state=state, step_states=steps, etag=etag)


def full(state, steps, etag, run_id="r1"):
    """A run as a snapshot carries it."""
    run = basic(state, steps.values(), etag, run_id)
    run.steps.extend(StepRun(run=run_id, step=step, state=state) for step, state in steps.items())
    run.pipeline_snapshot.CopyFrom(Pipeline(name="release"))
    return run


def change(run, *steps, skipped=0):
    return RunChanges(changes=[RunChange(run=run, steps=steps, skipped=skipped)])


class Broken(Exception):
    """Stands in a script where the connection breaks."""


class Scripted(RunServiceServicer):
    """Each watch plays the next script; the requests are kept."""

    def __init__(self, *scripts, runs=()):
        self.scripts = list(scripts)
        self.requests = []
        self.runs = {run.id: run for run in runs}

    def register(self, server):
        add_RunServiceServicer_to_server(self, server)

    async def _play(self, request, context):
        self.requests.append(request)
        if not self.scripts:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no more scripts")
        for message in self.scripts.pop(0):
            if message is Broken:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            if message is NotFound:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no run r1")
            if message is Ellipsis:
                await asyncio.Event().wait()
            yield message

    async def WatchRun(self, request, context):
        async for message in self._play(request, context):
            yield message

    async def WatchRuns(self, request, context):
        async for message in self._play(request, context):
            yield message

    async def GetRun(self, request, context):
        if request.id not in self.runs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such run")
        return GetRunResponse(run=self.runs[request.id])


def one(**event):
    return WatchRunResponse(**event)


def many(**event):
    return WatchRunsResponse(**event)


def snapshot(run):
    return one(snapshot=RunSnapshot(runs=[run]))


END = one(snapshot_end=SnapshotEnd(), cursor="c1")


async def test_changes_are_merged_into_whole_runs(serve, connect):
    server = Scripted(
        [
            snapshot(full(RUNNING, {"a": WORKING, "b": PENDING, "c": PENDING}, "1")),
            END,
            one(heartbeat=WatchHeartbeat()),
            one(
                changes=change(
                    basic(SUCCEEDED, [DONE, DONE, SKIPPED], "3"),
                    StepRun(step="a", state=DONE, message="ok"),
                    StepRun(step="b", state=DONE),
                    skipped=2,
                ),
                cursor="c2",
            ),
        ]
    )
    async with serve(server.register) as address, connect(address) as client:
        first, second = [update async for update in client.runs.watch("r1")]
    assert [step.step for step in first.changed] == ["a", "b", "c"]
    assert first.run.state == RUNNING
    assert [(step.step, step.state) for step in second.run.steps] == [("a", DONE), ("b", DONE), ("c", SKIPPED)]
    # A step that was skipped without ever being queued is not sent: the run's own states tell it.
    assert [step.step for step in second.changed] == ["a", "b", "c"]
    assert second.skipped == 2
    assert second.run.steps[0].message == "ok"
    assert second.run.pipeline_snapshot.name == "release"


async def test_a_watch_goes_on_behind_what_it_saw(serve, connect):
    running = full(RUNNING, {"a": WORKING}, "1")
    done = change(basic(SUCCEEDED, [DONE], "2"), StepRun(step="a", state=DONE))
    server = Scripted([snapshot(running), END, Broken], [Broken], [one(changes=done, cursor="c2")])
    async with serve(server.register) as address, connect(address) as client:
        states = [update.run.state async for update in client.runs.watch("r1")]
    assert states == [RUNNING, SUCCEEDED]
    assert [request.cursor for request in server.requests] == ["", "c1", "c1"]


async def test_a_stream_that_ends_before_its_run_is_opened_again(serve, connect):
    running = full(RUNNING, {"a": WORKING}, "1")
    done = change(basic(SUCCEEDED, [DONE], "2"), StepRun(step="a", state=DONE))
    server = Scripted([snapshot(running), END], [one(changes=done, cursor="c2")])
    async with serve(server.register) as address, connect(address) as client:
        assert (await client.runs.wait("r1")).state == SUCCEEDED


async def test_after_a_reset_only_what_is_new_is_told(serve, connect):
    before = full(RUNNING, {"a": WORKING, "b": PENDING}, "1")
    after = full(SUCCEEDED, {"a": DONE, "b": PENDING}, "5")
    server = Scripted([snapshot(before), END, one(reset=WatchReset()), snapshot(after), END])
    async with serve(server.register) as address, connect(address) as client:
        first, second = [update async for update in client.runs.watch("r1")]
    assert not first.reset
    assert second.reset
    assert [step.step for step in second.changed] == ["a"]


async def test_a_snapshot_that_says_nothing_new_is_not_told(serve, connect):
    before = full(RUNNING, {"a": WORKING}, "1")
    after = full(SUCCEEDED, {"a": DONE}, "2")
    server = Scripted([snapshot(before), Broken], [snapshot(before), Broken], [snapshot(after), END])
    async with serve(server.register) as address, connect(address) as client:
        updates = [(update.run.state, update.reset) async for update in client.runs.watch("r1")]
    assert updates == [(RUNNING, False), (SUCCEEDED, True)]


async def test_a_run_that_ended_before_is_told_once(serve, connect):
    server = Scripted([snapshot(full(SUCCEEDED, {"a": DONE}, "1")), END])
    async with serve(server.register) as address, connect(address) as client:
        [update] = [update async for update in client.runs.watch("r1")]
    assert update.run.state == SUCCEEDED


async def test_unknown_and_deleted_runs_are_not_found(serve, connect):
    deleted = one(deleted=RunsDeleted(runs=[basic(SUCCEEDED, [], "2")]))
    server = Scripted([NotFound], [snapshot(full(RUNNING, {}, "1")), END, deleted])
    async with serve(server.register) as address, connect(address) as client:
        with pytest.raises(NotFound, match="no run r1"):
            await client.runs.wait("r1")
        with pytest.raises(NotFound, match="was deleted"):
            await client.runs.wait("r1")


async def test_it_gives_up_when_asked_to(serve, connect):
    server = Scripted([snapshot(full(RUNNING, {}, "1")), END, Broken])
    async with serve(server.register) as address, connect(address) as client:
        with pytest.raises(ConnectionGivenUp, match="given up after 0 s"):
            await client.runs.wait("r1", give_up_after=0)


async def test_a_wait_has_its_limit(serve, connect):
    server = Scripted([snapshot(full(RUNNING, {}, "1")), END, ...])
    async with serve(server.register) as address, connect(address) as client:
        with pytest.raises(WaitTimeout, match=r"run r1 has not ended within 0\.3 s"):
            await client.runs.wait("r1", timeout=0.3)


async def test_a_wait_has_its_limit_also_without_a_server(connect):
    async with connect("127.0.0.1:1") as client:
        with pytest.raises(WaitTimeout, match="its state is unknown"):
            await client.runs.wait("r1", timeout=0.3)


@pytest.mark.parametrize("timeout", [0, -1])
async def test_a_wait_may_be_but_a_look(serve, connect, timeout):
    server = Scripted([snapshot(full(RUNNING, {}, "1")), END, ...])
    async with serve(server.register) as address, connect(address) as client:
        with pytest.raises(WaitTimeout):
            await client.runs.wait("r1", timeout=timeout)


@pytest.mark.parametrize("timeout", [1e12, float("inf")])
async def test_a_wait_may_be_as_long_as_one_likes(serve, connect, timeout):
    server = Scripted([snapshot(full(SUCCEEDED, {"a": DONE}, "1")), END])
    async with serve(server.register) as address, connect(address) as client:
        assert (await client.runs.wait("r1", timeout=timeout)).state == SUCCEEDED


async def test_a_server_that_falls_silent_is_asked_again(serve, connect, monkeypatch):
    for module in (conveyor.sdk.watch, conveyor.sdk.sync.watch):
        monkeypatch.setattr(module, "_SILENCE", 0.3)
    done = change(basic(SUCCEEDED, [DONE], "2"), StepRun(step="a", state=DONE))
    server = Scripted([snapshot(full(RUNNING, {"a": WORKING}, "1")), END, ...], [one(changes=done, cursor="c2")])
    async with serve(server.register) as address, connect(address) as client:
        assert (await client.runs.wait("r1")).state == SUCCEEDED
    assert [request.cursor for request in server.requests] == ["", "c1"]


async def test_all_runs_are_followed_and_no_end_is_missed(serve, connect):
    def snap(*runs):
        return many(snapshot=RunSnapshot(runs=runs))

    end = many(snapshot_end=SnapshotEnd(), cursor="c1")
    one_, two, three = (basic(RUNNING, [WORKING], "1", name) for name in ("r1", "r2", "r3"))
    server = Scripted(
        [snap(one_, two), snap(three), end, Broken],
        [
            many(changes=change(basic(SUCCEEDED, [DONE], "2", "r1"), StepRun(step="a", state=DONE)), cursor="c2"),
            many(reset=WatchReset()),
            snap(two, basic(RUNNING, [], "1", "r4")),
            end,
            many(deleted=RunsDeleted(runs=[two]), cursor="c3"),
            ...,
        ],
        runs=[basic(SUCCEEDED, [DONE], "9", "r3")],
    )
    seen = []
    async with (
        serve(server.register) as address,
        connect(address) as client,
        aclosing(client.runs.watch_all(pipeline="release")) as updates,
    ):
        async for update in updates:
            seen.append((update.run.id, update.run.state, update.reset, update.deleted))
            if update.deleted:
                break
    assert seen == [
        ("r1", RUNNING, False, False),
        ("r2", RUNNING, False, False),
        ("r3", RUNNING, False, False),
        ("r1", SUCCEEDED, False, False),
        ("r4", RUNNING, False, False),
        ("r3", SUCCEEDED, True, False),
        ("r2", RUNNING, False, True),
    ]
    assert [(request.cursor, request.pipeline) for request in server.requests] == [("", "release"), ("c1", "release")]


async def test_no_end_is_missed_when_the_connection_breaks_within_the_first_snapshot(serve, connect):
    one_, two = (basic(RUNNING, [WORKING], "1", name) for name in ("r1", "r2"))
    server = Scripted(
        [many(snapshot=RunSnapshot(runs=[one_, two])), Broken],
        [
            many(snapshot=RunSnapshot(runs=[two])),
            many(snapshot_end=SnapshotEnd(), cursor="c1"),
            many(changes=change(basic(SUCCEEDED, [DONE], "2", "r2")), cursor="c2"),
            ...,
        ],
        runs=[basic(SUCCEEDED, [DONE], "9", "r1")],
    )
    seen = []
    async with (
        serve(server.register) as address,
        connect(address) as client,
        aclosing(client.runs.watch_all()) as updates,
    ):
        async for update in updates:
            seen.append((update.run.id, update.run.state, update.reset))
            if len(seen) == 4:
                break
    assert seen == [("r1", RUNNING, False), ("r2", RUNNING, False), ("r1", SUCCEEDED, True), ("r2", SUCCEEDED, False)]


class ScriptedLogs(LogServiceServicer):
    """Each read plays the next script."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.requests = []

    def register(self, server):
        add_LogServiceServicer_to_server(self, server)

    async def ReadLogs(self, request, context):
        self.requests.append(request)
        for message in self.scripts.pop(0):
            if message is Broken:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            yield message


def lines(*numbers):
    return ReadLogsResponse(lines=[LogLine(run="r1", seq=n, text=f"line {n}", cursor=f"c{n}") for n in numbers])


async def test_lines_come_once_and_whole_over_lost_connections(serve, connect):
    server = ScriptedLogs([lines(1, 2), Broken], [Broken], [lines(3), lines(4, 5)])
    async with serve(server.register) as address, connect(address) as client:
        seen = [line.seq async for line in client.logs.read("r1", follow=True, tail=9)]
    assert seen == [1, 2, 3, 4, 5]
    assert [(request.cursor, request.tail, request.follow) for request in server.requests] == [
        ("", 9, True),
        ("c2", 0, True),
        ("c2", 0, True),
    ]


async def test_reading_gives_up_when_asked_to(serve, connect):
    server = ScriptedLogs([Broken])
    async with serve(server.register) as address, connect(address) as client:
        with pytest.raises(ConnectionGivenUp):
            [line async for line in client.logs.read("r1", give_up_after=0)]

"""Runs over a socket: started once, listed, watched, cancelled, retried, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.api import run_list
from conveyor.v1 import driver_pb2, driver_service_pb2, log_service_pb2, run_pb2
from conveyor.v1 import pipeline_service_pb2 as pipelines
from conveyor.v1 import run_service_pb2 as pb
from tests.support.api import Api, pipeline, refused, served


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with served(tmp_path) as started:
        await started.setup()
        yield started


def start(resource: str = "web", **fields: object) -> pb.StartRunRequest:
    return pb.StartRunRequest(definition="app", resource=resource, **fields)  # type: ignore[arg-type]


async def listed(api: Api, **fields: object) -> list[str]:
    """All ids, over all pages."""
    request = pb.ListRunsRequest(**fields)  # type: ignore[arg-type]
    found: list[str] = []
    while True:
        page = await api.runs.ListRuns(request)
        found += [run.id for run in page.runs]
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def test_start(api: Api) -> None:
    await api.create(labels={"a": "1", "b": "1"})
    await api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=pipeline("other", "x", "y", "z")))
    run = (await api.runs.StartRun(start(pipeline="other", labels={"b": "2", "c": "2"}))).run
    assert (run.pipeline, run.resource_generation, len(run.step_states)) == ("other", 1, 3)
    assert dict(run.labels) == {"a": "1", "b": "2", "c": "2"}
    assert run == (await api.runs.GetRun(pb.GetRunRequest(id=run.id, view=run_pb2.RUN_VIEW_BASIC))).run
    many = start(labels={str(i): "" for i in range(63)})
    assert (await refused(api.runs.StartRun(many))).fields == ["labels"]


async def test_validate_only_starts_nothing(api: Api) -> None:
    created = (await api.create()).run.id
    run = (await api.runs.StartRun(start(validate_only=True, request_id="x"))).run
    assert (run.resource, run.etag) == ("web", "")
    assert await listed(api) == [created]
    assert (await refused(api.runs.StartRun(start(pipeline="nope", validate_only=True)))).kind == (
        "FAILED_PRECONDITION",
        "UNKNOWN_PIPELINE",
    )


async def test_twenty_starts_of_one_request_id_are_one_run(api: Api) -> None:
    await api.create()
    done = await asyncio.gather(*(api.runs.StartRun(start(request_id="one")) for _ in range(20)))
    assert len({answer.run.id for answer in done}) == 1
    assert len(await listed(api)) == 2
    other = await refused(api.runs.StartRun(start(request_id="one", labels={"a": "b"})))
    assert other.kind == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")


async def test_a_full_run(api: Api) -> None:
    created = await api.create(spec={"url": "u"})
    run = (await api.runs.GetRun(pb.GetRunRequest(id=created.run.id))).run
    assert [(step.step, step.driver, step.state) for step in run.steps] == [
        ("s0", "build", run_pb2.STEP_STATE_QUEUED),
        ("s1", "test", run_pb2.STEP_STATE_PENDING),
    ]
    assert run.steps[0].reason == run_pb2.STEP_REASON_NO_WORKER
    assert "build" in run.steps[0].message
    assert list(run.step_states) == [step.state for step in run.steps]


async def test_lists_are_newest_first_and_filtered(api: Api) -> None:
    await api.pipelines.CreatePipeline(pipelines.CreatePipelineRequest(pipeline=pipeline("other")))
    made = [(await api.create(f"r{i}", labels={"n": str(i % 2)})).run for i in range(6)]
    made += [(await api.runs.StartRun(start(f"r{i}", pipeline="other"))).run for i in range(3)]
    await api.cancelled(made[0].id)
    newest = [run.id for run in reversed(made)]
    assert await listed(api) == newest
    assert await listed(api, page_size=2) == newest
    assert await listed(api, pipeline="other") == newest[:3]
    assert await listed(api, definition="app", resource="r1") == [made[7].id, made[1].id]
    assert await listed(api, definition="app", resource="r1", pipeline="other") == [made[7].id]
    assert await listed(api, definition="nope") == []
    assert await listed(api, labels={"n": "1"}) == [run.id for run in reversed(made) if run.labels["n"] == "1"]
    assert await listed(api, states=[run_pb2.RUN_STATE_CANCELLED]) == [made[0].id]
    assert await listed(api, states=[run_pb2.RUN_STATE_RUNNING], page_size=3) == newest[:-1]
    assert await listed(api, namespace="other") == []


async def test_lists_of_a_time(api: Api) -> None:
    made = [(await api.create(f"r{i}")).run for i in range(5)]

    def just_after(time: Timestamp) -> Timestamp:
        later = Timestamp()
        later.FromNanoseconds(time.ToNanoseconds() + 1)
        return later

    def ids(first: int, last: int) -> list[str]:
        return [run.id for run in reversed(made[first:last])]

    times = [run.create_time for run in made]
    assert await listed(api, create_time_from=times[2]) == ids(2, 5)
    assert await listed(api, create_time_from=just_after(times[2])) == ids(3, 5)
    assert await listed(api, create_time_before=times[2]) == ids(0, 2)
    assert await listed(api, create_time_before=just_after(times[2])) == ids(0, 3)
    assert await listed(api, create_time_from=times[1], create_time_before=times[4], page_size=1) == ids(1, 4)
    assert await listed(api, create_time_from={"seconds": 253_402_300_799}) == []
    assert await listed(api, create_time_before={"seconds": -62_135_596_800}) == []
    assert await listed(api, create_time_before={"seconds": 253_402_300_799}) == ids(0, 5)


async def test_a_list_that_finds_little_ends_its_page_and_goes_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_list, "MOST_SCANNED", 4)
    monkeypatch.setattr(run_list, "_CHUNK", 3)
    made = [(await api.create(f"r{i}", labels={"n": str(i)})).run for i in range(10)]
    page = await api.runs.ListRuns(pb.ListRunsRequest(labels={"n": "0"}))
    assert list(page.runs) == []
    assert page.next_page_token
    assert await listed(api, labels={"n": "0"}) == [made[0].id]
    # What is older than asked for is not read.
    page = await api.runs.ListRuns(pb.ListRunsRequest(create_time_from={"seconds": made[-1].create_time.seconds + 1}))
    assert (list(page.runs), page.next_page_token) == ([], "")


async def test_lists_of_full_runs_keep_within_a_message(api: Api) -> None:
    ids = [(await api.create(f"r{i}", spec={"k": "x" * 250_000})).run.id for i in range(12)]
    page = await api.runs.ListRuns(pb.ListRunsRequest(view=run_pb2.RUN_VIEW_FULL))
    assert 1 < len(page.runs) < 12
    assert page.runs[0].resource_snapshot.spec["k"] == "x" * 250_000
    assert await listed(api, view=run_pb2.RUN_VIEW_FULL) == ids[::-1]


async def test_cancel(api: Api) -> None:
    run = (await api.create()).run.id
    cancelled = (await api.runs.CancelRun(pb.CancelRunRequest(id=run, message="not today"))).run
    assert (cancelled.state, cancelled.cancel_message) == (run_pb2.RUN_STATE_CANCELLED, "not today")
    again = await refused(api.runs.CancelRun(pb.CancelRunRequest(id=run)))
    assert again.kind == ("FAILED_PRECONDITION", "RUN_FINISHED")
    steps = (await api.runs.GetRun(pb.GetRunRequest(id=run))).run.steps
    assert [step.state for step in steps] == [run_pb2.STEP_STATE_CANCELLED, run_pb2.STEP_STATE_SKIPPED]
    assert steps[1].message == "the run was cancelled before it started"


async def test_a_repeated_cancel_gets_the_same_answer(api: Api) -> None:
    run = (await api.create()).run.id
    request = pb.CancelRunRequest(id=run, request_id="one")
    first = await api.runs.CancelRun(request)
    assert await api.runs.CancelRun(request) == first
    other = pb.CancelRunRequest(id=run, request_id="one", message="why")
    assert (await refused(api.runs.CancelRun(other))).kind == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    late = pb.CancelRunRequest(id=run, request_id="two")
    assert (await refused(api.runs.CancelRun(late))).kind == ("FAILED_PRECONDITION", "RUN_FINISHED")
    assert (await refused(api.runs.CancelRun(late))).kind == ("FAILED_PRECONDITION", "RUN_FINISHED")


async def test_retry(api: Api) -> None:
    run = (await api.create(labels={"a": "1"})).run.id
    unfinished = await refused(api.runs.RetryRun(pb.RetryRunRequest(id=run)))
    assert unfinished.kind == ("FAILED_PRECONDITION", "RUN_NOT_FINISHED")
    await api.cancelled(run)
    request = pb.RetryRunRequest(id=run, labels={"b": "2"}, request_id="one")
    retried = (await api.runs.RetryRun(request)).run
    assert (retried.parent_run, retried.state) == (run, run_pb2.RUN_STATE_RUNNING)
    assert dict(retried.labels) == {"a": "1", "b": "2"}
    assert (await api.runs.RetryRun(request)).run.id == retried.id
    assert len(await listed(api)) == 2
    succeeded = (await api.create("lonely", pipeline="")).run
    assert succeeded.state == run_pb2.RUN_STATE_SUCCEEDED
    nothing = await refused(api.runs.RetryRun(pb.RetryRunRequest(id=succeeded.id)))
    assert nothing.kind == ("FAILED_PRECONDITION", "RUN_SUCCEEDED")


async def test_a_retry_holds_the_snapshot_of_its_parent(api: Api) -> None:
    run = (await api.create()).run.id
    await api.cancelled(run)
    changed = pipelines.UpdatePipelineRequest(pipeline=pipeline("main", "other"))
    await api.pipelines.UpdatePipeline(changed)
    await api.pipelines.DeletePipeline(pipelines.DeletePipelineRequest(name="main"))
    retried = (await api.runs.RetryRun(pb.RetryRunRequest(id=run))).run
    full = (await api.runs.GetRun(pb.GetRunRequest(id=retried.id))).run
    assert [step.driver for step in full.steps] == ["build", "test"]


async def test_delete(api: Api) -> None:
    run = (await api.create()).run.id
    unfinished = await refused(api.runs.DeleteRun(pb.DeleteRunRequest(id=run)))
    assert unfinished.kind == ("FAILED_PRECONDITION", "RUN_NOT_FINISHED")
    ended = await api.cancelled(run)
    stale = await refused(api.runs.DeleteRun(pb.DeleteRunRequest(id=run, etag="1")))
    assert stale.kind == ("ABORTED", "ETAG_MISMATCH")
    # The broker of this test is away: the run goes, its lines stay for the bounds of their stream.
    assert (await api.runs.DeleteRun(pb.DeleteRunRequest(id=run, etag=ended.etag))).run == ended
    assert (await refused(api.runs.GetRun(pb.GetRunRequest(id=run)))).kind == ("NOT_FOUND", "NOT_FOUND")
    assert await listed(api) == await listed(api, pipeline="main") == []


async def test_watch_one(api: Api) -> None:
    run = (await api.create()).run.id
    watch = api.runs.WatchRun(pb.WatchRunRequest(id=run))
    snapshot = await anext(aiter(watch))
    assert [step.step for step in snapshot.snapshot.runs[0].steps] == ["s0", "s1"]
    end = await anext(aiter(watch))
    assert end.HasField("snapshot_end")
    await api.cancelled(run)
    rest = [response async for response in watch]
    last = rest[-1]
    assert last.changes.changes[0].run.state == run_pb2.RUN_STATE_CANCELLED
    # From a cursor on: what came after it, and nothing twice.
    from_snapshot = [r async for r in api.runs.WatchRun(pb.WatchRunRequest(id=run, cursor=end.cursor))]
    assert from_snapshot[-1] == last
    assert [r async for r in api.runs.WatchRun(pb.WatchRunRequest(id=run, cursor=last.cursor))] == []


async def test_watch_many(api: Api) -> None:
    first = (await api.create("a")).run.id
    watch = aiter(api.runs.WatchRuns(pb.WatchRunsRequest(definition="app", resource="a")))
    assert [run.id for run in (await anext(watch)).snapshot.runs] == [first]
    assert (await anext(watch)).HasField("snapshot_end")
    await api.create("b")
    second = (await api.runs.StartRun(start("a"))).run.id
    assert [change.run.id for change in (await anext(watch)).changes.changes] == [second]


async def test_watchers_that_go_leave_nothing_behind(api: Api) -> None:
    run = (await api.create()).run.id
    watches = [api.runs.WatchRun(pb.WatchRunRequest(id=run)) for _ in range(50)]
    watches += [api.runs.WatchRuns(pb.WatchRunsRequest()) for _ in range(50)]  # type: ignore[misc]
    for watch in watches:
        await anext(aiter(watch))
    assert api.hub.subscribers == 100
    for watch in watches:
        watch.cancel()
    async with asyncio.timeout(30):
        while api.hub.subscribers:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_logs_without_a_broker(api: Api) -> None:
    run = (await api.create()).run.id
    away = ("UNAVAILABLE", "BROKER_UNAVAILABLE")
    assert (await refused(api.logs.ReadLogs(log_service_pb2.ReadLogsRequest(run=run)))).kind == away
    follow = log_service_pb2.ReadLogsRequest(run=run, follow=True)
    assert (await refused(api.logs.ReadLogs(follow))).kind == away
    line = {"run": run, "step": "s0", "attempt": 1, "seq": 1}
    writes = [log_service_pb2.WriteLogsRequest(lines=[line])]  # type: ignore[list-item]
    assert (await refused(api.logs.WriteLogs(iter(writes)))).kind == away
    unknown = log_service_pb2.ReadLogsRequest(run=run, step="nope")
    assert (await refused(api.logs.ReadLogs(unknown))).kind == ("NOT_FOUND", "NOT_FOUND")


async def test_drivers(api: Api) -> None:
    for i in range(5):
        api.drivers.drivers[f"d{i}"] = driver_pb2.Driver(name=f"d{i}")
    api.drivers.drivers["d0"].workers.add(name="w")
    request = driver_service_pb2.ListDriversRequest(page_size=2)
    seen: list[str] = []
    while True:
        page = await api.driver_calls.ListDrivers(request)
        seen += [driver.name for driver in page.drivers]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert seen == ["d0", "d1", "d2", "d3", "d4"]
    busy = await refused(api.driver_calls.DeleteDriver(driver_service_pb2.DeleteDriverRequest(name="d0")))
    assert busy.kind == ("FAILED_PRECONDITION", "IN_USE")
    deleted = await api.driver_calls.DeleteDriver(driver_service_pb2.DeleteDriverRequest(name="d1"))
    assert deleted.driver.name == "d1"
    got = await api.driver_calls.GetDriver(driver_service_pb2.GetDriverRequest(name="d2"))
    assert got.driver.name == "d2"

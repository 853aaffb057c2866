"""Streams over HTTP: runs and logs as they come, and nothing that stays when a reader leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from conveyor.sdk import Job
from tests.support.behaviour import Hold
from tests.support.belt import Belt, step
from tests.support.http import Http, begin, http_url, much_news
from tests.support.metrics import scrape
from tests.support.wait import until

EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
async def http(belt: Belt) -> AsyncIterator[Http]:
    async with Http(http_url(belt.site.server), belt.namespace) as client:
        yield client


async def events(answer: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """The events of a stream, by their fields."""
    event: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            yield event
            event = {}


def run_states(messages: list[dict[str, Any]]) -> list[str]:
    """The states of the run in the order in which a watch shows them."""
    found = [message["snapshot"]["runs"][0]["state"] for message in messages if "snapshot" in message]
    return found + [
        change["run"]["state"] for message in messages for change in message.get("changes", {}).get("changes", ())
    ]


async def watchers(belt: Belt) -> int:
    """How many watches the server has open."""
    return int((await asyncio.to_thread(scrape, belt.site.server))["conveyor_watchers"])


async def until_watched(belt: Belt, count: int) -> None:
    async def there() -> bool:
        return await watchers(belt) == count

    await until(there, f"{count} watches")


@pytest.mark.parametrize("site", ["sqlite", "etcd"], indirect=True)
async def test_a_run_live_as_lines(belt: Belt, http: Http) -> None:
    hold = Hold()
    belt.drive("a", hold)
    await belt.pipeline(step("a"))
    run = await belt.start()
    messages = []
    async with asyncio.timeout(60), http.stream("RunService/WatchRun", {"id": run.id}) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
        assert answer.headers["x-accel-buffering"] == "no"
        async for line in answer.aiter_lines():
            messages.append(json.loads(line))
            hold.released.set()
    assert run_states(messages)[-1] == "RUN_STATE_SUCCEEDED"
    assert messages[1]["snapshotEnd"] == {}
    assert messages[-1]["cursor"]


async def test_a_run_live_as_events_and_again_from_where_it_broke(belt: Belt, http: Http) -> None:
    hold = Hold()
    belt.drive("a", hold)
    await belt.pipeline(step("a"))
    run = await belt.start()
    await belt.until_step(run, "a", "RUNNING")
    query = {"message": json.dumps({"namespace": belt.namespace, "id": run.id})}
    path = "/conveyor.v1.RunService/WatchRun"
    last = ""
    async with asyncio.timeout(60), http.client.stream("GET", path, params=query, headers=EVENTS) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for event in events(answer):
            if last := event.get("id", ""):
                break
    hold.released.set()
    await belt.ended(run)
    again = {**EVENTS, "Last-Event-ID": last}
    async with asyncio.timeout(60), http.client.stream("GET", path, params=query, headers=again) as answer:
        found = [event async for event in events(answer)]
    assert found.pop() == {"event": "end", "data": "{}"}
    messages = [json.loads(event["data"]) for event in found]
    assert all("snapshot" not in message for message in messages)
    assert run_states(messages)[-1] == "RUN_STATE_SUCCEEDED"


async def test_an_error_before_the_first_event_has_its_status(http: Http) -> None:
    for headers in (EVENTS, {}):
        async with http.stream("RunService/WatchRun", {"id": "x"}, **headers) as answer:
            assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
            assert json.loads(await answer.aread())["code"] == "invalid_argument"


async def test_logs_are_followed_to_the_end_of_the_run(belt: Belt, http: Http) -> None:
    go_on = asyncio.Event()

    async def writes(job: Job) -> None:
        job.log("one")
        await go_on.wait()
        job.log("two")

    belt.drive("a", writes)
    await belt.pipeline(step("a"))
    run = await belt.start()
    lines = []
    async with asyncio.timeout(60), http.stream("LogService/ReadLogs", {"run": run.id, "follow": True}) as answer:
        async for line in answer.aiter_lines():
            lines += [each["text"] for each in json.loads(line)["lines"]] if line else []
            go_on.set()
    assert lines == ["one", "two"]


async def test_a_stream_without_news_begins_and_stays_alive(belt: Belt, http: Http) -> None:
    """The headers come though nothing happens; so do lines that mean nothing, before a proxy loses patience."""
    await belt.pipeline(step("a", "nobody"))
    run = await belt.start()
    request = {"run": run.id, "follow": True}
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        plain = await stack.enter_async_context(http.stream("LogService/ReadLogs", request))
        marked = await stack.enter_async_context(http.stream("LogService/ReadLogs", request, **EVENTS))
        assert (plain.status_code, marked.status_code) == (200, 200)
        assert await anext(plain.aiter_raw()) == b"\n"
        assert await anext(marked.aiter_raw()) == b":\n\n"


@pytest.mark.parametrize("headers", [{}, EVENTS])
async def test_a_stream_that_is_out_of_time(belt: Belt, http: Http, headers: dict[str, str]) -> None:
    limited = {**headers, "Connect-Timeout-Ms": "500"}
    async with asyncio.timeout(60), http.stream("RunService/WatchRuns", {}, **limited) as answer:
        lines = (await answer.aread()).decode().strip().splitlines()
    assert answer.status_code == 200
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    await until_watched(belt, 0)


async def test_readers_that_leave_leave_nothing_behind(belt: Belt) -> None:
    files = Path(f"/proc/{belt.site.server.pid}/fd")

    def descriptors() -> int:
        return len(list(files.iterdir()))

    url = http_url(belt.site.server)
    await belt.pipeline(step("a", "nobody"))
    run = await belt.start()
    await until_watched(belt, 0)
    before = descriptors()
    for round_ in range(3):
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(Http(url, belt.namespace, limits=httpx.Limits(max_connections=None)))
            for number in range(100):
                method, request = (
                    ("RunService/WatchRun", {"id": run.id}) if number % 2 else ("RunService/WatchRuns", {})
                )
                headers = EVENTS if number % 3 else {}
                answer = await stack.enter_async_context(http.stream(method, request, **headers))
                assert answer.status_code == 200, round_
            await until_watched(belt, 100)
        await until_watched(belt, 0)
        await until(lambda: descriptors() <= before, "the connections to be closed")


async def test_a_reader_that_stops_reading_gets_the_newest_state_later(belt: Belt) -> None:
    """What it did not take does not pile up; every run's end is seen, with what was skipped told."""
    url = http_url(belt.site.server)
    reader = await asyncio.to_thread(begin, url, "RunService/WatchRuns", {"namespace": belt.namespace})
    await until_watched(belt, 1)
    open_runs, skipped = await much_news(belt), 0
    stream = asyncio.StreamReader(limit=1 << 26)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(lambda: asyncio.StreamReaderProtocol(stream), reader)
    assert (await stream.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(60):
        while open_runs:
            size = int(await stream.readline(), 16)
            chunk = await stream.readexactly(size)
            await stream.readline()
            if not chunk.strip():
                continue
            for change in json.loads(chunk).get("changes", {}).get("changes", ()):
                skipped += int(change.get("skipped", 0))
                if change["run"]["state"] == "RUN_STATE_SUCCEEDED":
                    open_runs.discard(change["run"]["id"])
    assert skipped > 0
    transport.close()
    await until_watched(belt, 0)

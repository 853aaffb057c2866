"""The API over HTTP: one call, one answer, and how calls are refused."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from google.rpc import error_details_pb2

from conveyor.core.limits import MESSAGE_BYTES
from tests.support.behaviour import ok
from tests.support.belt import Belt, Site, step
from tests.support.http import Http, http_url
from tests.support.metrics import scrape
from tests.support.raw_worker import RawWorker

UNKNOWN = "01a00000-0000-7000-8000-000000000000"


@pytest.fixture
async def http(belt: Belt) -> AsyncIterator[Http]:
    async with Http(http_url(belt.site.server), belt.namespace) as client:
        yield client


@pytest.mark.parametrize("site", ["sqlite", "etcd"], indirect=True)
async def test_a_run_is_started_and_shown(belt: Belt, http: Http) -> None:
    belt.drive("build", ok)
    await belt.pipeline(step("build"))
    resource = {"name": "shop", "definition": "app", "pipeline": "release", "spec": {"size": 3, "ratio": 0.5}}
    run = (await http.call("ResourceService/CreateResource", resource=resource))["run"]["id"]
    await belt.ended(run)
    got = (await http.call("RunService/GetRun", id=run))["run"]
    assert (got["id"], got["state"], got["steps"][0]["step"]) == (run, "RUN_STATE_SUCCEEDED", "build")
    shown = (await http.call("ResourceService/GetResource", definition="app", name="shop"))["resource"]
    assert (shown["spec"], shown["generation"]) == ({"size": 3, "ratio": 0.5}, "1")


async def test_numbers_come_back_as_they_went(belt: Belt, http: Http) -> None:
    await belt.pipeline(step("a"))
    spec = '{"big":9007199254740992,"deep":[1,{"n":-2}],"half":0.5,"huge":1e+300,"minus":-0.0,"one":1}'
    body = f'{{"namespace": "{belt.namespace}", "resource": {{"name": "x", "definition": "app", "spec": {spec}}}}}'
    answer = await http.post("ResourceService/CreateResource", body)
    assert json.dumps(answer.json()["resource"]["spec"], sort_keys=True, separators=(",", ":")) == spec


async def test_reads_also_take_get(belt: Belt, http: Http) -> None:
    await belt.pipeline(step("a"))
    message = json.dumps({"namespace": belt.namespace, "name": "release"})
    path = "/conveyor.v1.PipelineService/GetPipeline"
    got = await http.client.get(path, params={"message": message})
    assert (got.status_code, got.json()["pipeline"]["name"]) == (200, "release")
    assert (await http.client.get(path)).json()["message"].startswith("the body is empty")
    written = await http.client.get("/conveyor.v1.PipelineService/DeletePipeline", params={"message": message})
    assert (written.status_code, written.headers["allow"], written.json()["code"]) == (405, "POST", "unimplemented")


async def test_a_result_by_webhook(belt: Belt, http: Http) -> None:
    """What a driver began, another program ends, with lines of its own before."""
    await belt.pipeline(step("a", "by-hand"))
    run = await belt.start()
    async with RawWorker(belt.address, belt.namespace, "by-hand") as worker:
        given = await worker.assignments.get()
        lines = [{"run": run.id, "step": "a", "attempt": 1, "seq": 1, "text": "hello"}]
        assert (await http.call("LogService/WriteLogs", lines=lines))["logAcks"][0]["nextSeq"] == "2"
        result = {"outcome": "OUTCOME_SUCCEEDED", "data": {"n": 1}}
        place = {"run": run.id, "step": "a", "attempt": 1, "driver": "by-hand"}
        reports = [
            {"namespace": belt.namespace, "results": [{**place, "token": "wrong", "result": result}]},
            {"namespace": belt.namespace, "results": [{**place, "token": given.token, "result": result}]},
        ]
        answer = await http.post(
            "WorkerService/ReportResults", "\n".join(map(json.dumps, reports)), Content_Type="application/x-ndjson"
        )
    assert answer.headers["content-type"] == "application/x-ndjson"
    acks = [json.loads(line)["acks"][0]["disposition"] for line in answer.text.splitlines()]
    assert acks == ["DISPOSITION_STALE_ATTEMPT", "DISPOSITION_ACCEPTED"]
    assert (await http.call("RunService/GetRun", id=run.id))["run"]["steps"][0]["result"] == result
    assert await belt.lines(run) == ["hello"]


async def test_a_webhook_that_breaks_off(belt: Belt, http: Http) -> None:
    """What came before the mistake counts."""
    report = json.dumps({"results": [{"run": UNKNOWN, "step": "a", "attempt": 1}]})
    answer = await http.post("WorkerService/ReportResults", report + '\n{"result": []}')
    first, last = map(json.loads, answer.text.splitlines())
    assert (answer.status_code, first["acks"][0]["disposition"]) == (200, "DISPOSITION_INVALID")
    assert (last["error"]["code"], last["error"]["message"]) == (
        "invalid_argument",
        "result: ReportResultsRequest has no such field",
    )


async def test_an_error_has_its_status_reason_and_details(http: Http) -> None:
    answer = await http.post("RunService/GetRun", {"id": UNKNOWN})
    error = answer.json()
    assert (answer.status_code, error["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/json"
    (detail,) = error["details"]
    assert (detail["type"], detail["debug"]) == (
        "google.rpc.ErrorInfo",
        {"reason": "NOT_FOUND", "domain": "conveyor"},
    )
    value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
    assert error_details_pb2.ErrorInfo.FromString(value).reason == "NOT_FOUND"


async def test_each_field_at_fault_is_named(http: Http) -> None:
    answer = await http.post("PipelineService/CreatePipeline", {"pipeline": {"name": "A", "steps": [{"id": ""}]}})
    info, bad = answer.json()["details"]
    assert (answer.status_code, info["debug"]["reason"], bad["type"]) == (400, "INVALID_FIELD", "google.rpc.BadRequest")
    fields = [each["field"] for each in bad["debug"]["fieldViolations"]]
    assert {"pipeline.name", "pipeline.steps[0].id"} <= set(fields)


@pytest.mark.parametrize(
    ("method", "body", "status", "code", "text"),
    [
        ("RunService/GetRun", "id", 400, "invalid_argument", "the body is no JSON"),
        ("RunService/GetRun", "", 400, "invalid_argument", "the body is empty"),
        ("RunService/GetRun", b"\xff\xfe{\0}\0", 400, "invalid_argument", "not UTF-8"),
        ("RunService/GetRun", '{"di": "x"}', 400, "invalid_argument", "di: GetRunRequest has no such field"),
        ("RunService/WatchRun", '{"di": "x"}', 400, "invalid_argument", "di: WatchRunRequest has no such field"),
        ("RunService/WatchRun", f'{{"id": "{UNKNOWN}"}}', 404, "not_found", "there is no run"),
        ("LogService/WriteLogs", "{}{", 400, "invalid_argument", "the body is no JSON"),
        ("WorkerService/ReportResults", "[]", 400, "invalid_argument", "must be an object, not a list"),
        ("WorkerService/Work", "{}", 501, "unimplemented", "use gRPC"),
        ("RunService/NoSuchCall", "{}", 404, "unimplemented", "this server has no"),
        ("NoService/GetRun", "{}", 404, "unimplemented", "this server has no"),
    ],
)
async def test_bad_bodies_and_paths(
    http: Http, method: str, body: str | bytes, status: int, code: str, text: str
) -> None:
    found = await http.refused(method, body)
    assert found[:2] == (status, code)
    assert text in found[2]


@pytest.mark.parametrize(
    ("headers", "status", "code", "text"),
    [
        ({"Content-Type": "text/plain"}, 415, "invalid_argument", "Content-Type: application/json"),
        ({"Content-Type": "application/x-ndjson"}, 415, "invalid_argument", "Content-Type: application/json"),
        ({"Content-Type": "application/json; charset=latin1"}, 415, "invalid_argument", "latin1"),
        ({"Content-Encoding": "gzip"}, 501, "unimplemented", "gzip"),
        ({"Connect-Protocol-Version": "2"}, 400, "invalid_argument", "must be 1, not 2"),
        ({"Connect-Timeout-Ms": "soon"}, 400, "invalid_argument", "not soon"),
        ({"Connect-Timeout-Ms": "12345678901"}, 400, "invalid_argument", "at most 10 digits"),
        ({"Connect-Timeout-Ms": "0"}, 504, "deadline_exceeded", "Connect-Timeout-Ms"),
    ],
)
async def test_bad_headers(http: Http, headers: dict[str, str], status: int, code: str, text: str) -> None:
    found = await http.refused("RunService/ListRuns", {}, **headers)
    assert found[:2] == (status, code)
    assert text in found[2]


async def test_headers_that_are_fine(http: Http) -> None:
    for headers in (
        {"Content-Type": "application/json; charset=UTF-8"},
        {"Connect-Protocol-Version": "1", "Connect-Timeout-Ms": "60000", "Content-Encoding": "identity"},
    ):
        assert (await http.post("RunService/ListRuns", {}, **headers)).status_code == 200


async def test_a_spec_arrives_as_it_is_or_not_at_all(belt: Belt, http: Http) -> None:
    await belt.pipeline(step("a"))
    body = {"resource": {"name": "x", "definition": "app", "spec": {"a": [2**53 + 1]}}, "validateOnly": True}
    status, code, message = await http.refused("ResourceService/CreateResource", body)
    assert (status, code) == (400, "invalid_argument")
    assert message == "resource.spec/a/0: the integer does not fit a double; send it as a string"


async def test_bodies_up_to_the_limit(belt: Belt, http: Http) -> None:
    room = MESSAGE_BYTES - len(json.dumps({"namespace": belt.namespace, "pageToken": ""}))
    status, code, message = await http.refused("RunService/ListRuns", {"pageToken": "x" * room})
    assert (status, code) == (400, "invalid_argument")
    assert "page" in message
    answer = await http.post("RunService/ListRuns", {"pageToken": "x" * (room + 1)})
    assert (answer.status_code, answer.json()["details"][0]["debug"]["reason"]) == (413, "TOO_LARGE")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536

    # Somewhere the connection ends, maybe before the answer is read.
    for method, status in (("RunService/ListRuns", 413), ("RunService/NoSuchCall", 404)):
        request: dict[str, Any] = {"headers": {"Content-Type": "application/json"}, "content": endless()}
        with suppress(httpx.TransportError):
            answer = await http.client.post(f"/conveyor.v1.{method}", **request)
            assert answer.status_code == status
    assert (await http.post("RunService/ListRuns", {})).status_code == 200


async def test_large_answers(belt: Belt, http: Http) -> None:
    """They are written in a thread."""
    await belt.pipeline(step("a"), context={"text": "x" * 400_000})
    got = await http.call("PipelineService/GetPipeline", name="release")
    assert got["pipeline"]["context"] == {"text": "x" * 400_000}


async def test_many_at_a_time(http: Http) -> None:
    answers = await asyncio.gather(*(http.post("RunService/ListRuns", {}) for _ in range(100)))
    assert {each.status_code for each in answers} == {200}


async def test_calls_are_counted_with_those_by_grpc(sqlite_site: Site, http: Http) -> None:
    def counted(code: str) -> float:
        labels = f'code="{code}",method="conveyor.v1.DriverService/GetDriver"'
        return scrape(sqlite_site.server).get(f"conveyor_call_seconds_count{{{labels}}}", 0)

    before = await asyncio.to_thread(counted, "NOT_FOUND"), await asyncio.to_thread(counted, "INVALID_ARGUMENT")
    await http.refused("DriverService/GetDriver", {"name": "nobody"})
    await http.refused("DriverService/GetDriver", "{")
    after = await asyncio.to_thread(counted, "NOT_FOUND"), await asyncio.to_thread(counted, "INVALID_ARGUMENT")
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)

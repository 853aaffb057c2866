"""The JSON of tickets, results and log lines, ours and that of older servers."""

import json

import pytest

from conveyor.sdk import from_struct, to_struct
from conveyor.sdk import jetstream_wire as wire
from conveyor.v1.log_pb2 import LogLine, LogStream
from conveyor.v1.result_pb2 import DriverResult, Outcome
from conveyor.v1.run_pb2 import RunState, StepState

OLDER_ANSWER = {"success": True, "message": "ok", "data": {"n": 1}, "driver": "d1"}
OLDER = {
    "id": "43edf57489ae487022557b54",
    "event": "process",
    "payload": json.dumps(
        {
            "id": "edc235dc-b6cd-44ea-bee6-365a939ee517",
            "name": "run1",
            "pipeline": "p3",
            "resource": "load",
            "metadata": {"driverresults.d1": json.dumps(OLDER_ANSWER), "version": "1"},
            "spec": {"x": "a", "n": 3},
        }
    ),
    "run_id": "75127536-1a4b-4592-92a2-5f9d073e69dd",
}
METADATA = {
    "version": "4",
    "registry": "r.example",
    "conveyor.namespace": "team",
    "conveyor.step": "build",
    "conveyor.attempt": "2",
    "conveyor.token": "t-1",
    "conveyor.driver": "compile",
    "conveyor.pipeline": "release",
    "conveyor.deadline": "2026-11-25T00:42:13.5Z",
    "conveyor.max_attempts": "3",
    "conveyor.run_state": "FAILED",
    "conveyor.context": '{"registry":"r.example"}',
    "conveyor.results": '{"clone":{"state":"SUCCEEDED","driver":"git","message":"ok","data":{"commit":"abc"}}}',
    "conveyor.params": '{"fast":true}',
    "conveyor.labels": '{"tier":"1"}',
}


def ticket(metadata=METADATA, spec='{"size":3}', run="r1"):
    payload = json.dumps({"id": "u1", "name": "shop", "pipeline": "release", "resource": "app", "metadata": metadata})
    payload = payload[:-1] + f', "spec": {spec}}}'
    body = json.dumps({"id": "x", "event": "create", "payload": payload, "run_id": run})
    return wire.decode_ticket(body.encode(), "team", "compile")


def test_a_ticket_of_an_older_server():
    got = wire.decode_ticket(json.dumps(OLDER).encode(), "default", "d2")
    assignment = got.assignment
    assert not got.problem
    assert (assignment.run, assignment.step, assignment.attempt, assignment.token) == (OLDER["run_id"], "", 0, "")
    assert (assignment.pipeline, assignment.resource.name, assignment.resource.definition) == ("p3", "run1", "load")
    assert assignment.resource.generation == 1
    assert from_struct(assignment.resource.spec) == {"x": "a", "n": 3}
    earlier = assignment.results["d1"]
    assert (earlier.state, earlier.driver, earlier.message) == (StepState.STEP_STATE_SUCCEEDED, "d1", "ok")
    assert from_struct(earlier.data) == {"n": 1}


def test_the_answer_to_an_older_server_has_its_form():
    got = wire.decode_ticket(json.dumps(OLDER).encode(), "default", "d2")
    result = DriverResult(outcome=Outcome.OUTCOME_SUCCEEDED, message="ok", data=to_struct({"n": 1}))
    assert json.loads(wire.encode_result(got, result)) == {
        "event": "driver.result",
        "run_id": OLDER["run_id"],
        "driverresult": {"success": True, "message": "ok", "data": {"n": 1}, "driver": "d2"},
        "resource": json.loads(OLDER["payload"]),
    }


def test_a_ticket_of_this_server():
    assignment = ticket().assignment
    assert (assignment.namespace, assignment.run, assignment.step, assignment.attempt) == ("team", "r1", "build", 2)
    assert (assignment.token, assignment.driver, assignment.max_attempts) == ("t-1", "compile", 3)
    assert assignment.run_state == RunState.RUN_STATE_FAILED
    assert assignment.deadline.ToJsonString() == "2026-11-25T00:42:13.500Z"
    assert from_struct(assignment.context) == {"registry": "r.example"}
    assert from_struct(assignment.params) == {"fast": True}
    assert assignment.resource.labels == {"tier": "1"}
    assert from_struct(assignment.results["clone"].data) == {"commit": "abc"}


def test_its_answer_carries_what_fences_it_and_nothing_large():
    failed = DriverResult(outcome=Outcome.OUTCOME_FAILED, message="no", retryable=False)
    body = json.loads(wire.encode_result(ticket(), failed))
    assert body["driverresult"] == {
        "success": False,
        "message": "no",
        "data": None,
        "driver": "compile",
        "retryable": False,
    }
    assert body["resource"] == {
        "id": "u1",
        "name": "shop",
        "pipeline": "release",
        "resource": "app",
        "metadata": {
            "version": "4",
            "conveyor.namespace": "team",
            "conveyor.step": "build",
            "conveyor.attempt": "2",
            "conveyor.token": "t-1",
            "conveyor.driver": "compile",
        },
    }


def test_a_cancelled_job_says_so():
    body = json.loads(wire.encode_result(ticket(), DriverResult(outcome=Outcome.OUTCOME_CANCELLED)))
    assert (body["driverresult"]["outcome"], body["driverresult"]["success"]) == ("CANCELLED", False)


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"{}", b'{"run_id":"r1"}', b'{"run_id":3,"payload":"{}"}'])
def test_what_is_no_ticket_is_malformed(body):
    with pytest.raises(wire.Malformed):
        wire.decode_ticket(body, "default", "d1")


@pytest.mark.parametrize(
    ("metadata", "spec", "text"),
    [
        ({}, '{"id": 9007199254740993}', "$.id"),
        ({"conveyor.context": "{"}, "{}", "not JSON"),
        ({"conveyor.context": "[]"}, "{}", "not a JSON object"),
        ({"conveyor.deadline": "soon"}, "{}", "deadline"),
        ({}, "[]", "spec is not an object"),
    ],
)
def test_what_cannot_be_read_can_still_be_answered(metadata, spec, text):
    got = ticket(METADATA | metadata, spec)
    assert text in got.problem
    assert (got.assignment.run, got.assignment.step, got.assignment.token) == ("r1", "build", "t-1")


def test_states_of_a_later_server_are_unspecified():
    got = ticket(METADATA | {"conveyor.run_state": "PAUSED", "conveyor.results": '{"a":{"state":"PARKED","data":{}}}'})
    assert not got.problem
    assert got.assignment.run_state == RunState.RUN_STATE_UNSPECIFIED
    assert got.assignment.results["a"].state == StepState.STEP_STATE_UNSPECIFIED


def test_broken_metadata_counts_as_none():
    got = ticket(metadata=["x"])
    assert not got.problem
    assert got.assignment.attempt == 0


def test_log_lines():
    line = LogLine(run="r1", step="build", attempt=2, seq=5, text="ü", stream=LogStream.LOG_STREAM_STDERR, partial=True)
    line.time.FromJsonString("2026-11-25T00:42:13.123456789Z")
    assert json.loads(wire.encode_lines([line], "compile", "release", after=40))[0]["seq"] == line.seq + 40
    assert json.loads(wire.encode_lines([line], "compile", "release")) == [
        {
            "driver": "compile",
            "message": "ü",
            "pipeline": "release",
            "runid": "r1",
            "timestamp": "1795567333",
            "step": "build",
            "attempt": 2,
            "seq": 5,
            "stream": "stderr",
            "time": "2026-11-25T00:42:13.123456789Z",
            "partial": True,
        }
    ]


@pytest.mark.parametrize(
    ("body", "grace"),
    [({"grace": 30}, 30.0), ({"grace": "1.5s"}, 1.5), ({"grace": "x"}, None), ({}, None)],
)
def test_cancellations(body, grace):
    said = {"attempt": 2, "token": "t-1", "message": "enough"} | body
    notice = wire.decode_cancel("ns.team.cancel.r1.build", json.dumps(said).encode())
    assert notice == ("r1", "build", 2, "t-1", "enough", grace)


def test_subjects():
    assert wire.filters("default", "d1", ["load"]) == ["resources.load", "drivers.d1.resources.load"]
    assert wire.filters("team", "d1", []) == ["ns.team.drivers.d1.resources.*"]
    assert (wire.consumer("default", "d1"), wire.consumer("team", "d1")) == ("d1", "team_d1")
    assert wire.log_subject("team", "r1", "build") == "ns.team.logs.r1.build"
    assert wire.log_subject("default", "r1", "") == "logs.r1"
    assert wire.result_subject("team") == "ns.team.pipelines.driver.result"
    assert wire.cancel_filter("default") == "cancel.*.*"


@pytest.mark.parametrize(
    ("body", "last"),
    [
        (
            '[{"attempt": 2, "seq": 7}, {"attempt": 2, "seq": 9}, {"attempt": 2, "seq": 8}, {"attempt": 3, "seq": 10}]',
            9,
        ),
        ('{"attempt": "2", "seq": "7"}', 7),
        ('[{"attempt": 1, "seq": 7}]', 0),
        ('{"message": "of an older driver"}', 0),
        ('[{"attempt": 2, "seq": -1}, {"attempt": 2, "seq": []}, 3, null]', 0),
        ("no JSON", 0),
        ("", 0),
    ],
)
def test_the_last_line_of_an_attempt_in_a_message(body, last):
    assert wire.last_seq(body.encode(), 2) == last

"""The bodies that engine and drivers exchange, against what older servers and drivers really said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conveyor.bus import wire
from conveyor.bus.errors import Undecodable
from conveyor.bus.events import ResultArrived, RunCreated
from conveyor.bus.values import from_struct, to_struct
from conveyor.v1 import resource_pb2, result_pb2, run_pb2, worker_pb2
from tests.support.vectors import vectors

RESULT = "pipelines.driver.result"
RUN = "0193f3a0-0000-7000-8000-000000000001"

TICKETS = [v for v in vectors("js-publish") if v["subject"].startswith(("drivers.", "resources."))]


def assignment_of(vector: dict[str, Any]) -> worker_pb2.Assignment:
    """The assignment for which an older server would have sent this ticket."""
    payload = json.loads(vector["body"]["payload"])
    assignment = worker_pb2.Assignment(
        run=vector["body"]["run_id"],
        pipeline=payload.get("pipeline", ""),
        resource=resource_pb2.Resource(
            uid=payload["id"],
            name=payload["name"],
            definition=payload["resource"],
            generation=int(payload["metadata"]["version"]),
            spec=to_struct(payload["spec"]),
        ),
    )
    for key, value in payload["metadata"].items():
        if key.startswith("driverresults."):
            answer = json.loads(value)
            state = run_pb2.STEP_STATE_SUCCEEDED if answer["success"] else run_pb2.STEP_STATE_FAILED
            assignment.results["step-of-" + answer["driver"]].CopyFrom(
                worker_pb2.StepResult(
                    state=state, driver=answer["driver"], message=answer["message"], data=to_struct(answer["data"])
                )
            )
    return assignment


def metadata_of(body: bytes) -> dict[str, str]:
    metadata: dict[str, str] = json.loads(json.loads(body)["payload"])["metadata"]
    assert all(isinstance(value, str) for value in metadata.values())
    return metadata


def result(answer: object, **metadata: object) -> ResultArrived:
    body = {"run_id": RUN, "event": "driver.result", "driverresult": answer, "resource": {"metadata": metadata}}
    return wire.decode_result(RESULT, json.dumps(body).encode())


@pytest.mark.parametrize("vector", TICKETS, ids=lambda v: f"{v['during'][:20]}-{v['subject']}")
def test_a_ticket_is_what_older_drivers_are_used_to(vector: dict[str, Any]) -> None:
    body = json.loads(wire.encode_ticket(assignment_of(vector), first=vector["body"]["event"] == "create"))
    payload = json.loads(body["payload"])
    payload["metadata"] = {k: v for k, v in payload["metadata"].items() if not k.startswith("conveyor.")}
    assert payload == json.loads(vector["body"]["payload"])
    assert body.keys() == vector["body"].keys()
    assert (body["run_id"], body["event"]) == (vector["body"]["run_id"], vector["body"]["event"])


@pytest.mark.parametrize("vector", vectors("js-publish", RESULT), ids=lambda v: v["body"]["driverresult"]["driver"])
def test_a_result_of_an_older_driver_is_read(vector: dict[str, Any]) -> None:
    event = wire.decode(RESULT, json.dumps(vector["body"]).encode())
    answer = vector["body"]["driverresult"]
    assert isinstance(event, ResultArrived)
    assert event == ResultArrived(
        "default", vector["body"]["run_id"], "", 0, "", answer["driver"], event.result, invalid=""
    )
    assert event.result is not None
    expected = result_pb2.OUTCOME_SUCCEEDED if answer["success"] else result_pb2.OUTCOME_FAILED
    assert (event.result.outcome, event.result.message) == (expected, answer["message"])
    assert from_struct(event.result.data) == answer["data"]
    assert not event.result.HasField("retryable")


@pytest.mark.parametrize("vector", vectors("js-publish", "pipelines.pipeline.init"), ids=lambda v: v["during"])
def test_what_an_older_server_told_itself_is_nothing_to_us(vector: dict[str, Any]) -> None:
    assert wire.decode(vector["subject"], json.dumps(vector["body"]).encode()) is None


def full_assignment() -> worker_pb2.Assignment:
    assignment = worker_pb2.Assignment(
        namespace="team-a",
        run=RUN,
        step="deploy",
        attempt=2,
        token="secret-token",
        driver="kube",
        pipeline="release",
        resource=resource_pb2.Resource(
            uid="u", name="web", definition="app", generation=7, labels={"tier": "1"}, spec=to_struct({"n": 3})
        ),
        context=to_struct(
            {"region": "eu", "size": 3, "nested": {"a": [1, 2.5]}, "version": "no", "conveyor.step": "x"}
        ),
        params=to_struct({"dry": True}),
        max_attempts=4,
        run_state=run_pb2.RUN_STATE_FAILED,
    )
    assignment.deadline.FromJsonString("2026-11-25T10:00:00.5Z")
    for step, state, n in (("b", run_pb2.STEP_STATE_FAILED, 2), ("a", run_pb2.STEP_STATE_SUCCEEDED, 1)):
        assignment.results[step].CopyFrom(
            worker_pb2.StepResult(state=state, driver="make", message=f"m{n}", data=to_struct({"n": n}))
        )
    assignment.results["ask"].CopyFrom(worker_pb2.StepResult(state=run_pb2.STEP_STATE_SUCCEEDED, message="approved"))
    return assignment


def test_a_ticket_says_all_that_an_assignment_says() -> None:
    body = wire.encode_ticket(full_assignment(), first=False, steps=["b", "a", "deploy"])
    metadata = metadata_of(body)
    assert json.loads(body)["event"] == "process"
    assert metadata == metadata | {
        "version": "7",
        "region": "eu",
        "size": "3",
        "nested": '{"a":[1,2.5]}',
        # Of two steps with this driver, the later one of the pipeline.
        "driverresults.make": '{"success":true,"message":"m1","data":{"n":1},"driver":"make"}',
        "conveyor.namespace": "team-a",
        "conveyor.step": "deploy",
        "conveyor.attempt": "2",
        "conveyor.token": "secret-token",
        "conveyor.driver": "kube",
        "conveyor.pipeline": "release",
        "conveyor.deadline": "2026-11-25T10:00:00.500Z",
        "conveyor.max_attempts": "4",
        "conveyor.run_state": "FAILED",
    }
    assert json.loads(metadata["conveyor.context"])["version"] == "no"
    assert json.loads(metadata["conveyor.params"]) == {"dry": True}
    assert json.loads(metadata["conveyor.labels"]) == {"tier": "1"}
    assert json.loads(metadata["conveyor.results"]) == {
        "a": {"state": "SUCCEEDED", "driver": "make", "message": "m1", "data": {"n": 1}},
        "b": {"state": "FAILED", "driver": "make", "message": "m2", "data": {"n": 2}},
        "ask": {"state": "SUCCEEDED", "driver": "", "message": "approved", "data": None},
    }
    # A gate has no driver that older ones could know it by.
    assert [key for key in metadata if key.startswith("driverresults.")] == ["driverresults.make"]


def test_the_same_assignment_is_the_same_message() -> None:
    assert wire.encode_ticket(full_assignment(), first=True) == wire.encode_ticket(full_assignment(), first=True)
    other = full_assignment()
    other.token = "another"
    ids = {json.loads(wire.encode_ticket(a, first=True))["id"] for a in (full_assignment(), other)}
    assert len(ids) == 2


def test_step_attempt_and_token_come_back_in_the_metadata() -> None:
    metadata = metadata_of(wire.encode_ticket(full_assignment(), first=True))
    body = {"run_id": RUN, "driverresult": {"success": True, "driver": ""}, "resource": {"metadata": metadata}}
    event = wire.decode_result("ns.team-a.pipelines.driver.result", json.dumps(body).encode())
    expected = ("team-a", RUN, "deploy", 2, "secret-token", "kube")
    assert (event.namespace, event.run, event.step, event.attempt, event.token, event.driver) == expected
    assert event.result == result_pb2.DriverResult(outcome=result_pb2.OUTCOME_SUCCEEDED)


def test_the_subject_says_the_namespace_whatever_the_metadata_say() -> None:
    assert result({"success": True}, **{"conveyor.namespace": "other"}).namespace == "default"


@pytest.mark.parametrize(
    ("answer", "outcome", "data"),
    [
        ({"success": True, "outcome": "CANCELLED"}, result_pb2.OUTCOME_CANCELLED, None),
        ({"success": False, "outcome": ""}, result_pb2.OUTCOME_FAILED, None),
        ({"outcome": "SUCCEEDED"}, result_pb2.OUTCOME_SUCCEEDED, None),
        ({"success": True, "data": 5}, result_pb2.OUTCOME_SUCCEEDED, {"value": 5}),
        ({"success": True, "data": [1, {"a": None}]}, result_pb2.OUTCOME_SUCCEEDED, {"value": [1, {"a": None}]}),
        ({"success": True, "data": {}}, result_pb2.OUTCOME_SUCCEEDED, {}),
        ({"success": True, "data": {"e": {}, "l": []}}, result_pb2.OUTCOME_SUCCEEDED, {"e": {}, "l": []}),
        (
            {"success": True, "data": {"n": 2**53, "m": -(2**60)}},
            result_pb2.OUTCOME_SUCCEEDED,
            {"n": 2**53, "m": -(2**60)},
        ),
    ],
)
def test_a_result_is_read_as_it_is_meant(
    answer: object, outcome: result_pb2.Outcome.ValueType, data: dict[str, Any] | None
) -> None:
    event = result(answer)
    assert event.invalid == ""
    assert event.result is not None
    assert event.result.outcome == outcome
    assert (from_struct(event.result.data) if event.result.HasField("data") else None) == data


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"d": value}
    return value


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "driverresult is missing"),
        ([], "driverresult is missing or no object"),
        ({}, "success is neither"),
        ({"success": "yes"}, "success is neither"),
        ({"success": 1}, "success is neither"),
        ({"success": True, "outcome": "DONE"}, "outcome is not"),
        ({"success": True, "retryable": "no"}, "retryable is neither"),
        ({"success": True, "data": {"a": [1, float("nan")]}}, "driverresult.data.a[1] is nan"),
        ({"success": True, "data": {"a": float("inf")}}, "driverresult.data.a is inf"),
        ({"success": True, "data": {"a": 2**53 + 1}}, "driverresult.data.a is an integer that a double cannot hold"),
        ({"success": True, "data": {"a": 10**400}}, "driverresult.data.a is an integer"),
        ({"success": True, "data": 2**63 - 1}, "driverresult.data.value is an integer"),
        ({"success": True, "data": deep(33)}, "deeper than 32 levels"),
    ],
)
def test_a_result_that_is_none_says_why_and_still_names_its_attempt(answer: object, reason: str) -> None:
    event = result(answer, **{"conveyor.step": "s", "conveyor.attempt": "3", "conveyor.token": "t"})
    assert event.result is None
    assert reason in event.invalid
    assert (event.run, event.step, event.attempt, event.token) == (RUN, "s", 3, "t")


def test_thirty_two_levels_survive_storage() -> None:
    event = result({"success": True, "data": deep(32)})
    assert event.result is not None
    report = result_pb2.ResultReport(result=event.result)
    assert from_struct(result_pb2.ResultReport.FromString(report.SerializeToString()).result.data) == deep(32)


def test_an_integer_of_thousands_of_digits_is_a_result_that_is_none() -> None:
    body = f'{{"run_id":"{RUN}","driverresult":{{"success":true,"data":{{"a":{"9" * 5000}}}}}}}'
    event = wire.decode_result(RESULT, body.encode())
    assert "driverresult.data.a is inf" in event.invalid


def test_lone_surrogates_do_not_break_a_result() -> None:
    body = (
        f'{{"run_id":"{RUN}","driverresult":{{"success":true,"message":"a\\ud800b","data":{{"\\udfff":"\\ud800"}}}}}}'
    )
    event = wire.decode_result(RESULT, body.encode())
    assert event.result is not None
    assert event.result.message == "a?b"
    assert from_struct(event.result.data) == {"?": "?"}


@pytest.mark.parametrize(
    "metadata",
    [
        {"conveyor.attempt": "-1"},
        {"conveyor.attempt": "9" * 30},
        {"conveyor.attempt": "99999999999"},
        {"conveyor.attempt": "²"},
        {"conveyor.attempt": True},
        {"conveyor.step": 7, "conveyor.token": ["x"]},
        {},
    ],
)
def test_nonsense_in_the_metadata_counts_as_nothing(metadata: dict[str, object]) -> None:
    event = result({"success": True, "driver": "d"}, **metadata)
    assert (event.step, event.attempt, event.token) == ("", 0, "")


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        (RESULT, b""),
        (RESULT, b"\xff\xfe\x00"),
        (RESULT, b"not json"),
        (RESULT, b"[]"),
        (RESULT, b"{}"),
        (RESULT, b'{"run_id":7,"driverresult":{"success":true}}'),
        (RESULT, b'{"run_id":"","driverresult":{"success":true}}'),
        (RESULT, b'{"run_id":"a/../b","driverresult":{"success":true}}'),
        (RESULT, b'{"run_id":"' + b"a" * 200 + b'"}'),
        (RESULT, b"[" * 200_000),
        ("pipelines.run.created", b'{"run":"x"}'),
        ("pipelines.nothing.known", b"{}"),
    ],
)
def test_what_names_no_run_is_undecodable(subject: str, body: bytes) -> None:
    with pytest.raises(Undecodable):
        wire.decode(subject, body)


def test_a_created_run_is_told_and_heard() -> None:
    body = wire.encode_run_created("", RUN)
    assert json.loads(body) == {"namespace": "default", "run_id": RUN}
    assert wire.decode("ns.team-a.pipelines.run.created", body) == RunCreated("team-a", RUN)


def test_a_cancel_is_what_the_driver_reads() -> None:
    assert json.loads(wire.encode_cancel(2, "t", "enough", 30.0)) == {
        "attempt": 2,
        "token": "t",
        "message": "enough",
        "grace": 30.0,
    }

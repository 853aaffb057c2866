"""What the kit that verifies drivers says over JetStream is what the server says."""

from __future__ import annotations

import json

import pytest

from conveyor.bus import streams, subjects, wire
from conveyor.bus.options import StreamSettings
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.run_pb2 import RunState
from conveyor.v1.worker_pb2 import Assignment
from conveyor.verify import tickets
from conveyor.verify.attempt import Attempt


def test_its_streams_are_the_servers() -> None:
    assert tuple(tickets.STREAMS) == streams.NAMES
    for name, config in streams.configs(StreamSettings()).items():
        mine = tickets.stream(name)
        assert {key: sorted(value) if key == "subjects" else value for key, value in mine.items()} == {
            key: sorted(config[key]) if key == "subjects" else config[key] for key in mine
        }


@pytest.mark.parametrize("namespace", ["default", "team"])
def test_its_tickets_are_the_servers(namespace: str) -> None:
    attempt = Attempt({"log": ["ä"], "seconds": 1})
    given = Assignment(
        namespace=namespace,
        run=attempt.run,
        step=attempt.step,
        attempt=attempt.number,
        token=attempt.token,
        driver="demo",
        pipeline="verify",
        resource=Resource(namespace=namespace, definition="app", name="verify", uid=attempt.run, generation=1),
        max_attempts=3,
        run_state=RunState.RUN_STATE_RUNNING,
    )
    given.resource.spec.update(dict(attempt.spec))
    given.timeout.FromSeconds(3600)
    theirs = json.loads(wire.encode_ticket(given, first=True))
    mine = json.loads(tickets.encode(tickets.ticket(attempt, namespace, "demo", "app")))
    assert mine.keys() == theirs.keys()
    assert mine["event"] == theirs["event"]
    assert json.loads(mine["payload"]) == json.loads(theirs["payload"])
    assert tickets.consumer(namespace, "demo") == subjects.consumer(namespace, "demo")
    assert tickets.prefix(namespace) == subjects.prefix(namespace)


def test_times_of_the_broker_are_whole_numbers() -> None:
    assert tickets.nanoseconds("1970-01-01T00:00:01Z") == 10**9
    assert tickets.nanoseconds("1970-01-01T00:00:01.5Z") == 15 * 10**8
    assert tickets.nanoseconds("2026-11-25T11:21:11.871041598Z") % 10**9 == 871041598

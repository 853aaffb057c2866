"""Log lines as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conveyor.bus.loglines import MAX_LINE_BYTES, StoredLine, decode_lines, encode_line, join, split_line
from conveyor.v1 import log_pb2
from tests.support.vectors import vectors

RUN = "0193f3a0-0000-7000-8000-000000000001"


def line(**fields: Any) -> log_pb2.LogLine:
    made = log_pb2.LogLine(
        **{"run": RUN, "step": "s", "attempt": 1, "seq": 1, "stream": log_pb2.LOG_STREAM_LOG, "driver": "d"} | fields
    )
    made.time.FromJsonString("2026-11-25T10:00:00.123456789Z")
    return made


@pytest.mark.parametrize("vector", vectors("js-publish", "logs."), ids=lambda v: v["body"]["message"])
def test_a_line_of_an_older_driver_is_read(vector: dict[str, Any]) -> None:
    (stored,) = decode_lines(vector["subject"], json.dumps(vector["body"]).encode())
    body = vector["body"]
    assert (stored.line.run, stored.line.driver, stored.line.text) == (body["runid"], body["driver"], body["message"])
    assert (stored.line.step, stored.line.attempt, stored.line.seq) == ("", 0, 0)
    assert stored.line.time.seconds == int(body["timestamp"])
    assert stored.line.stream == log_pb2.LOG_STREAM_LOG


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"text": "plain"},
        {"text": 'quotes " \\ and \x1b[31m \x00 \u2028 ünï 🚚', "stream": log_pb2.LOG_STREAM_STDERR},
        {"text": "a dot", "partial": True, "stream": log_pb2.LOG_STREAM_STDOUT, "seq": 2**63, "attempt": 2**32 - 1},
        {"lost": 12, "seq": 40},
    ],
)
def test_a_line_comes_back_as_it_was(fields: dict[str, Any]) -> None:
    given = line(**fields)
    body = join([encode_line(StoredLine(given), pipeline="p")])
    assert {"driver", "message", "pipeline", "runid", "timestamp"} <= json.loads(body).keys()
    assert decode_lines(f"logs.{RUN}.s", body) == [StoredLine(given)]


def test_many_lines_are_one_list() -> None:
    lines = [line(seq=n, text=str(n)) for n in range(1, 4)]
    body = join([encode_line(StoredLine(one)) for one in lines])
    assert [stored.line for stored in decode_lines(f"ns.a.logs.{RUN}.s", body)] == lines


def test_the_subject_says_run_and_step_whatever_the_body_says() -> None:
    body = json.dumps({"message": "x", "runid": "other", "step": "other"}).encode()
    (stored,) = decode_lines(f"logs.{RUN}.s", body)
    assert (stored.line.run, stored.line.step) == (RUN, "s")


@pytest.mark.parametrize("size", [MAX_LINE_BYTES, MAX_LINE_BYTES + 1, 1024 * 1024, 5 * 1024 * 1024])
@pytest.mark.parametrize("char", ["x", "ü", "🚚", "\x01"])
def test_a_long_line_is_split_between_characters_and_loses_nothing(size: int, char: str) -> None:
    text = char * (size // len(char.encode()))
    parts = split_line(line(text=text, seq=7))
    assert "".join(part.line.text for part in parts) == text
    assert [part.line.partial for part in parts] == [True] * (len(parts) - 1) + [False]
    assert {part.line.seq for part in parts} == {7}
    assert [part.part for part in parts] == list(range(len(parts)))
    for part in parts:
        encoded = encode_line(part)
        assert len(part.line.text.encode()) <= MAX_LINE_BYTES
        assert len(encoded.encode()) < 512 * 1024
        assert decode_lines(f"logs.{RUN}.s", encoded.encode()) == [part]


@pytest.mark.parametrize("body", [b"plain text", b"\xff\xfe", b"7", b'[1, {"message": "x"}]', b"", b"[" * 100_000])
def test_what_is_no_line_of_ours_is_shown_as_it_is(body: bytes) -> None:
    (stored,) = decode_lines(f"logs.{RUN}", body)
    assert stored.line.text == body.decode(errors="replace")


def test_strange_fields_count_as_absent() -> None:
    body = {"message": {"a": 1}, "seq": -3, "attempt": "x", "time": "yesterday", "timestamp": "12", "stream": 4}
    (stored,) = decode_lines(f"logs.{RUN}", json.dumps(body).encode())
    assert stored.line.text == '{"a":1}'
    assert (stored.line.seq, stored.line.attempt, stored.line.time.seconds) == (0, 0, 12)


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("1970-01-01T00:00:01Z", 1, 0),
        ("1970-01-01T00:00:01.5Z", 1, 500_000_000),
        ("1970-01-01T01:00:01.000000001+01:00", 1, 1),
        ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
        ("2026-11-25", 1795564800, 0),
    ],
)
def test_times_keep_their_nanoseconds(text: str, seconds: int, nanos: int) -> None:
    (stored,) = decode_lines(f"logs.{RUN}", json.dumps({"message": "", "time": text}).encode())
    assert (stored.line.time.seconds, stored.line.time.nanos) == (seconds, nanos)

"""Domain errors and the statuses that they become."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2

from conveyor.api.errors import code_of, status_of, translate
from conveyor.bus.errors import BusUnavailable
from conveyor.core import errors
from conveyor.core.errors import DomainError, Violation
from conveyor.logs.errors import BadCursor, LogsUnavailable
from conveyor.store import port
from conveyor.v1 import errors_pb2

# As the comments of errors.proto say.
CODES = {
    "INVALID_FIELD": "INVALID_ARGUMENT",
    "SCHEMA_VIOLATION": "INVALID_ARGUMENT",
    "INVALID_SCHEMA": "INVALID_ARGUMENT",
    "CYCLE": "INVALID_ARGUMENT",
    "TOO_LARGE": "INVALID_ARGUMENT",
    "INVALID_PAGE_TOKEN": "INVALID_ARGUMENT",
    "INVALID_CURSOR": "INVALID_ARGUMENT",
    "UNSUPPORTED_FIELD": "UNIMPLEMENTED",
    "NOT_FOUND": "NOT_FOUND",
    "ALREADY_EXISTS": "ALREADY_EXISTS",
    "REQUEST_ID_REUSED": "ALREADY_EXISTS",
    "ETAG_MISMATCH": "ABORTED",
    "CONTENTION": "ABORTED",
    "UNKNOWN_DEFINITION": "FAILED_PRECONDITION",
    "UNKNOWN_PIPELINE": "FAILED_PRECONDITION",
    "NO_OPEN_GATE": "FAILED_PRECONDITION",
    "ALREADY_DECIDED": "FAILED_PRECONDITION",
    "UNKNOWN_RESOURCE": "FAILED_PRECONDITION",
    "RUN_UNDER_WAY": "FAILED_PRECONDITION",
    "DEFINITION_MISMATCH": "FAILED_PRECONDITION",
    "IN_USE": "FAILED_PRECONDITION",
    "RUN_FINISHED": "FAILED_PRECONDITION",
    "RUN_NOT_FINISHED": "FAILED_PRECONDITION",
    "RUN_SUCCEEDED": "FAILED_PRECONDITION",
    "PROTOCOL_VIOLATION": "FAILED_PRECONDITION",
    "SESSION_MISMATCH": "FAILED_PRECONDITION",
    "SESSION_TAKEN_OVER": "ABORTED",
    "STORE_UNAVAILABLE": "UNAVAILABLE",
    "BROKER_UNAVAILABLE": "UNAVAILABLE",
    "SHUTTING_DOWN": "UNAVAILABLE",
    "STORE_EXHAUSTED": "RESOURCE_EXHAUSTED",
    "INTERNAL": "INTERNAL",
    "OUTCOME_UNKNOWN": "UNAVAILABLE",
    "TOO_MANY_WAITING_RUNS": "RESOURCE_EXHAUSTED",
}


def leaves(kind: type[DomainError] = DomainError) -> Iterator[type[DomainError]]:
    """The classes of the tree that have a reason; what other packages derive from them is their own matter."""
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    for child in children:
        yield from leaves(child)
    if not children:
        yield kind


def reason_of(kind: type[DomainError]) -> str:
    return errors_pb2.ErrorReason.Name(kind.reason).removeprefix("ERROR_REASON_")


def test_every_reason_has_one_class_and_every_class_one_reason() -> None:
    reasons = [reason_of(kind) for kind in leaves()]
    assert sorted(reasons) == sorted(CODES)
    declared = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert declared - {"UNSPECIFIED"} == CODES.keys()


@pytest.mark.parametrize("kind", list(leaves()), ids=reason_of)
def test_each_class_becomes_the_status_that_the_proto_promises(kind: type[DomainError]) -> None:
    error = kind()
    assert code_of(error).name == CODES[reason_of(kind)]
    status = status_of(error)
    assert status.code == code_of(error).value[0]
    assert status.message == (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason_of(kind), "conveyor")


def test_violations_and_metadata_are_in_the_details() -> None:
    error = errors.InvalidRequest(violations=[Violation("pipeline.name", "is missing")], metadata={"kind": "pipeline"})
    status = status_of(error)
    assert status.message == "pipeline.name: is missing"
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert dict(info.metadata) == {"kind": "pipeline"}
    assert [(v.field, v.description, v.reason) for v in bad.field_violations] == [
        ("pipeline.name", "is missing", "INVALID_FIELD")
    ]


def test_a_refusal_has_the_reason_of_its_violations_when_they_agree() -> None:
    cycle = Violation("pipeline.steps", "round and round", errors_pb2.ERROR_REASON_CYCLE)
    assert isinstance(errors.refusal([cycle, cycle]), errors.Cycle)
    mixed = errors.refusal([cycle, Violation("pipeline.name", "is missing")])
    assert isinstance(mixed, errors.InvalidRequest)
    assert mixed.message == "pipeline.steps: round and round (and 1 more)"


def test_no_answer_is_too_long_for_the_metadata_of_a_client() -> None:
    violations = [Violation(f"resource.spec/{'é' * 400}/{i}", "ü" * 1000) for i in range(100)]
    status = status_of(errors.SchemaViolation("ß" * 5000, violations=violations, metadata={"name": "x" * 4000}))
    assert len(status.SerializeToString()) * 4 / 3 + len(status.message.encode()) * 3 < 8000
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    shown = len(bad.field_violations) - 1
    assert shown >= 1
    assert bad.field_violations[-1].description == f"and {100 - shown} more"


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        (port.Unavailable("tcp 10.0.0.7:2379 refused"), errors.StoreUnavailable),
        (port.Uncertain("tcp 10.0.0.7:2379 reset"), errors.OutcomeUnknown),
        (port.Exhausted("/var/lib/x is full"), errors.StoreExhausted),
        (port.Conflict("/conveyor/v1/secret", None), errors.Contention),
        (port.LeaseLost("7"), errors.Contention),
        (BusUnavailable("nats://10.0.0.7"), errors.BrokerUnavailable),
        (LogsUnavailable("nats://10.0.0.7"), errors.BrokerUnavailable),
        (BadCursor("/x"), errors.InvalidCursor),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_errors_from_below_are_translated_and_their_words_kept_back(
    below: Exception, kind: type[errors.DomainError]
) -> None:
    error = translate(below, "/x/Y")
    assert type(error) is kind
    assert "10.0.0.7" not in error.message
    assert "/" not in error.message.replace("request_id", "")


def test_a_commit_that_is_too_large_is_the_callers_to_mend() -> None:
    error = translate(port.TooLarge("2000000 bytes: a commit has at most 1310720"), "/x/Y")
    assert isinstance(error, errors.TooLarge)
    assert "2000000" in error.message


def test_an_unforeseen_error_is_hidden_and_logged_under_the_id_that_the_caller_gets() -> None:
    with structlog.testing.capture_logs() as logs:
        error = translate(ZeroDivisionError("the secret"), "/conveyor.v1.RunService/GetRun")
    assert code_of(error) is grpc.StatusCode.INTERNAL
    assert "secret" not in error.message
    entry = logs[0]
    assert entry["error_id"] == error.metadata["id"]
    assert entry["error_id"] in error.message
    assert entry["method"] == "/conveyor.v1.RunService/GetRun"
    assert isinstance(entry["exc_info"], ZeroDivisionError)


def test_every_reason_is_explained_to_the_user() -> None:
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    rows = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| `")]
    explained = {reason: code.strip(" `") for code, reasons, _ in rows for reason in re.findall(r"`(\w+)`", reasons)}
    assert explained == CODES

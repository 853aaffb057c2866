"""DriverResults as events: checked against the limits, digested, and in the form in which they are stored."""

from __future__ import annotations

import hashlib
import re

from conveyor.core import limits
from conveyor.core.events import ResultReceived
from conveyor.state.structs import Unrepresentable, json_bytes, plain
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import result_pb2, run_pb2

# JSON takes at most six bytes for one of protobuf's (an escaped control character).
_SURELY_SMALL = limits.RESULT_DATA_BYTES // 6

# A number_value (field 2 of google.protobuf.Value, 64 bits) whose exponent is all ones: an infinity or no number.
# Text that happens to look like that only costs the closer look.
_NOT_FINITE = re.compile(rb"\x11.{6}[\xf0-\xff][\x7f\xff]", re.DOTALL)

# A struct in a value, or a list in one, deeper than this takes at least so many bytes.
_SURELY_FLAT = limits.STRUCT_NESTING * 6


def result_event(report: result_pb2.ResultReport, driver: str) -> ResultReceived:
    """The event of a report. A result over a limit, or one that JSON doesn't have, becomes one that fails its step.

    Raises ValueError for a report without an outcome, or without step and run.
    """
    result = report.result
    if not report.run or not driver:
        raise ValueError("a result must name its run and its driver")
    if result.outcome not in _OUTCOMES:
        raise ValueError("a result must have the outcome SUCCEEDED, FAILED or CANCELLED")
    stored = storage_pb2.StoredResult(outcome=result.outcome, message=result.message)
    if result.HasField("data"):
        stored.data = result.data.SerializeToString(deterministic=True)
    if result.HasField("retryable"):
        stored.retryable = result.retryable
    digest = hashlib.blake2b(stored.SerializeToString(deterministic=True), digest_size=16).digest()
    invalid, message = _check(result, stored.data)
    if invalid:
        stored = storage_pb2.StoredResult(outcome=result_pb2.OUTCOME_FAILED, message=message)
    return ResultReceived(report.run and report.step, report.attempt, report.token, driver, stored, digest, invalid)


def invalid_event(step: str, attempt: int, token: str, driver: str, message: str) -> ResultReceived:
    """The event of something that a driver sent as its result and that cannot be one."""
    stored = storage_pb2.StoredResult(outcome=result_pb2.OUTCOME_FAILED, message=message)
    digest = hashlib.blake2b(message.encode(), digest_size=16).digest()
    return ResultReceived(step, attempt, token, driver, stored, digest, run_pb2.STEP_REASON_RESULT_INVALID)


_OUTCOMES = frozenset(
    {result_pb2.OUTCOME_SUCCEEDED, result_pb2.OUTCOME_FAILED, result_pb2.OUTCOME_CANCELLED},
)


def _check(result: result_pb2.DriverResult, data: bytes) -> tuple[run_pb2.StepReason.ValueType, str]:
    """Why the result cannot be kept, if so."""
    size = len(result.message.encode())
    if size > limits.RESULT_MESSAGE_BYTES:
        return (
            run_pb2.STEP_REASON_RESULT_TOO_LARGE,
            f"the message of the result has {size} bytes; the limit is {limits.RESULT_MESSAGE_BYTES}",
        )
    if len(data) <= _SURELY_FLAT and not _NOT_FINITE.search(data):
        return run_pb2.STEP_REASON_UNSPECIFIED, ""
    try:
        value = plain(result.data, limits.STRUCT_NESTING)
    except Unrepresentable as error:
        return run_pb2.STEP_REASON_RESULT_INVALID, f"data{error.pointer} of the result {error}"
    if len(data) > _SURELY_SMALL and (size := json_bytes(value)) > limits.RESULT_DATA_BYTES:
        return (
            run_pb2.STEP_REASON_RESULT_TOO_LARGE,
            f"the data of the result has {size} bytes as JSON; the limit is {limits.RESULT_DATA_BYTES}",
        )
    return run_pb2.STEP_REASON_UNSPECIFIED, ""

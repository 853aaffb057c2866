"""From domain errors to gRPC statuses: one table, and safe words for all that nobody foresaw."""

from __future__ import annotations

import secrets

import grpc
import structlog
from google.rpc import error_details_pb2, status_pb2

from conveyor.bus.errors import BusUnavailable
from conveyor.core import errors
from conveyor.logs.errors import BadCursor, LogsUnavailable
from conveyor.store import port
from conveyor.v1 import errors_pb2

DOMAIN = "conveyor"
DETAILS_KEY = "grpc-status-details-bin"

_CODES: dict[type[errors.DomainError], grpc.StatusCode] = {
    errors.Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedField: grpc.StatusCode.UNIMPLEMENTED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Exists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Overtaken: grpc.StatusCode.ABORTED,
    errors.Unfit: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Away: grpc.StatusCode.UNAVAILABLE,
    errors.StoreExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyWaitingRuns: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

_FROM_BELOW: dict[type[Exception], type[errors.DomainError]] = {
    port.Unavailable: errors.StoreUnavailable,
    port.Uncertain: errors.OutcomeUnknown,
    port.Exhausted: errors.StoreExhausted,
    port.Conflict: errors.Contention,
    port.LeaseLost: errors.Contention,
    BusUnavailable: errors.BrokerUnavailable,
    LogsUnavailable: errors.BrokerUnavailable,
    BadCursor: errors.InvalidCursor,
}
"""What becomes of errors of store, bus and logs that nobody has dealt with. Their own words may name paths and
addresses, so these are for the log."""

# A client refuses more than 8 KiB of trailing metadata; the message is in it twice, once in base64 and once with each
# byte beyond ASCII as three.
_MESSAGE_BYTES = 600
_DESCRIPTION_BYTES = 400
_DETAILS_BYTES = 4096

log = structlog.get_logger(__name__)


def code_of(error: errors.DomainError) -> grpc.StatusCode:
    """The status code of an error, by the nearest of its classes in the table."""
    return next((code for kind in type(error).__mro__ if (code := _CODES.get(kind))), grpc.StatusCode.INTERNAL)


def translate(error: Exception, method: str) -> errors.DomainError:
    """The domain error for anything that a handler raised; what nobody foresaw is logged under the id it gets."""
    if isinstance(error, errors.DomainError) and code_of(error) is not grpc.StatusCode.INTERNAL:
        return error
    if isinstance(error, port.TooLarge):
        return errors.TooLarge(f"with its history and the copies that its run keeps, it is too large: {error}")
    known = _FROM_BELOW.get(type(error))
    if known is not None:
        log.warning("call_failed", method=method, error=repr(error))
        return known()
    error_id = secrets.token_hex(8)
    log.error("rpc_failed", method=method, error_id=error_id, exc_info=error)
    return errors.InternalError(
        f"the server made a mistake; its log has more under the id {error_id}", metadata={"id": error_id}
    )


def status_of(error: errors.DomainError) -> status_pb2.Status:
    """The whole answer, small enough for the metadata of any client."""
    status = status_pb2.Status(code=code_of(error).value[0], message=_cut(error.message, _MESSAGE_BYTES))
    reason = errors_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _cut(value, 128)
    status.details.add().Pack(info)
    if error.violations:
        status.details.add().Pack(_bad_request(error.violations, _DETAILS_BYTES - status.ByteSize()))
    return status


def _bad_request(violations: tuple[errors.Violation, ...], room: int) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for i, violation in enumerate(violations):
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, _DESCRIPTION_BYTES),
            description=_cut(violation.description, _DESCRIPTION_BYTES),
            reason=errors_pb2.ErrorReason.Name(violation.reason).removeprefix("ERROR_REASON_"),
        )
        room -= entry.ByteSize() + 4
        if room < 0 and i:
            bad.field_violations.add(description=f"and {len(violations) - i} more")
            break
        bad.field_violations.append(entry)
    return bad


def _cut(text: str, size: int) -> str:
    """At most `size` bytes of it."""
    data = text.encode()
    return text if len(data) <= size else data[: size - 3].decode(errors="ignore") + "…"

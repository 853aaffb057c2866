"""What the domain refuses or cannot do, as one tree. The docstring of each class is its default message.

Nothing here knows of gRPC: `conveyor.api.errors` maps the branches to status codes, in one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from conveyor.v1 import errors_pb2


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that breaks a rule. `field` is its path in the request, `reason` the kind of rule."""

    field: str
    description: str
    reason: errors_pb2.ErrorReason.ValueType = errors_pb2.ERROR_REASON_INVALID_FIELD


class DomainError(Exception):
    """The call failed.

    `message` is for people and safe to send; `violations` name the fields at fault; `metadata` is for programs.
    """

    reason: ClassVar[errors_pb2.ErrorReason.ValueType] = errors_pb2.ERROR_REASON_INTERNAL

    def __init__(
        self, message: str = "", *, violations: Iterable[Violation] = (), metadata: Mapping[str, str] | None = None
    ) -> None:
        self.violations = tuple(violations)
        self.message = message or self._default_message()
        self.metadata: Mapping[str, str] = metadata or {}
        super().__init__(self.message)

    def _default_message(self) -> str:
        if self.violations:
            first = self.violations[0]
            text = f"{first.field}: {first.description}" if first.field else first.description
            more = len(self.violations) - 1
            return f"{text} (and {more} more)" if more else text
        return (type(self).__doc__ or "").partition("\n")[0].rstrip(".")


# What the request itself gets wrong


class Invalid(DomainError):
    """The request breaks a rule, whatever the state of the system."""


class InvalidRequest(Invalid):
    """Fields of the request break their rules."""

    reason = errors_pb2.ERROR_REASON_INVALID_FIELD


class SchemaViolation(Invalid):
    """The spec breaks the schema of its definition."""

    reason = errors_pb2.ERROR_REASON_SCHEMA_VIOLATION


class InvalidSchema(Invalid):
    """The schema is not a usable JSON Schema."""

    reason = errors_pb2.ERROR_REASON_INVALID_SCHEMA


class Cycle(Invalid):
    """The steps need each other in a circle."""

    reason = errors_pb2.ERROR_REASON_CYCLE


class TooLarge(Invalid):
    """Something is over a limit."""

    reason = errors_pb2.ERROR_REASON_TOO_LARGE


class InvalidPageToken(Invalid):
    """The page token is broken or belongs to another query."""

    reason = errors_pb2.ERROR_REASON_INVALID_PAGE_TOKEN


class InvalidCursor(Invalid):
    """The cursor cannot be read."""

    reason = errors_pb2.ERROR_REASON_INVALID_CURSOR


class UnsupportedField(DomainError):
    """The field is known, but this server does not act on it."""

    reason = errors_pb2.ERROR_REASON_UNSUPPORTED_FIELD


# What does not fit what is there


class NotFound(DomainError):
    """There is no such object."""

    reason = errors_pb2.ERROR_REASON_NOT_FOUND


class Exists(DomainError):
    """What should be new is there already."""


class AlreadyExists(Exists):
    """An object of this name is there."""

    reason = errors_pb2.ERROR_REASON_ALREADY_EXISTS


class RequestIdReused(Exists):
    """The request id was used with another request."""

    reason = errors_pb2.ERROR_REASON_REQUEST_ID_REUSED


class Overtaken(DomainError):
    """Somebody else was first."""


class EtagMismatch(Overtaken):
    """The etag is not the current one."""

    reason = errors_pb2.ERROR_REASON_ETAG_MISMATCH


class Contention(Overtaken):
    """Others changed the same object at the same time, several times over; try again."""

    reason = errors_pb2.ERROR_REASON_CONTENTION


class SessionTakenOver(Overtaken):
    """A newer stream of the same session has taken over."""

    reason = errors_pb2.ERROR_REASON_SESSION_TAKEN_OVER


class Unfit(DomainError):
    """The state of the system does not allow it."""


class UnknownDefinition(Unfit):
    """The definition that the object names does not exist."""

    reason = errors_pb2.ERROR_REASON_UNKNOWN_DEFINITION


class UnknownPipeline(Unfit):
    """The pipeline that the object names does not exist."""

    reason = errors_pb2.ERROR_REASON_UNKNOWN_PIPELINE


class UnknownResource(Unfit):
    """The resource that the schedule names does not exist."""

    reason = errors_pb2.ERROR_REASON_UNKNOWN_RESOURCE


class DefinitionMismatch(Unfit):
    """The pipeline takes resources of another definition."""

    reason = errors_pb2.ERROR_REASON_DEFINITION_MISMATCH


class InUse(Unfit):
    """Other objects need this one."""

    reason = errors_pb2.ERROR_REASON_IN_USE


class RunFinished(Unfit):
    """The run has ended."""

    reason = errors_pb2.ERROR_REASON_RUN_FINISHED


class RunNotFinished(Unfit):
    """The run has not ended."""

    reason = errors_pb2.ERROR_REASON_RUN_NOT_FINISHED


class NoOpenGate(Unfit):
    """The step is no gate that waits for a decision."""

    reason = errors_pb2.ERROR_REASON_NO_OPEN_GATE


class AlreadyDecided(Unfit):
    """The same person has decided otherwise at the gate."""

    reason = errors_pb2.ERROR_REASON_ALREADY_DECIDED


class RunUnderWay(Unfit):
    """A run that the schedule started has not ended."""

    reason = errors_pb2.ERROR_REASON_RUN_UNDER_WAY


class RunSucceeded(Unfit):
    """The run succeeded; there is nothing to retry."""

    reason = errors_pb2.ERROR_REASON_RUN_SUCCEEDED


class ProtocolViolation(Unfit):
    """The worker broke the protocol of the Work stream."""

    reason = errors_pb2.ERROR_REASON_PROTOCOL_VIOLATION


class SessionMismatch(Unfit):
    """The session belongs to another driver or namespace."""

    reason = errors_pb2.ERROR_REASON_SESSION_MISMATCH


# What is away


class Away(DomainError):
    """A part of the system is away."""


class StoreUnavailable(Away):
    """The store is away; nothing is known to have happened."""

    reason = errors_pb2.ERROR_REASON_STORE_UNAVAILABLE


class OutcomeUnknown(Away):
    """The answer of the store was lost; the call may have had its effect. Repeat it with the same request_id."""

    reason = errors_pb2.ERROR_REASON_OUTCOME_UNKNOWN


class BrokerUnavailable(Away):
    """The broker is away, and this call needs it."""

    reason = errors_pb2.ERROR_REASON_BROKER_UNAVAILABLE


class ShuttingDown(Away):
    """The server is shutting down."""

    reason = errors_pb2.ERROR_REASON_SHUTTING_DOWN


class StoreExhausted(DomainError):
    """The store has no room left."""

    reason = errors_pb2.ERROR_REASON_STORE_EXHAUSTED


class TooManyWaitingRuns(DomainError):
    """Too many runs of the resource wait for their turn on the pipeline."""

    reason = errors_pb2.ERROR_REASON_TOO_MANY_WAITING_RUNS


class InternalError(DomainError):
    """The server made a mistake."""

    reason = errors_pb2.ERROR_REASON_INTERNAL


_BY_REASON: dict[errors_pb2.ErrorReason.ValueType, type[DomainError]] = {
    kind.reason: kind for kind in (Cycle, InvalidRequest, InvalidSchema, SchemaViolation, TooLarge, UnsupportedField)
}


def refusal(violations: Iterable[Violation]) -> DomainError:
    """The error for these violations: of their kind when all are of one, else InvalidRequest."""
    found = tuple(violations)
    kinds = {violation.reason for violation in found}
    kind = _BY_REASON[kinds.pop()] if len(kinds) == 1 else InvalidRequest
    return kind(violations=found)

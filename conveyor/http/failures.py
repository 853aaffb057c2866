"""Errors as Connect writes them in JSON, with the HTTP status of each code."""

from __future__ import annotations

import base64
from typing import Any

import grpc
from google.protobuf import any_pb2, json_format
from google.rpc import status_pb2

from conveyor.api import errors as api_errors
from conveyor.core import errors

_HTTP_STATUS = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class CallFailed(Exception):
    """A call ended with a status other than OK.

    `http_status` is that of the code, unless HTTP has one that says more; `headers` go with the answer.
    """

    def __init__(
        self, status: status_pb2.Status, http_status: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status.message)
        self.code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        self.http_status = http_status or _HTTP_STATUS[self.code]
        self.headers = headers
        self._status = status

    def to_json(self) -> dict[str, Any]:
        """The error as Connect writes it."""
        # Connect spells this one word with one l.
        name = "canceled" if self.code is grpc.StatusCode.CANCELLED else self.code.name.lower()
        return {
            "code": name,
            "message": self._status.message,
            "details": [_detail(detail) for detail in self._status.details],
        }


def failed(
    code: grpc.StatusCode, message: str, http_status: int | None = None, headers: dict[str, str] | None = None
) -> CallFailed:
    """A failure that says nothing but this."""
    return CallFailed(status_pb2.Status(code=code.value[0], message=message), http_status, headers)


def refused(
    error: errors.DomainError, http_status: int | None = None, headers: dict[str, str] | None = None
) -> CallFailed:
    """The failure with an error of the domain, as the servicers would fail."""
    return CallFailed(api_errors.status_of(error), http_status, headers)


def _detail(detail: any_pb2.Any) -> dict[str, Any]:
    return {
        "type": detail.TypeName(),
        "value": base64.b64encode(detail.value).decode().rstrip("="),
        "debug": {key: value for key, value in json_format.MessageToDict(detail).items() if key != "@type"},
    }

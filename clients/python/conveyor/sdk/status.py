"""Turns what gRPC raises into the exceptions of `conveyor.sdk.errors`."""

import math
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from conveyor.sdk import errors
from conveyor.sdk.config import proxied

_DETAILS = "grpc-status-details-bin"
_DOMAIN = "conveyor"
_TLS = re.compile("SSL|handshake|Hostname Verification", re.IGNORECASE)
_TOO_LARGE = re.compile(r"(CLIENT: Received|Received|Sent) message larger than max \((\d+) vs\. (\d+)\)")
_MIB = 1024 * 1024
_BY_CODE = {kind.code: kind for kind in errors.ApiError.__subclasses__()}
# What a broken connection, a proxy or a server that went away in mid-stream looks like.
_BROKEN = frozenset({"UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED"})


def api_error(error: grpc.RpcError, address: str) -> errors.ApiError:
    """The typed exception for the failure of a call to `address`."""
    code = error.code().name
    kind = _BY_CODE.get(code, errors.ApiError)
    message = error.details() or ""
    reason, metadata, violations = "", {}, []
    for detail in _details(error):
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            reason = info.reason.removeprefix("ERROR_REASON_")
            metadata = dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [errors.Violation(each.field, each.description) for each in bad.field_violations]
    if code == "UNAVAILABLE" and not reason:
        message = _unreachable(message, address)
    elif code == "RESOURCE_EXHAUSTED" and (sizes := _TOO_LARGE.search(message)):
        message = _too_large(sizes)
    return kind(message, reason=reason, violations=tuple(violations), metadata=metadata, code=code)


def is_transient(error: errors.ApiError) -> bool:
    """Whether a stream that ended like this is to be opened again."""
    return error.code == "UNAVAILABLE" or (not error.reason and error.code in _BROKEN)


def _details(error: grpc.RpcError) -> Iterable[Any]:
    status = status_pb2.Status()
    for key, value in cast(Iterable[tuple[str, object]], error.trailing_metadata() or ()):
        if key == _DETAILS and isinstance(value, bytes):
            with suppress(DecodeError):
                status.ParseFromString(value)
    return cast(Iterable[Any], status.details)


def _too_large(sizes: re.Match[str]) -> str:
    what = "answer" if sizes[1].startswith("CLIENT") else "request"
    size, limit = (int(number) / _MIB for number in sizes.group(2, 3))
    # Rounded up, so that what is only just too large does not seem to fit.
    return f"the {what} has {math.ceil(size * 10) / 10:g} MiB; a message may have {limit:g} MiB"


def _unreachable(details: str, address: str) -> str:
    cause = re.sub(r"^.*(?:Failed to connect to remote host|last error): ?", "", details).strip() or "no answer"
    cause = re.sub(r"^(?:(?:connect|recvmsg|UNKNOWN|UNAVAILABLE|ipv[46]:\S+): )+", "", cause)
    if "connect" not in details and "resol" not in details.lower():
        return f"lost the server at {address}: {cause}"
    proxy = proxied(address)
    if proxy is not None:
        return (
            f"cannot reach the server at {address} through the proxy {proxy}: {cause}; "
            "CONVEYOR_NO_PROXY=1 goes there directly"
        )
    if _TLS.search(cause):
        hint = "check CONVEYOR_TLS_CA, CONVEYOR_TLS_SERVER_NAME and the server's certificate"
    elif "Socket closed" in cause:
        hint = "does it want TLS (CONVEYOR_TLS_CA), or a client certificate (CONVEYOR_TLS_CERT, CONVEYOR_TLS_KEY)?"
    else:
        hint = "is it running? `conveyor server dev` starts one, CONVEYOR_ADDRESS or --address names another"
    return f"cannot reach the server at {address}: {cause}; {hint}"

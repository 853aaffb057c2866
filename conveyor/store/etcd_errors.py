"""What etcd's and gRPC's errors mean for the caller of the store."""

from __future__ import annotations

import grpc
import grpc.aio

from conveyor.store.port import Exhausted, LeaseLost, StoreError, TooLarge, Unavailable, Uncertain

COMPACTED = "etcdserver: mvcc: required revision has been compacted"
AUTH_NOT_ENABLED = "etcdserver: authentication is not enabled"

# etcd says these before it proposes anything, or in place of applying it.
_REFUSED: dict[str, type[StoreError]] = {
    "etcdserver: mvcc: database space exceeded": Exhausted,
    "etcdserver: request is too large": TooLarge,
    "etcdserver: too many operations in txn request": TooLarge,
    "etcdserver: requested lease not found": LeaseLost,
    "etcdserver: too many requests": Unavailable,
    "etcdserver: no leader": Unavailable,
}

# Codes that etcd gives only to requests that it did not carry out. UNAVAILABLE is not among them: etcd says so also
# when it lost sight of a proposal that may yet be applied.
_REFUSING = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DATA_LOSS,
}

_NEVER_SENT = ("failed to connect to all addresses", "connections to all backends failing", "DNS resolution failed")

_STALE_TOKEN = ("etcdserver: revision of auth store is old", "etcdserver: user name is empty")


def translate(error: grpc.aio.AioRpcError) -> StoreError:
    """The store's word for `error`: whatever does not prove that nothing happened is Uncertain."""
    code, details = error.code(), error.details() or ""
    text = f"etcd: {code.name}: {details}"
    if details in _REFUSED:
        return _REFUSED[details](text)
    if code in _REFUSING or (code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NEVER_SENT)):
        return Unavailable(text)
    return Uncertain(text)


def needs_new_token(error: grpc.aio.AioRpcError) -> bool:
    """Whether the call was refused, before anything was done, for its token."""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or (error.details() or "") in _STALE_TOKEN


def blames_endpoint(error: grpc.aio.AioRpcError) -> bool:
    """Whether another member might answer better."""
    return error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.DATA_LOSS}

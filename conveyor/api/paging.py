"""Page tokens: opaque, and of no use with another query than the one that they came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

from conveyor.core import errors

DEFAULT_SIZE = 100
LARGEST_SIZE = 1000

_QUERY_BYTES = 8
_CHECK_BYTES = 4


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Up to `size` entries after `after`; "" is the start."""

    size: int
    after: str
    _query: bytes

    def token(self, after: str) -> str:
        """The token for the page after this one; empty at the end."""
        if not after:
            return ""
        body = self._query + after.encode()
        return base64.urlsafe_b64encode(body + _digest(body, _CHECK_BYTES)).decode().rstrip("=")


def open_page(request: Any, namespace: str) -> PageRequest:
    """What a list request asks for. Raises errors.InvalidPageToken."""
    query = _query(request, namespace)
    size = min(request.page_size or DEFAULT_SIZE, LARGEST_SIZE)
    return PageRequest(size, _after(request.page_token, query) if request.page_token else "", query)


def _after(token: str, query: bytes) -> str:
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
        if len(body) <= _QUERY_BYTES or check != _digest(body, _CHECK_BYTES):
            raise errors.InvalidPageToken("the page token is broken")
        if body[:_QUERY_BYTES] != query:
            raise errors.InvalidPageToken("the page token belongs to another query")
        return body[_QUERY_BYTES:].decode()
    except (ValueError, binascii.Error):
        raise errors.InvalidPageToken("the page token is broken") from None


def _query(request: Any, namespace: str) -> bytes:
    """A digest of the query apart from the page: method, namespace and filters."""
    query = type(request)()
    query.CopyFrom(request)
    query.namespace = namespace
    query.ClearField("page_size")
    query.ClearField("page_token")
    name = type(request).DESCRIPTOR.full_name.encode()
    return _digest(name + query.SerializeToString(deterministic=True), _QUERY_BYTES)


def _digest(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()

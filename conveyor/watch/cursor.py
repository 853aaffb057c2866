"""Positions in the store's history, as opaque text."""

from __future__ import annotations

import base64
import binascii

from conveyor.core import errors


def encode(epoch: str, revision: int) -> str:
    """The position after a revision of an epoch."""
    return base64.urlsafe_b64encode(f"{revision}:{epoch}".encode()).decode().rstrip("=")


def parse(cursor: str) -> tuple[str, int]:
    """Epoch and revision. Raises errors.InvalidCursor."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        revision, separator, epoch = text.partition(":")
        if not separator or not revision.isascii() or not revision.isdigit() or len(revision) > 19:
            raise ValueError(text)
        return epoch, int(revision)
    except (ValueError, binascii.Error):
        raise errors.InvalidCursor(
            f"{cursor[:64]!r} is not a cursor of this server; leave it out to start anew"
        ) from None

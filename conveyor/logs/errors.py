"""What can go wrong with logs."""

from __future__ import annotations


class LogsUnavailable(Exception):
    """The broker is away, so lines can be neither stored nor read; the text says more."""


class BadCursor(ValueError):
    """The cursor is none that a line carried."""

"""The exit codes, and what a command raises when it cannot go on."""

from collections.abc import Sequence
from enum import IntEnum


class Exit(IntEnum):
    """What the exit code of `conveyor` says."""

    OK = 0
    ERROR = 1
    USAGE = 2
    RUN_FAILED = 3
    RUN_CANCELLED = 5
    TIMED_OUT = 6
    GIVEN_UP = 7
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class CliError(Exception):
    """A command failed. `details` follow the message, one indented line each."""

    def __init__(self, message: str, details: Sequence[str] = (), code: Exit = Exit.ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.code = code


class Ended(Exception):
    """A command did all it had to, and its exit code says how that went."""

    def __init__(self, code: Exit) -> None:
        super().__init__(code.name)
        self.code = code


class Interrupted(BaseException):
    """Somebody pressed Ctrl-C."""


class PipeClosed(BaseException):
    """Nobody reads standard output any more."""

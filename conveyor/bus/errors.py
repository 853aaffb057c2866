"""What can go wrong with the bus."""

from __future__ import annotations


class BusError(Exception):
    """The bus could not do what was asked."""


class BusUnavailable(BusError):
    """The broker is away or did not answer in time; what was sent may have arrived nevertheless."""


class BusConflict(BusError):
    """A stream that is not ours holds our name or our subjects; the text names it and says what to do."""


class TooLarge(BusError):
    """The message has more bytes than the broker takes.

    `size` and `limit` are bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes is more than the broker takes ({limit} bytes)")
        self.size = size
        self.limit = limit


class WrongSequence(BusError):
    """Somebody else wrote to the subject since it was last read; nothing was stored."""


class ApiError(BusError):
    """JetStream refused a request.

    `code` is like an HTTP status, `err_code` is JetStream's own number.
    """

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


class Undecodable(Exception):
    """The message is none that we know how to read; its text says why."""


class Retry(Exception):
    """Raised by a handler: the event could not be handled yet, through no fault of its own. It will come again."""

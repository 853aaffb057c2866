"""What can go wrong, as one tree. The docstring of each class is its default message."""

from collections.abc import Mapping
from typing import NamedTuple


class ConveyorError(Exception):
    """Conveyor could not do what was asked."""

    def __init__(self, message: str = "") -> None:
        self.message = message or _default_message(type(self))
        super().__init__(self.message)


class ConfigurationError(ConveyorError):
    """A setting is missing or malformed."""


class ConnectionGivenUp(ConveyorError):
    """The server could not be reached for as long as the caller was ready to wait."""


class ClientClosed(ConveyorError):
    """The client has been closed."""


class ForkedProcess(ConveyorError):
    """The process was forked from one that had called Conveyor already."""


class WaitTimeout(ConveyorError):
    """The run did not end in time."""


class ValueNotRepresentable(ConveyorError):
    """A value cannot be sent without changing it.

    `path` is where it is, in JSON path notation, e.g. `$.build.ids[2]`.
    """

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        super().__init__(f"{path}: {why}")


class JobFailed(ConveyorError):
    """The job failed.

    Raised by a handler (best made by `job.fail`), it becomes the attempt's result: `message`, `data` and `retryable`
    as in DriverResult.
    """

    def __init__(
        self, message: str = "", data: Mapping[str, object] | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.data = data
        self.retryable = retryable


class ProcessFailed(JobFailed):
    """A subprocess of the job ended with an exit status other than 0.

    `returncode` is negative when a signal ended it.
    """

    def __init__(self, message: str, returncode: int) -> None:
        super().__init__(message, {"returncode": returncode})
        self.returncode = returncode


class JobCancelled(ConveyorError):
    """The job was cancelled."""


class Violation(NamedTuple):
    """One rule that a request broke."""

    field: str
    """The path of the field, or a JSON pointer into a spec."""
    description: str
    """What is wrong with it."""


class ApiError(ConveyorError):
    """The server refused a call.

    `code` is the name of the gRPC status code; `reason` that of the ErrorReason without its prefix, e.g. NOT_FOUND or
    CYCLE, and empty when the answer did not come from a Conveyor server; `violations` lists the fields that broke
    their rules; `metadata` is what else the server said.
    """

    code = "UNKNOWN"

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "",
        violations: tuple[Violation, ...] = (),
        metadata: Mapping[str, str] | None = None,
        code: str = "",
    ) -> None:
        super().__init__(message)
        if code:
            self.code = code
        self.reason = reason
        self.violations = violations
        self.metadata = dict(metadata or {})

    @property
    def request_id(self) -> str:
        """The id under which the server's log has more. Empty when it named none."""
        return self.metadata.get("request_id") or self.metadata.get("id", "")


class InvalidArgument(ApiError):
    """The request breaks a rule."""

    code = "INVALID_ARGUMENT"


class NotFound(ApiError):
    """There is no such object."""

    code = "NOT_FOUND"


class AlreadyExists(ApiError):
    """There is such an object already, or the request id was used with another request."""

    code = "ALREADY_EXISTS"


class Aborted(ApiError):
    """The object changed in between."""

    code = "ABORTED"


class FailedPrecondition(ApiError):
    """The state of the system does not allow it."""

    code = "FAILED_PRECONDITION"


class Unavailable(ApiError):
    """The server cannot be reached, or cannot reach its store."""

    code = "UNAVAILABLE"


class ResourceExhausted(ApiError):
    """A limit or the store's room is used up."""

    code = "RESOURCE_EXHAUSTED"


class Unimplemented(ApiError):
    """The server does not know this call, or does not act on a field."""

    code = "UNIMPLEMENTED"


class DeadlineExceeded(ApiError):
    """The answer did not come in time; the call may have had its effect."""

    code = "DEADLINE_EXCEEDED"


class Internal(ApiError):
    """The server made a mistake; its log says more."""

    code = "INTERNAL"


class Unauthenticated(ApiError):
    """The server does not know who is calling."""

    code = "UNAUTHENTICATED"


class PermissionDenied(ApiError):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"


def _default_message(kind: type[Exception]) -> str:
    return (kind.__doc__ or kind.__name__).partition("\n")[0].rstrip(".")

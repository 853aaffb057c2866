"""Times of messages as ages and lengths."""

from datetime import UTC, datetime

from google.protobuf.message import Message

from conveyor.cli.durations import show_age, show_duration
from conveyor.v1.run_pb2 import Run, StepRun, StepState

_BETWEEN = {StepState.STEP_STATE_RETRYING, StepState.STEP_STATE_QUEUED}
"""States of a step whose last attempt, if there was one, has ended."""


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def time_of(message: Message, field: str) -> datetime | None:
    """A timestamp of a message. None when it is not set."""
    if not message.HasField(field):
        return None
    time: datetime = getattr(message, field).ToDatetime(UTC)
    return time


def age(message: Message, field: str, at: datetime) -> str:
    """How long ago it was; empty when it was not."""
    then = time_of(message, field)
    return show_age(then, at) if then else ""


def moment(message: Message, field: str, at: datetime) -> str:
    """The time and how long ago it was."""
    then = time_of(message, field)
    return f"{then:%Y-%m-%dT%H:%M:%SZ} ({show_age(then, at)})" if then else ""


def upcoming(message: Message, field: str, at: datetime) -> str:
    """How soon it will be; empty when it will not."""
    then = time_of(message, field)
    if then is None:
        return ""
    return f"in {show_duration((then - at).total_seconds())}" if then > at else "now"


def due(message: Message, field: str, at: datetime) -> str:
    """The time and how soon it will be; empty when it will not."""
    then = time_of(message, field)
    return f"{then:%Y-%m-%dT%H:%M:%SZ} ({upcoming(message, field, at)})" if then else ""


def length(message: Run | StepRun, at: datetime) -> str:
    """How long a run or the current attempt of a step took, or takes already; empty before its start."""
    start = time_of(message, "start_time")
    if start is None or (isinstance(message, StepRun) and message.state in _BETWEEN):
        return ""
    return show_duration(((time_of(message, "end_time") or at) - start).total_seconds())


def offset(run: Run, at: datetime) -> str:
    """How long after the creation of a run something was."""
    start = time_of(run, "create_time")
    return show_duration((at - start).total_seconds()) if start else ""

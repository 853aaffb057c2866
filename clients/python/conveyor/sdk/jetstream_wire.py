"""The JSON that drivers and the engine exchange over JetStream. No I/O; `docs/jetstream.md` describes it.

Older servers send tickets without the `conveyor.*` keys, older engines read results without them: both work.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, cast

from conveyor.sdk.errors import ConveyorError
from conveyor.sdk.values import from_struct, to_struct
from conveyor.v1.log_pb2 import LogLine, LogStream
from conveyor.v1.resource_pb2 import Resource
from conveyor.v1.result_pb2 import DriverResult, Outcome
from conveyor.v1.run_pb2 import RunState, StepState
from conveyor.v1.worker_pb2 import Assignment, StepResult

MESSAGES_STREAM = "messages"
LOGS_STREAM = "logs"

_KEY = "conveyor."
_ECHOED = frozenset(f"{_KEY}{name}" for name in ("step", "attempt", "token", "namespace", "driver")) | {"version"}
_OLDER_RESULT = "driverresults."


class Malformed(ConveyorError):
    """The message is not what it should be."""


class Ticket(NamedTuple):
    """A message that asks for work."""

    assignment: Assignment
    resource: dict[str, Any]
    """The resource as it came; it goes back with the result."""
    problem: str
    """Why the job cannot be done: something in the ticket is not representable. Empty when it can."""


class CancelNotice(NamedTuple):
    """What the server says on `cancel.{run}.{step}`. Fields that it leaves out are 0, empty or None."""

    run: str
    step: str
    attempt: int
    token: str
    message: str
    grace: float | None


def prefix(namespace: str) -> str:
    """What stands before every subject of a namespace."""
    return "" if namespace == "default" else f"ns.{namespace}."


def consumer(namespace: str, driver: str) -> str:
    """The name of a driver's consumer."""
    return driver if namespace == "default" else f"{namespace}_{driver}"


def filters(namespace: str, driver: str, definitions: Sequence[str]) -> list[str]:
    """The subjects that a driver listens to: tickets and, of the definitions that it names, broadcasts."""
    start = prefix(namespace)
    if not definitions:
        return [f"{start}drivers.{driver}.resources.*"]
    return [
        subject
        for name in definitions
        for subject in (f"{start}resources.{name}", f"{start}drivers.{driver}.resources.{name}")
    ]


def result_subject(namespace: str) -> str:
    """Where results go."""
    return f"{prefix(namespace)}pipelines.driver.result"


def log_subject(namespace: str, run: str, step: str) -> str:
    """Where the lines of a step go."""
    return f"{prefix(namespace)}logs.{run}.{step}" if step else f"{prefix(namespace)}logs.{run}"


def cancel_filter(namespace: str) -> str:
    """Where the server tells drivers to stop, for all runs."""
    return f"{prefix(namespace)}cancel.*.*"


def decode_ticket(body: bytes, namespace: str, driver: str) -> Ticket:
    """The work that a message asks `driver` for. Malformed when not even the run can be told."""
    message = _object(body)
    run = message.get("run_id")
    payload = message.get("payload")
    resource = _object(payload) if isinstance(payload, str) else payload
    if not isinstance(run, str) or not run or not isinstance(resource, dict):
        raise Malformed("the ticket has no run_id, or its payload is no resource")
    metadata = resource.get("metadata")
    if not isinstance(metadata, dict):
        metadata = {}
    own = {key.removeprefix(_KEY): value for key, value in metadata.items() if key.startswith(_KEY)}
    assignment = Assignment(
        namespace=namespace,
        run=run,
        step=_text(own.get("step")),
        attempt=_int(own.get("attempt")),
        token=_text(own.get("token")),
        driver=driver,
        pipeline=_text(own.get("pipeline")) or _text(resource.get("pipeline")),
        resource=Resource(
            namespace=namespace,
            name=_text(resource.get("name")),
            definition=_text(resource.get("resource")),
            pipeline=_text(resource.get("pipeline")),
            uid=_text(resource.get("id")),
            generation=_int(metadata.get("version")),
        ),
        max_attempts=_int(own.get("max_attempts")),
    )
    try:
        _fill(assignment, resource, metadata, own)
    except ConveyorError as error:
        return Ticket(assignment, resource, f"the ticket cannot be read: {error.message}")
    return Ticket(assignment, resource, "")


def encode_result(ticket: Ticket, result: DriverResult) -> bytes:
    """The body that answers a ticket."""
    succeeded = result.outcome == Outcome.OUTCOME_SUCCEEDED
    answer: dict[str, object] = {
        "success": succeeded,
        "message": result.message,
        "data": from_struct(result.data) if result.HasField("data") else None,
        "driver": ticket.assignment.driver,
    }
    if result.outcome == Outcome.OUTCOME_CANCELLED:
        answer["outcome"] = "CANCELLED"
    if result.HasField("retryable"):
        answer["retryable"] = result.retryable
    return _dump(
        {
            "event": "driver.result",
            "run_id": ticket.assignment.run,
            "driverresult": answer,
            "resource": _echo(ticket),
        }
    )


def encode_lines(lines: Sequence[LogLine], driver: str, pipeline: str, after: int = 0) -> bytes:
    """The body for lines of one attempt; their numbers follow the `after` lines that it has already."""
    return _dump([_line(line, driver, pipeline, after) for line in lines])


def last_seq(body: bytes, attempt: int) -> int:
    """The number of the last line of an attempt in a message with log lines; 0 when it has none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return 0
    lines = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict)]
    return max((_int(line.get("seq")) for line in lines if _int(line.get("attempt")) == attempt), default=0)


def decode_cancel(subject: str, body: bytes) -> CancelNotice:
    """What a message on a cancel subject says. Malformed when it says nothing."""
    message = _object(body)
    run, step = subject.split(".")[-2:]
    grace = message.get("grace")
    if isinstance(grace, str):
        grace = _number(grace.removesuffix("s"))
    return CancelNotice(
        run,
        step,
        _int(message.get("attempt")),
        _text(message.get("token")),
        _text(message.get("message")),
        float(grace) if isinstance(grace, int | float) else None,
    )


def _fill(assignment: Assignment, resource: dict[str, Any], metadata: dict[str, Any], own: dict[str, Any]) -> None:
    """All of the assignment that may be unreadable."""
    assignment.resource.spec.CopyFrom(to_struct(_mapping(resource.get("spec"), "spec")))
    assignment.resource.labels.update(
        {key: _text(value) for key, value in _mapping(own.get("labels"), "labels").items()}
    )
    if own.get("context"):
        assignment.context.CopyFrom(to_struct(_mapping(own["context"], "context")))
    if own.get("params"):
        assignment.params.CopyFrom(to_struct(_mapping(own["params"], "params")))
    for name, field in (("deadline", assignment.deadline), ("timeout", assignment.timeout)):
        if own.get(name):
            try:
                field.FromJsonString(_text(own[name]))
            except ValueError as error:
                raise Malformed(f"{name}: {error}") from None
    state = own.get("run_state")
    if state:
        assignment.run_state = _enum(RunState, f"RUN_STATE_{state}")
    for step, result in _mapping(own.get("results"), "results").items():
        assignment.results[step].CopyFrom(_step_result(_mapping(result, f"results.{step}")))
    if "results" not in own:
        _fill_older_results(assignment, metadata)


def _fill_older_results(assignment: Assignment, metadata: dict[str, Any]) -> None:
    """An older server names no steps: its results are found under the names of their drivers."""
    for key, value in metadata.items():
        if key.startswith(_OLDER_RESULT):
            answer = _mapping(value, key)
            driver = key.removeprefix(_OLDER_RESULT)
            state = "SUCCEEDED" if answer.get("success") else "FAILED"
            assignment.results[driver].CopyFrom(_step_result({"driver": driver, **answer, "state": state}))


def _step_result(answer: dict[str, Any]) -> StepResult:
    result = StepResult(
        state=_enum(StepState, f"STEP_STATE_{answer.get('state')}"),
        driver=_text(answer.get("driver")),
        message=_text(answer.get("message")),
    )
    data = answer.get("data")
    if data is not None:
        # Older drivers may answer with anything.
        result.data.CopyFrom(to_struct(data if isinstance(data, dict) else {"value": data}))
    return result


def _echo(ticket: Ticket) -> dict[str, Any]:
    """What goes back of the resource: all of it to an older engine, which knows nothing but what it gets back."""
    if not ticket.assignment.token:
        return ticket.resource
    metadata = {key: value for key, value in ticket.resource["metadata"].items() if key in _ECHOED}
    return {key: value for key, value in ticket.resource.items() if key != "spec"} | {"metadata": metadata}


def _line(line: LogLine, driver: str, pipeline: str, after: int) -> dict[str, object]:
    body: dict[str, object] = {
        "driver": driver,
        "message": line.text,
        "pipeline": pipeline,
        "runid": line.run,
        "timestamp": str(line.time.seconds),
        "step": line.step,
        "attempt": line.attempt,
        "seq": after + line.seq,
        "stream": LogStream.Name(line.stream).removeprefix("LOG_STREAM_").lower(),
        "time": line.time.ToJsonString(),
    }
    if line.partial:
        body["partial"] = True
    return body


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Malformed("not a JSON object")
    return cast(dict[str, Any], value)


def _mapping(value: object, name: str) -> dict[str, Any]:
    """A mapping, or the mapping in a JSON text; nothing counts as an empty one."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        return _object(value)
    if not isinstance(value, dict):
        raise Malformed(f"{name} is not an object")
    return cast(dict[str, Any], value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _int(value: object) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _enum(kind: Any, name: str) -> Any:
    """A value by its name; unspecified when a later server knows more of them, as it is over gRPC."""
    try:
        return kind.Value(name)
    except ValueError:
        return 0


def _dump(value: object) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Lone surrogates, which JSON can carry in escapes only: they go back as they came.
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()

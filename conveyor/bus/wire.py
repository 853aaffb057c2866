"""The JSON bodies that engine and drivers exchange: tickets there, results back. No I/O.

`docs/jetstream.md` is this page for people who write drivers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, cast

from conveyor.bus import subjects, values
from conveyor.bus.errors import Undecodable
from conveyor.bus.events import InboxEvent, ResultArrived, RunCreated
from conveyor.v1 import result_pb2, run_pb2, worker_pb2

EVENT_CREATE = "create"
"""The resource's first step, or a broadcast."""
EVENT_PROCESS = "process"
"""Any later step."""

RESULTS_PREFIX = "driverresults."
KEY_PREFIX = "conveyor."

NAMESPACE = "conveyor.namespace"
STEP = "conveyor.step"
ATTEMPT = "conveyor.attempt"
TOKEN = "conveyor.token"
DRIVER = "conveyor.driver"
PIPELINE = "conveyor.pipeline"
DEADLINE = "conveyor.deadline"
TIMEOUT = "conveyor.timeout"
MAX_ATTEMPTS = "conveyor.max_attempts"
RUN_STATE = "conveyor.run_state"
CONTEXT = "conveyor.context"
RESULTS = "conveyor.results"
PARAMS = "conveyor.params"
LABELS = "conveyor.labels"

_RUN_ID = re.compile(r"[0-9A-Za-z][-0-9A-Za-z]{0,62}")
_MAX_ATTEMPT = 0xFFFFFFFF


def encode_ticket(assignment: worker_pb2.Assignment, *, first: bool, steps: Sequence[str] = ()) -> bytes:
    """The body of a ticket, or of a broadcast when the assignment names no driver.

    `first` tells the first step of a run from later ones. `steps` is the order of the pipeline's steps: when one driver
    has answered in several of them, `driverresults.{driver}` holds the answer of the last.
    """
    resource = assignment.resource
    payload: dict[str, Any] = {"id": resource.uid, "name": resource.name}
    if assignment.pipeline:
        payload["pipeline"] = assignment.pipeline
    payload["resource"] = resource.definition
    payload["metadata"] = _metadata(assignment, steps)
    payload["spec"] = values.from_struct(resource.spec)
    body = {
        # The same for the same assignment, so that a ticket that is published again is the same message.
        "id": hashlib.sha256(f"{assignment.run} {assignment.token}".encode()).hexdigest()[:24],
        "event": EVENT_CREATE if first else EVENT_PROCESS,
        "payload": values.dumps(payload),
        "run_id": assignment.run,
    }
    return values.dumps(body).encode()


def decode(subject: str, body: bytes) -> InboxEvent | None:
    """The event in a message of stream `pipeline`; None for what only older servers care about. Raises Undecodable."""
    match subjects.split(subject)[1]:
        case subjects.DRIVER_RESULT:
            return decode_result(subject, body)
        case subjects.RUN_CREATED:
            return decode_run_created(subject, body)
        case subjects.OLDER_PIPELINE_INIT:
            return None
    raise Undecodable(f"nothing is known of subject {subject}")


def encode_run_created(namespace: str, run: str) -> bytes:
    """The body of `pipelines.run.created`."""
    return values.dumps({"namespace": namespace or subjects.DEFAULT_NAMESPACE, "run_id": run}).encode()


def encode_cancel(attempt: int, token: str, message: str, grace: float) -> bytes:
    """The body for `cancel.{run}.{step}`; `grace` is how many seconds the server waits for the confirmation."""
    return values.dumps({"attempt": attempt, "token": token, "message": message, "grace": grace}).encode()


def decode_run_created(subject: str, body: bytes) -> RunCreated:
    """The event in `pipelines.run.created`; the subject says the namespace. Raises Undecodable."""
    return RunCreated(subjects.split(subject)[0], _run_id(_object(body)))


def decode_result(subject: str, body: bytes) -> ResultArrived:
    """The event in `pipelines.driver.result`. Raises Undecodable when not even the run can be told."""
    message = _object(body)
    run = _run_id(message)
    resource = message.get("resource")
    metadata = resource.get("metadata") if isinstance(resource, dict) else None
    if not isinstance(metadata, dict):
        metadata = {}
    answer = message.get("driverresult")
    driver = _text(answer.get("driver")) if isinstance(answer, dict) else ""
    result, invalid = _result(answer)
    return ResultArrived(
        namespace=subjects.split(subject)[0],
        run=run,
        step=_text(metadata.get(STEP)),
        attempt=_attempt(metadata.get(ATTEMPT)),
        token=_text(metadata.get(TOKEN)),
        driver=driver or _text(metadata.get(DRIVER)),
        result=result,
        invalid=invalid,
    )


def _metadata(assignment: worker_pb2.Assignment, steps: Sequence[str]) -> dict[str, str]:
    """What a driver gets beside the spec and sends back unchanged with its result. All values are text."""
    context = values.from_struct(assignment.context)
    metadata = {"version": str(assignment.resource.generation)}
    order = {step: i for i, step in enumerate(steps)}
    results = sorted(assignment.results.items(), key=lambda item: (order.get(item[0], -1), item[0]))
    full: dict[str, Any] = {}
    for step, result in results:
        data = values.from_struct(result.data) if result.HasField("data") else None
        state = run_pb2.StepState.Name(result.state).removeprefix("STEP_STATE_")
        if result.driver:
            metadata[RESULTS_PREFIX + result.driver] = values.dumps(
                {
                    "success": result.state == run_pb2.STEP_STATE_SUCCEEDED,
                    "message": result.message,
                    "data": data,
                    "driver": result.driver,
                }
            )
        full[step] = {"state": state, "driver": result.driver, "message": result.message, "data": data}
    for key, value in context.items():
        # Older drivers read the context right here; it never hides what is reserved.
        if key != "version" and not key.startswith((KEY_PREFIX, RESULTS_PREFIX)):
            metadata[key] = value if isinstance(value, str) else values.dumps(value)

    own = {
        NAMESPACE: assignment.namespace or subjects.DEFAULT_NAMESPACE,
        STEP: assignment.step,
        ATTEMPT: str(assignment.attempt or ""),
        TOKEN: assignment.token,
        DRIVER: assignment.driver,
        PIPELINE: assignment.pipeline,
        DEADLINE: assignment.deadline.ToJsonString() if assignment.HasField("deadline") else "",
        TIMEOUT: assignment.timeout.ToJsonString() if assignment.HasField("timeout") else "",
        MAX_ATTEMPTS: str(assignment.max_attempts or ""),
        RUN_STATE: run_pb2.RunState.Name(assignment.run_state).removeprefix("RUN_STATE_")
        if assignment.run_state
        else "",
        CONTEXT: values.dumps(context) if context else "",
        RESULTS: values.dumps(full) if full else "",
        PARAMS: values.dumps(values.from_struct(assignment.params)) if assignment.params.fields else "",
        LABELS: values.dumps(dict(sorted(assignment.resource.labels.items()))) if assignment.resource.labels else "",
    }
    metadata.update((key, value) for key, value in own.items() if value)
    return metadata


def _object(body: bytes) -> dict[str, Any]:
    try:
        message = values.loads(body)
    except ValueError as error:
        raise Undecodable(f"the body is no JSON: {error}") from None
    if not isinstance(message, dict):
        raise Undecodable("the body is no JSON object")
    return cast(dict[str, Any], message)


def _run_id(message: dict[str, Any]) -> str:
    run = message.get("run_id")
    if not isinstance(run, str) or not _RUN_ID.fullmatch(run):
        raise Undecodable("run_id is missing or no id")
    return run


def _text(value: Any) -> str:
    return values.utf8(value) if isinstance(value, str) else ""


def _attempt(value: Any) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return 0
    number = int(text)
    return number if number <= _MAX_ATTEMPT else 0


def _result(answer: Any) -> tuple[result_pb2.DriverResult | None, str]:
    """The result, or why it is none."""
    if not isinstance(answer, dict):
        return None, "driverresult is missing or no object"
    outcome, invalid = _outcome(answer)
    if invalid:
        return None, invalid
    result = result_pb2.DriverResult(outcome=outcome)
    match answer.get("message"):
        case None:
            pass
        case str() as text:
            result.message = values.utf8(text)
        case other:
            result.message = values.dumps(other)
    match answer.get("retryable"):
        case None:
            pass
        case bool() as retryable:
            result.retryable = retryable
        case _:
            return None, "driverresult.retryable is neither true nor false"
    data = answer.get("data")
    if data is None:
        return result, ""
    if not isinstance(data, dict):
        data = {"value": data}
    try:
        result.data.CopyFrom(values.to_struct(data, "data"))
    except values.BadValue as error:
        return None, f"driverresult.{error}"
    return result, ""


def _outcome(answer: dict[str, Any]) -> tuple[result_pb2.Outcome.ValueType, str]:
    """What the driver says of its success: `outcome` where it is given, else `success`."""
    match answer.get("outcome"):
        case "SUCCEEDED":
            return result_pb2.OUTCOME_SUCCEEDED, ""
        case "FAILED":
            return result_pb2.OUTCOME_FAILED, ""
        case "CANCELLED":
            return result_pb2.OUTCOME_CANCELLED, ""
        case None | "":
            pass
        case _:
            return result_pb2.OUTCOME_UNSPECIFIED, "driverresult.outcome is not SUCCEEDED, FAILED or CANCELLED"
    match answer.get("success"):
        case True:
            return result_pb2.OUTCOME_SUCCEEDED, ""
        case False:
            return result_pb2.OUTCOME_FAILED, ""
    return result_pb2.OUTCOME_UNSPECIFIED, "driverresult.success is neither true nor false"

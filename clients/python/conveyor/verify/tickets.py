"""The JSON between drivers and engine over JetStream, as docs/jetstream.md states it, from the engine's side."""

import json
import secrets
from calendar import timegm
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from conveyor.verify.attempt import Answer, Attempt, Line

_GIB = 1 << 30
_DAY_NS = 86_400 * 10**9
_WINDOW_NS = 120 * 10**9

STREAMS: Mapping[str, Mapping[str, Any]] = {
    "pipeline": {"subjects": ["pipelines.>", "ns.*.pipelines.>"], "retention": "workqueue"},
    "messages": {
        "subjects": [f"{start}{name}.>" for start in ("", "ns.*.") for name in ("resources", "events", "drivers")],
        "retention": "interest",
        "consumer_limits": {"inactive_threshold": _DAY_NS},
    },
    "logs": {"subjects": ["logs.>", "ns.*.logs.>"], "retention": "limits"},
}
"""What the server's streams are like, as far as a driver can tell."""


def stream(name: str) -> Mapping[str, Any]:
    """The request that makes a stream."""
    common = {"name": name, "storage": "file", "discard": "old", "allow_direct": True, "duplicate_window": _WINDOW_NS}
    return {**common, **STREAMS[name]}


def prefix(namespace: str) -> str:
    """What stands before all subjects of a namespace."""
    return "" if namespace == "default" else f"ns.{namespace}."


def consumer(namespace: str, driver: str) -> str:
    """The name of a driver's consumer; without driver, what it begins with."""
    return driver if namespace == "default" else f"{namespace}_{driver}"


def ticket(attempt: Attempt, namespace: str, driver: str, definition: str) -> dict[str, Any]:
    """The ticket of an attempt. Its `payload` is not text yet."""
    return {
        "id": secrets.token_hex(12),
        "event": "create",
        "run_id": attempt.run,
        "payload": {
            "id": attempt.run,
            "name": "verify",
            "pipeline": "verify",
            "resource": definition,
            "metadata": {
                "version": "1",
                "conveyor.namespace": namespace,
                "conveyor.step": attempt.step,
                "conveyor.attempt": str(attempt.number),
                "conveyor.token": attempt.token,
                "conveyor.driver": driver,
                "conveyor.pipeline": "verify",
                "conveyor.timeout": "3600s",
                "conveyor.max_attempts": "3",
                "conveyor.run_state": "RUNNING",
            },
            "spec": dict(attempt.spec),
        },
    }


def encode(body: Mapping[str, Any]) -> bytes:
    """The body of a ticket."""
    return json.dumps({**body, "payload": json.dumps(body["payload"], ensure_ascii=False)}, ensure_ascii=False).encode()


def answer(body: bytes, at: int) -> Answer | None:
    """The result in a message; None when it names no run."""
    message = _object(body)
    run = message.get("run_id")
    if not isinstance(run, str) or not run:
        return None
    said = _mapping(message.get("driverresult"))
    metadata = _mapping(_mapping(message.get("resource")).get("metadata"))
    outcome = said.get("outcome")
    if not isinstance(outcome, str):
        outcome = {True: "SUCCEEDED", False: "FAILED"}.get(said.get("success"), "neither success nor failure")  # type: ignore[arg-type]
    return Answer(
        outcome=outcome,
        message=str(said.get("message", "")),
        data=_mapping(said.get("data")),
        at=at,
        run=run,
        step=str(metadata.get("conveyor.step", "")),
        number=_number(metadata.get("conveyor.attempt")),
        token=str(metadata.get("conveyor.token", "")),
    )


def lines(body: bytes, at: int) -> Iterator[tuple[str, str, int, Line]]:
    """Run, step, attempt and line of each line in a message: it holds one or a list of them."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    for each in value if isinstance(value, list) else [value]:
        said = _mapping(each)
        line = Line(
            seq=_number(said.get("seq")),
            text=str(said.get("message", "")),
            partial=said.get("partial") is True,
            at=at,
            time=str(said.get("time", "")),
        )
        yield str(said.get("runid", "")), str(said.get("step", "")), _number(said.get("attempt")), line


def nanoseconds(time: str) -> int:
    """A time of the broker, RFC 3339 with up to nine digits, as a number."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    seconds = timegm(datetime.fromisoformat(whole).timetuple())
    return seconds * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)


def _object(body: bytes) -> dict[str, Any]:
    try:
        return _mapping(json.loads(body))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> int:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() else 0

"""Names on the broker: streams, consumers and subjects, and the way back.

Namespace `default` has plain subjects, any other has the same below `ns.{namespace}.`. Names of namespaces, drivers,
definitions and steps are `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, so none holds a dot, a wildcard or an underscore.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

DEFAULT_NAMESPACE = "default"

PIPELINE_STREAM = "pipeline"
"""Work queue: events to the engine."""
MESSAGES_STREAM = "messages"
"""Interest: tickets and broadcasts to drivers."""
LOGS_STREAM = "logs"
"""Limits: log lines."""
ENGINE_CONSUMER = "pipeline-engine"
"""The durable consumer on PIPELINE_STREAM that all replicas share."""

RUN_CREATED = "pipelines.run.created"
DRIVER_RESULT = "pipelines.driver.result"
OLDER_PIPELINE_INIT = "pipelines.pipeline.init"
"""What an older server told its own engine; nothing to us."""

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_TOKEN = re.compile(r"[^\s.*>]+")


class LogSubject(NamedTuple):
    """Where a log subject belongs; `step` is empty for older drivers, which do not say it."""

    namespace: str
    run: str
    step: str


class DriverName(NamedTuple):
    """A driver and its tenant."""

    namespace: str
    driver: str


def prefix(namespace: str) -> str:
    """What stands before every subject of the namespace."""
    return "" if namespace in ("", DEFAULT_NAMESPACE) else f"ns.{namespace}."


def split(subject: str) -> tuple[str, str]:
    """Namespace and plain subject."""
    if subject.startswith("ns."):
        _, namespace, rest = (*subject.split(".", 2), "")[:3]
        return namespace, rest
    return DEFAULT_NAMESPACE, subject


def consumer(namespace: str, driver: str) -> str:
    """The name of the driver's consumer on MESSAGES_STREAM."""
    return driver if namespace in ("", DEFAULT_NAMESPACE) else f"{namespace}_{driver}"


def parse_consumer(name: str) -> DriverName | None:
    """Whose consumer it is. None: no driver can have it."""
    namespace, separator, driver = name.rpartition("_")
    if not separator:
        namespace = DEFAULT_NAMESPACE
    elif namespace == DEFAULT_NAMESPACE:
        return None
    if _NAME.fullmatch(namespace) and _NAME.fullmatch(driver):
        return DriverName(namespace, driver)
    return None


def ticket(namespace: str, driver: str, definition: str) -> str:
    """Where a driver finds its assignments for one definition."""
    return f"{prefix(namespace)}drivers.{driver}.resources.{definition}"


def broadcast(namespace: str, definition: str) -> str:
    """Where all drivers find resources that move on no pipeline."""
    return f"{prefix(namespace)}resources.{definition}"


def run_created(namespace: str) -> str:
    """Where a server says that a run is new."""
    return prefix(namespace) + RUN_CREATED


def driver_result(namespace: str) -> str:
    """Where a driver publishes what it came to."""
    return prefix(namespace) + DRIVER_RESULT


def logs(namespace: str, run: str, step: str = "") -> str:
    """Where the lines of a step go; without step, those of older drivers."""
    subject = f"{prefix(namespace)}logs.{run}"
    return f"{subject}.{step}" if step else subject


def logs_of_run(namespace: str, run: str) -> list[str]:
    """Filters that together match every line of the run."""
    return [logs(namespace, run), logs(namespace, run, "*")]


def cancel(namespace: str, run: str, step: str) -> str:
    """Where a driver hears, by core NATS, that it should stop."""
    return f"{prefix(namespace)}cancel.{run}.{step}"


def parse_logs(subject: str) -> LogSubject | None:
    """The run and step of a log subject. None: it is none."""
    namespace, plain = split(subject)
    match plain.split("."):
        case ["logs", run]:
            return LogSubject(namespace, run, "")
        case ["logs", run, step]:
            return LogSubject(namespace, run, step)
    return None


def is_token(text: str) -> bool:
    """Whether it can stand between two dots of a subject: ids that come from outside may not."""
    return _TOKEN.fullmatch(text) is not None


@lru_cache(4096)
def matches(filter_subject: str, subject: str) -> bool:
    """Whether a consumer with this filter gets messages of this subject."""
    filters, tokens = filter_subject.split("."), subject.split(".")
    for i, wanted in enumerate(filters):
        if wanted == ">":
            return len(tokens) > i
        if i >= len(tokens) or wanted not in ("*", tokens[i]):
            return False
    return len(filters) == len(tokens)


STREAM_SUBJECTS = {
    PIPELINE_STREAM: ["pipelines.>", "ns.*.pipelines.>"],
    MESSAGES_STREAM: [
        "resources.>",
        "events.>",
        "drivers.>",
        "ns.*.resources.>",
        "ns.*.events.>",
        "ns.*.drivers.>",
    ],
    LOGS_STREAM: ["logs.>", "ns.*.logs.>"],
}

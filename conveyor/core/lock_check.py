"""Whether the locks of a pipeline can work, as far as that shows when it is registered. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from conveyor.core import limits
from conveyor.core.errors import Violation
from conveyor.core.plan import EXPRESSION_MARK
from conveyor.v1 import errors_pb2, pipeline_pb2


def check_locks(pipeline: pipeline_pb2.Pipeline, path: str) -> Iterator[Violation]:
    """What is wrong with the locks of a pipeline and of its steps. Expressions in keys are checked elsewhere."""
    own = pipeline.lock.key
    if pipeline.HasField("lock"):
        yield from _check(pipeline.lock, f"{path}.lock")
    for name, steps in (("steps", pipeline.steps), ("finally", pipeline.finally_steps)):
        for i, step in enumerate(steps):
            if not step.HasField("lock"):
                continue
            where = f"{path}.{name}[{i}].lock"
            yield from _check(step.lock, where)
            if own and step.lock.key == own:
                said = "is that of the pipeline's lock: the run holds it, and the step would wait for its own run"
                yield Violation(f"{where}.key", said)


def _check(lock: pipeline_pb2.Lock, path: str) -> Iterator[Violation]:
    size = len(lock.key.encode())
    if not size:
        yield Violation(f"{path}.key", "is missing")
    elif size > limits.LOCK_KEY_BYTES and EXPRESSION_MARK.decode() not in lock.key:
        text = f"has {size} bytes; at most {limits.LOCK_KEY_BYTES}"
        yield Violation(f"{path}.key", text, errors_pb2.ERROR_REASON_TOO_LARGE)
    if lock.HasField("limit") and not 1 <= lock.limit <= limits.LOCK_HOLDERS:
        yield Violation(f"{path}.limit", f"must be from 1 to {limits.LOCK_HOLDERS}")

"""What the core asks of whoever evaluates the expressions of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from conveyor.core.plan import Plan
from conveyor.storage.v1 import storage_pb2
from conveyor.v1 import pipeline_pb2, run_pb2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a step that its trigger rule lets run.

    Without a `reason` it runs: its driver, or the pipeline that it runs, gets `params`, a serialized Struct, and its
    worker is one that `selector` wants; without them those of the plan count. If it is a gate, it asks `message`. The
    key of its lock is `lock`, if that has expressions. With CONDITION_FALSE it is skipped, with any other one it fails
    before a driver sees it.
    """

    reason: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED
    message: str = ""
    params: bytes = b""
    selector: pipeline_pb2.LabelSelector | None = None
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Expansion:
    """What becomes of a step with a matrix.

    Without a `reason` it has these instances: for each a serialized Struct of values. With CONDITION_FALSE it is
    skipped, with any other one it fails.
    """

    reason: run_pb2.StepReason.ValueType = run_pb2.STEP_REASON_UNSPECIFIED
    message: str = ""
    instances: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as it is when one of its steps is judged; `states` and `reasons` are one byte for each step."""

    plan: Plan
    head: storage_pb2.RunHead
    states: bytes | bytearray
    reasons: bytes | bytearray
    steps: Sequence[storage_pb2.StepRecord | None]


class StepInputs(Protocol):
    """The expressions of one run. Pure: what is stored, and nothing else, decides."""

    def judge(self, index: int, seen: Seen) -> Verdict:
        """What becomes of a step, or of an instance of a matrix; whatever it refers to has ended. Never raises."""
        ...

    def expand(self, index: int, seen: Seen) -> Expansion:
        """The instances of a step with a matrix; the same. Never raises."""
        ...

    def repeats(self, index: int) -> bool:
        """Whether the step's condition comes to the same in a run that retries this one, if earlier steps do."""
        ...

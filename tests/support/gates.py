"""Gates in tests: steps, and runs that wait at one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from conveyor.v1.pipeline_pb2 import Decision, Gate, Step
from conveyor.v1.run_pb2 import Run
from tests.support.belt import Belt

APPROVED, REJECTED = Decision.DECISION_APPROVED, Decision.DECISION_REJECTED


def gate(name: str, *needs: str, timeout: float = 0, **fields: Any) -> Step:
    """A gate. `approvals`, `default_decision`, `message` and `optional` are its own, other fields the step's."""
    own = {key: fields.pop(key) for key in ("approvals", "default_decision", "message", "optional") if key in fields}
    made = Step(id=name, needs=needs, gate=Gate(**own), **fields)
    if timeout:
        made.gate.timeout.FromTimedelta(timedelta(seconds=timeout))
    return made


async def opened(belt: Belt, *steps: Step, **fields: Any) -> Run:
    """A run on these steps, once its gate `ask` waits for people."""
    await belt.pipeline(*steps, **fields)
    run = await belt.start(version=7)
    await belt.until_step(run, "ask", "QUEUED", reason="AWAITING_DECISION")
    return run

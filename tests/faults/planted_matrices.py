"""Deliberate bugs in what becomes of the instances of a matrix."""

from __future__ import annotations

from conveyor.core import fanout, rules
from conveyor.core.draft import Draft
from conveyor.core.plan import Plan
from tests.faults.plant import plant, put


@plant("all instances of a matrix run at once", 3, faults=("kill-grpc-driver",), rate=30)
def instances_know_no_bound() -> None:
    def nobody(draft: Draft, places: range) -> int:
        return 0

    put(fanout, "_at_work", nobody)


@plant("an instance that failed stops nobody", 3, faults=("kill-grpc-driver",), rate=30)
def instances_go_on() -> None:
    def never(plan: Plan, states: bytes | bytearray, index: int) -> bool:
        return False

    put(rules, "is_stopping", never)
    put(fanout, "is_stopping", never)

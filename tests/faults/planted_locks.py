"""Deliberate bugs in who holds a lock."""

from __future__ import annotations

from collections.abc import Iterable

from conveyor.core.model import Decision
from conveyor.engine.locks import LockKeeper
from conveyor.state import locks, runs
from tests.faults.plant import plant, put


@plant("whoever wants a lock has it", 3, faults=("kill-grpc-driver",), rate=30)
def locks_are_free() -> None:
    def all_of_them(limits: Iterable[int]) -> int:
        return sum(1 for _ in limits)

    put(locks, "holding", all_of_them)


@plant("a step or run that has ended keeps its claim on its lock", 9, faults=("kill-grpc-driver",), rate=30)
def claims_stay() -> None:
    def none(decision: Decision) -> list[str]:
        return []

    async def nothing(self: LockKeeper) -> None:
        pass

    put(runs, "left", none)
    put(LockKeeper, "clear", nothing)


@plant("who comes last gets a lock first", 3, faults=("kill-grpc-driver",), rate=30)
def locks_go_to_the_last() -> None:
    made = locks.Lock.__init__

    def turned(self: locks.Lock, items: object) -> None:
        made(self, items)  # type: ignore[arg-type]
        self.claims.reverse()

    put(locks.Lock, "__init__", turned)

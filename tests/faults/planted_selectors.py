"""Deliberate bugs in who gets a step."""

from __future__ import annotations

from conveyor.core.selectors import ANY
from conveyor.engine import workers
from conveyor.engine.workers import Waiter
from tests.faults.plant import plant, put


@plant("labels of workers do not count", 3, faults=("kill-grpc-driver",))
def labels_are_ignored() -> None:
    put(workers, "fulfils", lambda labels, selector: True)


@plant("a step that waits goes to any worker", 3, faults=("kill-grpc-driver",), rate=30)
def rows_forget_selectors() -> None:
    put(Waiter, "row", property(lambda self: (self.definition, self.broadcast, ANY)))

"""Deliberate bugs in whose turn it is."""

from __future__ import annotations

from conveyor.core.model import Decision
from conveyor.engine.lanes import LaneKeeper
from conveyor.state import admission, lanes, runs
from tests.faults.plant import plant, put


@plant("runs of a resource that should queue go side by side", 3, resources=1)
def lanes_are_free() -> None:
    async def none(*_: object) -> lanes.Lane | None:
        return None

    put(admission.Admission, "_lane", none)


@plant("a run that has ended keeps its place in its lane", 6, resources=1)
def lane_places_stay() -> None:
    async def stay(self: LaneKeeper, run: runs.StoredRun, decision: Decision) -> lanes.Change | None:
        return None

    async def never(self: lanes.Lanes, namespace: str, run: str) -> bool:
        return False

    put(LaneKeeper, "leave", stay)
    put(lanes.Lanes, "has_ended", never)


@plant("runs that a newer one replaces are not cancelled", 3, faults=("kill-grpc-driver",), resources=1)
def replaced_runs_go_on() -> None:
    def none(self: lanes.Lane) -> tuple[list[str], str]:
        return [], ""

    put(lanes.Lane, "replaced", none)

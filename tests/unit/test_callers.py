"""Which runs may be made within others."""

from __future__ import annotations

import pytest

from conveyor.core import errors
from conveyor.core.limits import RUN_DEPTH, RUN_DESCENDANTS
from conveyor.state.callers import Caller
from conveyor.storage.v1 import storage_pb2


def within(depth: int, **fields: object) -> Caller:
    """The caller of a run within so many others."""
    heads = [storage_pb2.RunHead(id=f"r{n}", pipeline=f"p{n}", depth=n) for n in reversed(range(depth))]
    heads[0].root_run = "r0" if depth > 1 else ""
    return Caller("child", "step", heads, **fields)  # type: ignore[arg-type]


def test_runs_are_within_so_many_others_and_no_more() -> None:
    within(RUN_DEPTH).check_size("last")
    with pytest.raises(errors.Unfit, match=r"within 9 other runs; at most 8: p0 > p1 > .* > p8 > last"):
        within(RUN_DEPTH + 1).check_size("last")


def test_a_run_has_so_many_within_it_at_any_depth() -> None:
    within(1, descendants=RUN_DESCENDANTS).check_size("last")
    within(2, descendants=RUN_DESCENDANTS - 1).check_size("last")
    with pytest.raises(errors.Unfit, match="there are 2000 runs within run r0 already"):
        within(2, descendants=RUN_DESCENDANTS).check_size("last")


@pytest.mark.parametrize(
    ("held", "wanted", "refused"),
    [
        ([("a", 1)], ("a", 1), True),
        ([("a", 1)], ("b", 1), False),
        ([("a", 1)], ("", 0), False),
        ([("a", 2)], ("a", 2), False),
        ([("a", 2)], ("a", 1), True),
        ([("a", 2), ("a", 2)], ("a", 3), True),
        ([("a", 3), ("a", 3)], ("a", 3), False),
        ([], ("a", 1), False),
    ],
)
def test_a_run_waits_for_no_lock_that_waits_for_it(
    held: list[tuple[str, int]], wanted: tuple[str, int], refused: bool
) -> None:
    claims = [storage_pb2.LockClaim(key=key, limit=limit, held=True) for key, limit in [*held, ("", 0)]]
    lock = storage_pb2.LockClaim(key=wanted[0], limit=wanted[1])
    if not refused:
        within(2, claims=claims).check_lock(lock)
        return
    with pytest.raises(errors.Unfit, match="it would wait for lock a, which is held by a run or step that waits"):
        within(2, claims=claims).check_lock(lock)

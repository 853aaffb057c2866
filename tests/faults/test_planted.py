"""That the checks find deliberate bugs: two here that any round shows, all by `make faults-planted`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.hunt import hunt
from tests.faults.planted import PLANTED


@pytest.mark.parametrize("name", ["dispatch-before-all-needs", "request-ids-forgotten"])
async def test_a_deliberate_bug_is_found(name: str, tmp_path: Path) -> None:
    result = await asyncio.to_thread(hunt, PLANTED[name], tmp_path, seeds=10, seconds=3)
    assert result.found, result

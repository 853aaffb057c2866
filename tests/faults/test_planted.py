"""That the checks find deliberate bugs: two here that any round shows, all by `make faults-planted`."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.hunt import Hunter
from tests.faults.planted import PLANTED


@pytest.fixture(scope="module")
def hunter(tmp_path_factory: pytest.TempPathFactory) -> Hunter:
    return Hunter(tmp_path_factory.mktemp("hunt"), seconds=2)


@pytest.mark.parametrize("name", ["dispatch-before-all-needs", "request-ids-forgotten"])
async def test_a_deliberate_bug_is_found(name: str, hunter: Hunter) -> None:
    result = await asyncio.to_thread(hunter.hunt, PLANTED[name], seeds=10)
    assert result.found, result

"""Short rounds with fixed seeds. `make faults` plays longer ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.report import failure
from tests.faults.round import Settings, play


@pytest.mark.parametrize("seed", [1])
async def test_a_killed_server_breaks_nothing(seed: int, tmp_path: Path) -> None:
    outcome = await asyncio.to_thread(play, Settings(seed, seconds=3, faults=("kill-server",)), tmp_path / "round")
    assert not outcome.violations, failure(outcome)
    assert outcome.strikes

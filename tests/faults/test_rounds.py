"""Short rounds with fixed seeds. `make faults` plays longer ones."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.faults.cluster import Layout
from tests.faults.report import failure
from tests.faults.round import Settings, play


@pytest.mark.parametrize(
    ("seed", "layout", "faults"),
    [
        (1, Layout("sqlite"), ("kill-server", "failpoint-")),
        (2, Layout("sqlite"), ("kill-",)),
        (3, Layout("etcd", servers=2), ("kill-server", "kill-etcd")),
        (4, Layout("etcd", servers=3), ("kill-", "freeze-")),
    ],
    ids=["sqlite-server", "sqlite-all", "etcd-server", "etcd-all"],
)
async def test_what_must_hold_holds(seed: int, layout: Layout, faults: tuple[str, ...], tmp_path: Path) -> None:
    outcome = await asyncio.to_thread(play, Settings(seed, layout, 3, faults), tmp_path / "round")
    assert not outcome.violations, failure(outcome)
    assert outcome.strikes
    assert len(outcome.history.runs) > 5
    shutil.rmtree(tmp_path / "round")

"""The server's clock agrees with the system's."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from conveyor.engine import clock

SECOND = 1_000_000_000
EPOCH = 1_800_000_000 * SECOND


def test_it_is_right_although_its_process_lost_its_turn_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = 5 * SECOND
    # After some readings a second passes, after most of them a moment.
    pauses = itertools.cycle([SECOND, 100, 100, 100, SECOND, 100, 100])

    def read(start: int) -> int:
        nonlocal passed
        now = start + passed
        passed += next(pauses)
        return now

    fake = SimpleNamespace(monotonic_ns=lambda: read(0), time_ns=lambda: read(EPOCH))
    monkeypatch.setattr(clock, "time", fake)
    now = clock.anchored_clock()
    read_at = passed
    assert abs(now() - (EPOCH + read_at) // 1000) <= 1

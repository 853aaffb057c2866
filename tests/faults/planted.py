"""Deliberate bugs: each a small patch of the server, and the invariants that must notice it.

A fault suite that finds nothing may just be blind. `hunt.py` plays rounds with one of these in the servers until the
checks find it.
"""

from __future__ import annotations

from tests.faults import (
    planted_calls,
    planted_core,
    planted_engine,
    planted_expressions,
    planted_gates,
    planted_lanes,
    planted_locks,
    planted_matrices,
    planted_selectors,
    planted_store,
)
from tests.faults.plant import PLANTED, Plant

__all__ = [
    "PLANTED",
    "Plant",
    "planted_calls",
    "planted_core",
    "planted_engine",
    "planted_expressions",
    "planted_gates",
    "planted_lanes",
    "planted_locks",
    "planted_matrices",
    "planted_selectors",
    "planted_store",
]

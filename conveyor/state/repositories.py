"""The repositories of one store, made to work together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conveyor.state.admission import Admission
from conveyor.state.cache import Cache
from conveyor.state.commits import Committer
from conveyor.state.launcher import Launcher
from conveyor.state.lookup import Lookup
from conveyor.state.objects import Objects, now_micros
from conveyor.state.requests import Requests
from conveyor.state.runs import Runs
from conveyor.state.schedules import Schedules
from conveyor.state.starts import Starts
from conveyor.store.port import Store

CACHE_BYTES = 16 << 20
"""Serialized bytes of the objects that are kept in memory."""


class Repositories:
    """All that the API reads and writes; `runs` and `launcher` are the engine's."""

    def __init__(self, store: Store, runs: Runs, launcher: Launcher[Any], now: Callable[[], int] = now_micros) -> None:
        cache = Cache(CACHE_BYTES)
        self.runs = runs
        self.requests = Requests(store)
        self.lookup = Lookup(store, cache)
        committer = Committer(store, cache, self.requests)
        admission = Admission(self.lookup, runs.lanes, launcher)
        self.objects = Objects(store, self.lookup, admission, committer, runs, now)
        self.starts = Starts(self.lookup, admission, committer, runs)
        self.schedules = Schedules(store, self.lookup, admission, committer, self.starts, now)

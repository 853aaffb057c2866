"""Calls that were half done when the store went away, and are repeated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conveyor.core.events import InputRefused
from conveyor.store import open_sqlite
from conveyor.store.port import Put
from conveyor.v1 import run_pb2
from conveyor.v1 import run_service_pb2 as pb
from tests.support.api import refused, served
from tests.support.faulty import FaultyStore


async def test_a_cancel_that_was_noted_but_not_carried_out_is_not_answered_as_if(tmp_path: Path) -> None:
    """The store goes away between the two; the run then ends by itself."""
    store = FaultyStore(await open_sqlite(tmp_path))

    def gone_once_noted(puts: Sequence[Put]) -> str:
        store.away = store.away or any("/requests/" in put.key for put in puts)
        return ""

    async with served(tmp_path, store=store) as api:
        await api.setup()
        run = (await api.create()).run.id
        store.lose = gone_once_noted
        request = pb.CancelRunRequest(id=run, request_id="one")
        assert (await refused(api.runs.CancelRun(request))).kind == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        store.away = False
        broken = InputRefused(0, run_pb2.STEP_REASON_INPUT_TOO_LARGE, "too large")
        assert (await api.engine.handle("default", run, broken)).state.terminal
        for _ in range(2):
            assert (await refused(api.runs.CancelRun(request))).kind == ("FAILED_PRECONDITION", "RUN_FINISHED")

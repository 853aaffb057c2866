"""The sweep: everything that a crash or a lost message left undone is found in the stored state, and done."""

from __future__ import annotations

import asyncio
import hashlib

import structlog

from conveyor.core import errors
from conveyor.engine.loop import Engine
from conveyor.engine.timers import RunKey
from conveyor.state import keys
from conveyor.state.runs import StoredRun, Unreadable
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Put, Store, StoreError

log = structlog.get_logger("conveyor.engine")

_AT_ONCE = 32


class Sweep:
    """Goes through the unfinished runs: on start, when asked, and every `period` seconds."""

    def __init__(self, engine: Engine, store: Store, period: float) -> None:
        self._engine = engine
        self._store = store
        self._period = period
        self._asked = asyncio.Event()
        self.quarantined = 0

    def request(self) -> None:
        """Sweep soon: something came back, or was lost."""
        self._asked.set()

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            self._asked.clear()
            try:
                await self.once()
            except StoreError as error:
                log.debug("sweep_interrupted", error=str(error))
                await asyncio.sleep(1.0)
                continue
            try:
                async with asyncio.timeout(self._period):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def once(self) -> None:
        """Look at every unfinished run. Raises the store's errors."""
        engine = self._engine
        waiting, timed = engine.pool.waiting_runs(), engine.timers.runs()
        # Filled anew from what is stored: what was known of workers that are away may have ended elsewhere.
        engine.unattached.clear()
        active = await engine.runs.active()
        for _, run in waiting.difference(active):
            for index in list(engine.pool.waiting_steps(run)):
                engine.leave_row(run, index)
        for key in timed.difference(active):
            # Its end was elsewhere, and the news of it is lost.
            engine.timers.forget(key)
        looked_at = 0
        async for key, found in engine.take_in_hand(active):
            await self._look(key, found)
            looked_at += 1
            if looked_at % _AT_ONCE == 0:
                # Others are not to wait for all of it.
                await asyncio.sleep(0)
        await engine.locks.clear()

    async def _look(self, key: RunKey, found: StoredRun | errors.NotFound | Unreadable) -> None:
        if isinstance(found, errors.NotFound):
            if await self._store.get(keys.head(*key)) is None:
                await self._store.commit((), (), [keys.active(*key)])
            else:
                await self._quarantine(*key, "its snapshot is not there")
        elif isinstance(found, Unreadable):
            await self._quarantine(*key, found.message)
        elif not found.state.terminal:
            try:
                self._engine.resume(found)
            except (LookupError, ValueError) as error:
                await self._quarantine(*key, repr(error))

    async def _quarantine(self, namespace: str, run_id: str, error: str) -> None:
        """Put a run aside that cannot be read, so that the others go on."""
        source = keys.head(namespace, run_id)
        kv = await self._store.get(source)
        record = storage_pb2.QuarantineRecord(
            source=source, body=kv.value if kv else b"", error=error, time=self._engine.now()
        )
        name = hashlib.sha256(source.encode()).hexdigest()[:32]
        puts = [Put(keys.QUARANTINE + name, record.SerializeToString())]
        await self._store.commit((), puts, [keys.active(namespace, run_id)])
        self.quarantined += 1
        log.error("run_quarantined", namespace=namespace, run_id=run_id, error=error)

"""Why steps wait: said again when a driver's workers come or go."""

from __future__ import annotations

import asyncio

import structlog

from conveyor.core import errors
from conveyor.core.events import Waiting
from conveyor.engine.loop import Engine
from conveyor.engine.workers import DriverKey
from conveyor.store.port import StoreError

log = structlog.get_logger("conveyor.engine")

_GATHERS = 0.5
"""Seconds in which changes of one driver count as one: workers rarely come alone."""

_AT_MOST = 500
"""Steps of one driver that are told anew; those behind them hear it when they come to the front."""


class Explainer:
    """Keeps the reasons of waiting steps true."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pending: set[DriverKey] = set()

    def workers_changed(self, namespace: str, driver: str) -> None:
        """A worker of the driver came or went, here or at another replica."""
        key = (namespace, driver)
        if key not in self._pending and self._engine.pool.waiting(namespace, driver):
            self._pending.add(key)
            asyncio.get_running_loop().call_later(_GATHERS, self._begin, key)

    def _begin(self, key: DriverKey) -> None:
        self._pending.discard(key)
        self._engine.spawn(self._explain(key))

    async def _explain(self, key: DriverKey) -> None:
        for waiter in self._engine.pool.waiters(*key)[:_AT_MOST]:
            reason, message = self._engine.dispatcher.why(
                waiter.namespace, waiter.driver, waiter.definition, waiter.selector
            )
            try:
                await self._engine.handle(waiter.namespace, waiter.run, Waiting(waiter.index, reason, message))
            except errors.NotFound:
                continue
            except StoreError as error:
                log.debug("reason_not_stored", run_id=waiter.run, error=str(error))
                return

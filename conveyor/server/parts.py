"""The parts behind the port, made from a store, a bus and the logs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from conveyor.api.health import Health
from conveyor.api.services import Services, add_services
from conveyor.bus.nats import Bus
from conveyor.core.plan import SECOND
from conveyor.engine import restored
from conveyor.engine.clock import Now
from conveyor.engine.drivers import Drivers
from conveyor.engine.explain import Explainer
from conveyor.engine.inbox import Inbox
from conveyor.engine.launch import Launcher
from conveyor.engine.loop import Engine
from conveyor.engine.losses import OrphanedSessions
from conveyor.engine.metrics import EngineMetrics
from conveyor.engine.presence import Presence
from conveyor.engine.remote import RemoteRuns, SessionsWatch
from conveyor.engine.retention import Retention
from conveyor.engine.schedules import Scheduler
from conveyor.engine.sessions_view import SessionsView
from conveyor.engine.sweep import Sweep
from conveyor.engine.tickets import JetStreamTickets
from conveyor.engine.waits import Waits
from conveyor.engine.workers import Pool
from conveyor.gateway.service import WorkerServicer, add_worker_service
from conveyor.gateway.sessions import Sessions
from conveyor.logs.store import LogStore
from conveyor.server.config import Config
from conveyor.server.metrics import gauge
from conveyor.state import keys
from conveyor.state.repositories import Repositories
from conveyor.state.runs import Runs
from conveyor.state.sessions import SessionStore
from conveyor.state.views import timestamp
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Store, StoreError
from conveyor.v1 import server_pb2
from conveyor.version import VERSION
from conveyor.watch.feed import Feed
from conveyor.watch.hub import Hub

log = structlog.get_logger("conveyor.server")

_HEALTH_PERIOD = 1.0
_STORE_ANSWERS_WITHIN = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

Spawn = Callable[[str, Coroutine[Any, Any, Any]], None]


class Parts:
    """Engine, gateway, watch hub and what serves them."""

    def __init__(
        self,
        config: Config,
        record: storage_pb2.ReplicaRecord,
        store: Store,
        bus: Bus,
        logs: LogStore,
        now: Now,
        registry: CollectorRegistry,
    ) -> None:
        replica = record.id
        self._record = record
        self._health: Health | None = None
        self._store_available = True
        self._look_again = asyncio.Event()
        self._config = config
        self._store = store
        self._bus = bus
        self._logs = logs
        self._now = now
        self.runs = Runs(store)
        metrics = EngineMetrics(registry)
        self.engine = Engine(self.runs, Pool(), now, sessions=SessionsView(replica), metrics=metrics)
        self.tickets = JetStreamTickets(bus, self.engine)
        self.engine.tickets = self.tickets
        self.launcher = Launcher(self.engine, int(config.broadcast_timeout))
        self.repositories = Repositories(store, self.runs, self.launcher, now)
        self.engine.calls.starts = self.repositories.starts
        self.session_store = SessionStore(store)
        self.drivers = Drivers(store, self.engine, self.tickets, self.session_store)
        self.sessions = Sessions(self.engine, self.session_store, replica, config.session_ttl)
        self.feed = Feed(store)
        self.hub = Hub(self.feed, self.runs, now)
        self.presence = Presence(store, record, config.lease_ttl)
        self.sweep = Sweep(self.engine, store, config.sweep_period)
        self.scheduler = Scheduler(self.engine, self.repositories.schedules, store, self.presence)
        self.inbox = Inbox(bus, self.engine, store)
        self._sessions_watch = SessionsWatch(
            self.engine, store, self.sessions.moved, Explainer(self.engine).workers_changed
        )
        self._orphans = OrphanedSessions(self.engine, self.session_store, self.presence, self.sweep, replica)
        self._retention = Retention(
            store,
            self.runs,
            self.presence,
            now,
            self._delete_run,
            age=int(config.run_retention * SECOND),
            count=config.max_runs,
        )

    def serve(self, server: Any) -> None:
        """Add all services to a server."""
        services = Services(
            repositories=self.repositories,
            engine=self.engine,
            hub=self.hub,
            logs=self._logs,
            waits=Waits(self.engine, self.session_store),
            drivers=self.drivers,
            info=self._info,
        )
        self._health = add_services(server, services)
        add_worker_service(WorkerServicer(self.engine, self.sessions, self._logs), server)

    def _info(self) -> server_pb2.ServerInfo:
        return server_pb2.ServerInfo(
            version=VERSION,
            replica=self._record.id,
            start_time=timestamp(self._record.start_time),
            store="etcd" if self._config.etcd else "sqlite",
            store_available=self._store_available,
            broker_available=self._bus.available,
        )

    async def _watch_health(self) -> None:
        """Keep health up to date, for ever."""
        while True:
            try:
                async with asyncio.timeout(_STORE_ANSWERS_WITHIN):
                    await self._store.get(keys.LEADER)
                available = True
            except (StoreError, TimeoutError) as error:
                available = False
                if self._store_available:
                    log.warning("store_unavailable", error=str(error))
            if available and not self._store_available:
                log.info("store_available")
                self.sweep.request()
            self._store_available = available
            if self._health is not None:
                await self._health.set(store=available, broker=self._bus.available)
            self._look_again.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEALTH_PERIOD):
                    await self._look_again.wait()

    def measure(self, registry: CollectorRegistry) -> None:
        """Add what is counted at the moment of asking."""
        gauge(registry, "conveyor_workers", "Workers that are connected here.", lambda: len(self.sessions))
        gauge(registry, "conveyor_watchers", "Open watches of runs.", lambda: self.hub.subscribers)
        gauge(registry, "conveyor_active_runs", "Unfinished runs with a timer here.", lambda: len(self.engine.timers))
        gauge(registry, "conveyor_schedules", "Schedules that run when due.", lambda: len(self.scheduler))
        gauge(
            registry,
            "conveyor_quarantined",
            "Records and messages put aside since the start.",
            lambda: self.sweep.quarantined + self.inbox.quarantined,
        )

    async def start(self, spawn: Spawn) -> None:
        """Read what must be known first, then let everything run. A store that goes away meanwhile is waited for."""
        await _as_often_as_it_takes(self.feed.start)
        await _as_often_as_it_takes(self._sessions_watch.read)
        await _as_often_as_it_takes(lambda: restored.take_up(self.engine, self._store, self.repositories.schedules))
        if self._config.etcd:
            # Only others' changes are looked at: with the embedded store there are none.
            self.feed.follow_raw(RemoteRuns(self.engine).take)
        self._bus.on_available(self._bus_changed)
        spawn("feed", self.feed.run())
        spawn("sessions-watch", self._sessions_watch.run())
        spawn("presence", self.presence.run())
        spawn("sweep", self.sweep.run())
        spawn("timers", self.engine.timers.run(self.engine.tick))
        spawn("sessions", self.sessions.watch_over())
        spawn("orphans", self._orphans.run())
        spawn("retention", self._retention.run())
        spawn("schedules", self.scheduler.run())
        spawn("tickets", self.tickets.run())
        spawn("inbox", self.inbox.run())
        spawn("health", self._watch_health())

    def _bus_changed(self, available: bool) -> None:
        self._look_again.set()
        if available:
            self.sweep.request()

    async def _delete_run(self, namespace: str, run: str) -> None:
        await self.runs.delete(namespace, run)
        await self._logs.purge(namespace, run)

    def end_streams(self) -> None:
        """End the streams of workers and watchers."""
        self.sessions.close()
        self.hub.close()

    async def close(self) -> None:
        """Let what is under way end."""
        if self._health is not None:
            await self._health.stop()
        await self.engine.close()
        await self.presence.leave()


async def _as_often_as_it_takes(read: Callable[[], Awaitable[None]]) -> None:
    """Repeat `read` until the store answers. That it is away is said once, as by the watch over health."""
    pause, away = _FIRST_PAUSE, False
    while True:
        try:
            await read()
            break
        except StoreError as error:
            if not away:
                log.warning("store_unavailable", error=str(error))
            away = True
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
    if away:
        log.info("store_available")

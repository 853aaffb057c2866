"""The parts behind the port, made from a store, a bus and the logs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from conveyor.bus.nats import Bus
from conveyor.core.plan import SECOND
from conveyor.engine.clock import Now
from conveyor.engine.inbox import Inbox
from conveyor.engine.launch import Launcher
from conveyor.engine.loop import Engine
from conveyor.engine.losses import OrphanedSessions
from conveyor.engine.presence import Presence
from conveyor.engine.remote import RemoteRuns, SessionsWatch
from conveyor.engine.retention import Retention
from conveyor.engine.sessions_view import SessionsView
from conveyor.engine.sweep import Sweep
from conveyor.engine.tickets import JetStreamTickets
from conveyor.engine.workers import Pool
from conveyor.gateway.sessions import Sessions
from conveyor.logs.store import LogStore
from conveyor.server.config import Config
from conveyor.state.repositories import Repositories
from conveyor.state.runs import Runs
from conveyor.state.sessions import SessionStore
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Store
from conveyor.version import VERSION
from conveyor.watch.feed import Feed
from conveyor.watch.hub import Hub

Spawn = Callable[[str, Coroutine[Any, Any, Any]], None]


class Parts:
    """Engine, gateway, watch hub and what serves them."""

    def __init__(
        self, config: Config, replica: str, address: str, store: Store, bus: Bus, logs: LogStore, now: Now
    ) -> None:
        self._config = config
        self._store = store
        self._bus = bus
        self._logs = logs
        self._now = now
        self.runs = Runs(store)
        self.engine = Engine(self.runs, Pool(), now, sessions=SessionsView(replica))
        self.tickets = JetStreamTickets(bus, self.engine)
        self.engine.tickets = self.tickets
        self.launcher = Launcher(self.engine, int(config.broadcast_timeout))
        self.repositories = Repositories(store, self.runs, self.launcher, now)
        self.session_store = SessionStore(store)
        self.sessions = Sessions(self.engine, self.session_store, replica, config.session_ttl)
        self.feed = Feed(store)
        self.hub = Hub(self.feed, self.runs, now)
        record = storage_pb2.ReplicaRecord(id=replica, start_time=now(), address=address, version=VERSION)
        self.presence = Presence(store, record, config.lease_ttl)
        self.sweep = Sweep(self.engine, store, config.sweep_period)
        self.inbox = Inbox(bus, self.engine, store)
        self._sessions_watch = SessionsWatch(self.engine, store, self.sessions.moved)
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

    async def start(self, spawn: Spawn) -> None:
        """Read what must be known first, then let everything run. Raises the store's errors."""
        await self.feed.start()
        await self._sessions_watch.read()
        if self._config.etcd:
            # Only others' changes are looked at: with the embedded store there are none.
            self.feed.follow_raw(RemoteRuns(self.engine).take)
        self._bus.on_available(lambda available: self.sweep.request() if available else None)
        spawn("feed", self.feed.run())
        spawn("sessions-watch", self._sessions_watch.run())
        spawn("presence", self.presence.run())
        spawn("sweep", self.sweep.run())
        spawn("timers", self.engine.timers.run(self.engine.tick))
        spawn("sessions", self.sessions.watch_over())
        spawn("orphans", self._orphans.run())
        spawn("retention", self._retention.run())
        spawn("tickets", self.tickets.run())
        spawn("inbox", self.inbox.run())

    async def _delete_run(self, namespace: str, run: str) -> None:
        await self.runs.delete(namespace, run)
        await self._logs.purge(namespace, run)

    def end_streams(self) -> None:
        """End the streams of workers and watchers."""
        self.sessions.close()
        self.hub.close()

    async def close(self) -> None:
        """Let what is under way end."""
        await self.engine.close()
        await self.presence.leave()

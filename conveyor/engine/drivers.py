"""The drivers that made themselves known: stored records, sessions of all replicas, and JetStream consumers."""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.bus.consumers import ConsumerState
from conveyor.core import errors
from conveyor.engine.loop import Engine
from conveyor.engine.tickets import JetStreamTickets
from conveyor.state import keys
from conveyor.state.sessions import SessionStore
from conveyor.state.views import seen_workers, timestamp
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Store
from conveyor.v1 import driver_pb2, run_pb2

_DEFINITIONS_SHOWN = 64


class Drivers:
    """Answers who is there. Raises the store's errors."""

    def __init__(self, store: Store, engine: Engine, tickets: JetStreamTickets, sessions: SessionStore) -> None:
        self._store = store
        self._engine = engine
        self._tickets = tickets
        self._sessions = sessions

    async def get(self, namespace: str, name: str) -> driver_pb2.Driver:
        """One driver. Raises errors.NotFound when none of that name was ever seen."""
        driver = self._driver(namespace, name, await self._sessions.driver(namespace, name))
        if driver is None:
            raise errors.NotFound(f"no worker of a driver {name} was ever seen in namespace {namespace}")
        return driver

    async def list(self, namespace: str, after: str, limit: int) -> tuple[list[driver_pb2.Driver], bool]:
        """Drivers in the order of their names, after the name `after` (""), and whether more follow."""
        prefix = keys.drivers(namespace)
        listing = await self._store.list(prefix, prefix + after if after else "", limit)
        records = {kv.key[len(prefix) :]: storage_pb2.DriverRecord.FromString(kv.value) for kv in listing.items}
        names = set(records)
        # Drivers that take part over JetStream alone are known by their consumers.
        last = max(names, default="") if listing.more else "\U0010ffff"
        names.update(c.driver for c in self._tickets.consumers(namespace) if after < c.driver <= last)
        ordered = sorted(names)
        found = [self._driver(namespace, name, records.get(name)) for name in ordered[:limit]]
        return [driver for driver in found if driver is not None], listing.more or len(ordered) > limit

    async def delete(self, namespace: str, name: str) -> driver_pb2.Driver:
        """Forget a driver. Raises errors.NotFound, and errors.InUse while a worker of it is connected."""
        driver = await self.get(namespace, name)
        if driver.workers:
            raise errors.InUse(f"driver {name} has {len(driver.workers)} connected workers; stop them first")
        await self._store.commit((), (), [keys.driver(namespace, name)])
        return driver

    def _driver(self, namespace: str, name: str, record: storage_pb2.DriverRecord | None) -> driver_pb2.Driver | None:
        consumers = [c for c in self._tickets.consumers(namespace) if c.driver == name]
        if record is None and not consumers:
            return None
        driver = driver_pb2.Driver(namespace=namespace, name=name)
        if record is not None:
            driver.create_time.CopyFrom(timestamp(record.create_time) or driver.create_time)
            driver.last_seen_time.CopyFrom(timestamp(record.last_seen_time) or driver.last_seen_time)
            driver.last_workers.extend(seen_workers(record))
        driver.workers.extend(self._workers(namespace, name))
        driver.workers.extend(_consumer_worker(consumer) for consumer in consumers if consumer.pulling)
        return driver

    def _workers(self, namespace: str, name: str) -> Sequence[driver_pb2.Worker]:
        found = []
        for record in self._engine.sessions.of(namespace, name):
            here = self._engine.pool.session(record.id)
            if here is not None and here.outbox is None:
                continue  # Its stream is gone; it may come back.
            worker = driver_pb2.Worker(
                name=record.worker,
                session=record.id,
                transport=run_pb2.TRANSPORT_GRPC,
                slots=here.slots if here is not None else record.slots,
                busy=len(here.held) if here is not None else 0,
                definitions=record.definitions[:_DEFINITIONS_SHOWN],
                labels=record.labels,
                connect_time=timestamp(record.connect_time),
                replica=record.replica,
                sdk=record.sdk,
                draining=here.draining if here is not None else False,
            )
            found.append(worker)
        return sorted(found, key=lambda worker: worker.name)


def _consumer_worker(consumer: ConsumerState) -> driver_pb2.Worker:
    worker = driver_pb2.Worker(
        name=consumer.driver,
        session=consumer.driver,
        transport=run_pb2.TRANSPORT_JETSTREAM,
        busy=consumer.num_ack_pending,
        definitions=[f.removeprefix("resources.") for f in consumer.filters if f.startswith("resources.")],
    )
    worker.connect_time.FromJsonString(consumer.created)
    return worker

"""Engine, gateway and watch hub over a real store, and workers that speak the Work protocol over a real socket.

A `Replica` is what one server process has, without API, bus and logs. Several may share one store, as with etcd.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from conveyor.api.interceptors import ServerInterceptor
from conveyor.core.events import Event
from conveyor.core.model import Decision
from conveyor.engine.explain import Explainer
from conveyor.engine.launch import Launcher, PreparedRun
from conveyor.engine.loop import Engine
from conveyor.engine.losses import OrphanedSessions
from conveyor.engine.presence import Presence
from conveyor.engine.remote import RemoteRuns, SessionsWatch
from conveyor.engine.sessions_view import SessionsView
from conveyor.engine.sweep import Sweep
from conveyor.engine.workers import Pool
from conveyor.gateway.service import WorkerServicer, add_worker_service
from conveyor.gateway.sessions import Sessions
from conveyor.state import keys
from conveyor.state.runs import Runs, StoredRun
from conveyor.state.sessions import SessionStore
from conveyor.storage.v1 import storage_pb2
from conveyor.store.port import Store
from conveyor.v1 import pipeline_pb2, resource_pb2, result_pb2, worker_pb2, worker_service_pb2
from conveyor.v1.worker_service_pb2_grpc import WorkerServiceStub
from conveyor.watch.feed import Feed
from conveyor.watch.hub import Hub
from tests.support.faulty import Clock, FaultyStore

PENDING, QUEUED, RUNNING, RETRYING, SUCCEEDED, FAILED, CANCELLED, SKIPPED = range(1, 9)
RUN_RUNNING, RUN_CANCELLING, RUN_SUCCEEDED, RUN_FAILED, RUN_CANCELLED = range(2, 7)


async def until(condition: Callable[[], Any], within: float = 30.0) -> Any:
    """What the condition says once that is true; it may be a coroutine function."""
    async with asyncio.timeout(within):
        while True:
            said = condition()
            if asyncio.iscoroutine(said):
                said = await said
            if said:
                return said
            await asyncio.sleep(0.005)


class Replica:
    """What one server process has. Sweeps and looks at orphans only happen when the test calls for them."""

    def __init__(
        self, store: Store, name: str = "r1", *, clock: Clock | None = None, ttl: float = 15.0, lease: float = 5.0
    ) -> None:
        self.store = FaultyStore(store)
        self.name = name
        self.clock = clock or Clock()
        self.runs = Runs(self.store)
        self.engine = Engine(self.runs, Pool(), self.clock, sessions=SessionsView(name))
        self.launcher = Launcher(self.engine)
        self.session_store = SessionStore(self.store)
        self.sessions = Sessions(self.engine, self.session_store, name, ttl)
        self.feed = Feed(self.store)
        self.hub = Hub(self.feed, self.runs, self.clock)
        self.presence = Presence(self.store, storage_pb2.ReplicaRecord(id=name), lease)
        self.sweep = Sweep(self.engine, self.store, 60.0)
        self.sessions_watch = SessionsWatch(
            self.engine, self.store, self.sessions.moved, Explainer(self.engine).workers_changed
        )
        self.orphans = OrphanedSessions(self.engine, self.session_store, self.presence, self.sweep, name)
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self, *, shared: bool = False) -> Replica:
        """`shared`: other replicas use the store too."""
        await self.feed.start()
        await self.sessions_watch.read()
        if shared:
            self.feed.follow_raw(RemoteRuns(self.engine).take)
            await self.presence.renew()
            self._spawn(self.presence.run())
        self._spawn(self.feed.run())
        self._spawn(self.sessions_watch.run())
        self._spawn(self.sessions.watch_over())
        self._spawn(self.engine.timers.run(self.engine.tick))
        server = grpc.aio.server(interceptors=[ServerInterceptor()], options=[("grpc.so_reuseport", 0)])
        add_worker_service(WorkerServicer(self.engine, self.sessions, None), server)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._server = server
        return self

    def _spawn(self, work: Any) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    @property
    def ended_tasks(self) -> list[asyncio.Task[Any]]:
        """Those that should run for ever and don't."""
        return [task for task in self._tasks if task.done()]

    async def stop(self) -> None:
        """An orderly end."""
        self.sessions.close()
        self.hub.close()
        await self._end()
        await self.presence.leave()

    async def kill(self) -> None:
        """As if the process were gone: nothing that it still does reaches the store."""
        self.store.away = True
        await self._end()

    async def _end(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.engine.close()

    # Runs

    def prepare(self, *steps: pipeline_pb2.Step, **fields: Any) -> PreparedRun:
        """A run that is not stored yet."""
        pipeline = pipeline_pb2.Pipeline(namespace="default", name="p", steps=steps, **fields) if steps else None
        return self.launcher.prepare("default", resource(), pipeline, labels={})

    async def launch(self, *steps: pipeline_pb2.Step, **fields: Any) -> str:
        """Starts a run of a pipeline with these steps (none: a broadcast); its id."""
        prepared = self.prepare(*steps, **fields)
        revision = await self.store.commit(prepared.guards, prepared.puts)
        await self.launcher.launched(prepared, revision)
        return prepared.run_id

    async def handle(self, run: str, event: Event) -> Decision:
        """One event."""
        return await self.engine.handle("default", run, event)

    async def stored(self, run: str) -> StoredRun:
        """The run as the store has it."""
        return await self.runs.load("default", run)

    async def states(self, run: str) -> list[int]:
        """The states of its steps."""
        return list((await self.stored(run)).head.step_states)

    async def record(self, run: str, step: str) -> storage_pb2.StepRecord:
        """The record of a step that was queued before."""
        stored = await self.stored(run)
        record = stored.state.steps[stored.state.plan.index[step]]
        assert record is not None
        return record

    async def ended(self, run: str, within: float = 30.0) -> storage_pb2.RunHead:
        """Waits until it is terminal; its head."""

        async def terminal() -> storage_pb2.RunHead | None:
            stored = await self.stored(run)
            return stored.head if stored.state.terminal else None

        head: storage_pb2.RunHead = await until(terminal, within)
        return head

    async def in_state(self, run: str, step: str, state: int) -> None:
        """Waits until a step is in a state."""

        async def there() -> bool:
            stored = await self.stored(run)
            return stored.head.step_states[stored.state.plan.index[step]] == state

        await until(there)

    @property
    def held(self) -> int:
        """Places of workers that are taken."""
        return sum(len(worker.held) for worker in self.engine.pool)

    def assert_at_rest(self) -> None:
        """Nothing is left of runs that have ended."""
        assert self.held == 0
        assert not self.engine.pool.waiting_runs()
        assert len(self.engine.timers) == 0
        assert not self.engine._entries
        assert not self.engine._tasks


def resource(definition: str = "app") -> resource_pb2.Resource:
    """A resource."""
    return resource_pb2.Resource(namespace="default", definition=definition, name="x", generation=1)


def step(name: str, *needs: str, driver: str = "", **fields: Any) -> pipeline_pb2.Step:
    """A step whose driver has its name, if not said otherwise."""
    return pipeline_pb2.Step(id=name, driver=driver or name, needs=needs, **fields)


GRAPH = pipeline_pb2.ORDER_GRAPH

Behaviour = Callable[["Worker", worker_pb2.Assignment], Awaitable[None]]


async def ok(worker: Worker, given: worker_pb2.Assignment) -> None:
    """Succeeds at once."""
    await worker.answer(given)


async def fail(worker: Worker, given: worker_pb2.Assignment) -> None:
    """Fails at once."""
    await worker.answer(given, result_pb2.OUTCOME_FAILED)


async def mute(worker: Worker, given: worker_pb2.Assignment) -> None:
    """Never answers by itself."""


async def dup(worker: Worker, given: worker_pb2.Assignment) -> None:
    """Answers twice, then contradicts itself."""
    await worker.answer(given)
    await worker.answer(given)
    await worker.answer(given, result_pb2.OUTCOME_FAILED)


def flaky(times: int) -> Behaviour:
    """Fails so many attempts of each step, then succeeds."""

    async def behave(worker: Worker, given: worker_pb2.Assignment) -> None:
        await (fail if given.attempt <= times else ok)(worker, given)

    return behave


class Worker:
    """One worker. What it is given and told is kept; what it does with it is its behaviour."""

    def __init__(
        self,
        replica: Replica,
        driver: str,
        behaviour: Behaviour = ok,
        *,
        slots: int = 1,
        definitions: Iterable[str] = (),
        reads: bool = True,
    ) -> None:
        self.address = replica.address
        self.driver = driver
        self.behaviour = behaviour
        self.slots = slots
        self.definitions = list(definitions)
        self.reads = reads
        self.session = ""
        self.welcome = worker_pb2.Welcome()
        self.given: list[worker_pb2.Assignment] = []
        self.told: list[worker_pb2.Cancellation] = []
        self.acks: list[result_pb2.ResultAck] = []
        self.drained = False
        self.holding: dict[str, worker_pb2.Holding] = {}
        self.error: grpc.aio.AioRpcError | None = None
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None
        self._writing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self, replica: Replica | None = None, **hello: Any) -> Worker:
        """Says Hello, with its session and what it holds if it was connected before, and waits for Welcome."""
        if replica is not None:
            self.address = replica.address
        self._channel = grpc.aio.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._call = WorkerServiceStub(self._channel).Work()
        said: dict[str, Any] = {
            "driver": self.driver,
            "worker": f"{self.driver}-worker",
            "slots": self.slots,
            "session": self.session,
            "definitions": self.definitions,
            "holding": self.holding.values(),
            **hello,
        }
        await self._call.write(worker_service_pb2.WorkRequest(hello=worker_pb2.Hello(**said)))
        first = await self._call.read()
        if first is grpc.aio.EOF:
            raise AssertionError("the stream ended before Welcome")
        self.welcome = first.welcome
        self.session = first.welcome.session
        for each in first.welcome.revoked:
            self.holding.pop(each.token, None)
        self.error = None
        if self.reads:
            self._take(first)
            self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]
        return self

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self._take(message)
            await self._call.code()
        except grpc.aio.AioRpcError as error:
            self.error = error

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.welcome.heartbeat_interval.ToTimedelta().total_seconds())
            await self.say(heartbeat=worker_pb2.Heartbeat())

    def _take(self, message: worker_service_pb2.WorkResponse) -> None:
        self.acks += message.acks
        self.told += message.cancellations
        self.drained = self.drained or message.HasField("drained")
        for given in message.assignments:
            self.given.append(given)
            self.holding[given.token] = worker_pb2.Holding(
                run=given.run, step=given.step, attempt=given.attempt, token=given.token
            )
            self._tasks.append(asyncio.create_task(self._behave(given)))
        for ack in message.acks:
            for token, held in list(self.holding.items()):
                if (held.run, held.step, held.attempt) == (ack.run, ack.step, ack.attempt):
                    del self.holding[token]

    async def _behave(self, given: worker_pb2.Assignment) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.behaviour(self, given)

    async def say(self, **fields: Any) -> None:
        """Sends one message."""
        async with self._writing:
            await self._call.write(worker_service_pb2.WorkRequest(**fields))

    async def answer(
        self, given: worker_pb2.Assignment, outcome: result_pb2.Outcome.ValueType = result_pb2.OUTCOME_SUCCEEDED
    ) -> None:
        """Sends a result."""
        await self.say(results=[report(given, outcome)])

    async def cut(self) -> None:
        """The connection breaks; the worker lives on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._call is not None:
            self._call.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def hang(self) -> None:
        """Says nothing more, with its connection open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next_given(self, count: int = 1) -> worker_pb2.Assignment:
        """Waits for the assignment of this number."""
        await until(lambda: len(self.given) >= count)
        return self.given[count - 1]

    async def ended(self) -> grpc.aio.AioRpcError:
        """Waits for the server to end the stream; the error."""
        return await until(lambda: self.error)  # type: ignore[no-any-return]


def report(
    given: worker_pb2.Assignment,
    outcome: result_pb2.Outcome.ValueType = result_pb2.OUTCOME_SUCCEEDED,
    driver: str = "",
) -> result_pb2.ResultReport:
    """The result of an assignment."""
    return result_pb2.ResultReport(
        run=given.run,
        step=given.step,
        attempt=given.attempt,
        token=given.token,
        driver=driver,
        result=result_pb2.DriverResult(outcome=outcome),
    )


def reason(error: grpc.aio.AioRpcError) -> str:
    """The ErrorInfo reason of an error."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return ""


async def active(store: Store) -> list[str]:
    """The unfinished runs' keys."""
    return [kv.key for kv in (await store.list(keys.ACTIVE, keys_only=True)).items]

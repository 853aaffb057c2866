"""A driver: a handler that reconciles resources, and how it is run as a process or inside of another program."""

import asyncio
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, get_args

from conveyor.sdk import config
from conveyor.sdk.config import Tls
from conveyor.sdk.errors import ConfigurationError
from conveyor.version import VERSION

if TYPE_CHECKING:
    from conveyor.sdk.runner import Handler

HandlerT = TypeVar("HandlerT", bound="Handler")
TransportName = Literal["grpc", "jetstream"]

_log = logging.getLogger(__name__)


class Transport(Protocol):
    """A way to take part."""

    async def run(self) -> None:
        """Take part until drained. Cancelled, it stops what runs and reports nothing of it."""

    def drain(self) -> None:
        """Take no more work; `run` returns when what runs has ended and its results are stored."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker says of itself."""

    driver: str
    namespace: str
    worker: str
    slots: int
    definitions: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    sdk: str = f"conveyor-python/{VERSION}"


class Driver:
    """A driver and one worker of it.

        driver = Driver("compile", definitions=["app"])

        @driver.reconcile
        async def compile(job: Job) -> dict:
            job.log("building %s", job.spec["repository"])
            return {"wheel": "…"}

        driver.run()

    An argument that is not given comes from the environment: `namespace` from CONVEYOR_NAMESPACE, `address` from
    CONVEYOR_ADDRESS, `slots` from CONVEYOR_SLOTS (else 1), `transport` from CONVEYOR_TRANSPORT (else "grpc"), `nats`
    from CONVEYOR_NATS, `tls` from CONVEYOR_TLS_*, and each label from CONVEYOR_WORKER_LABELS. `run` takes options that
    come before both.
    """

    def __init__(
        self,
        name: str,
        *,
        definitions: Sequence[str] = (),
        namespace: str | None = None,
        address: str | Sequence[str] | None = None,
        slots: int | None = None,
        worker: str | None = None,
        labels: Mapping[str, str] | None = None,
        transport: TransportName | None = None,
        nats: str | None = None,
        tls: Tls | None = None,
        drain_timeout: float | None = None,
    ) -> None:
        """`definitions`: those whose resources it wants; none: steps for any definition, and no broadcasts.

        `slots`: how many jobs it takes at a time. `worker`: what this process calls itself, default host-pid.
        `labels`: what steps may choose it by, over the transport "grpc". `nats`: the URL of the broker, for the
        transport "jetstream". `drain_timeout`: how many seconds a drain waits for what runs before it is given up
        (None: until it ends); the server then counts this worker as lost.
        """
        if isinstance(definitions, str):
            raise ConfigurationError("definitions is a list of names, not a name")
        self.name = name
        self.definitions = tuple(definitions)
        self.namespace = namespace
        self.address = address
        self.slots = slots
        self.worker = worker or f"{socket.gethostname()}-{os.getpid()}"
        self.labels = dict(labels or {})
        self.transport = transport
        self.nats = nats
        self.tls = tls
        self.drain_timeout = drain_timeout
        self._handler: Handler | None = None
        self._draining: asyncio.Event | None = None

    def reconcile(self, handler: HandlerT) -> HandlerT:
        """Make a function the driver's handler: `async def`, or `def`, which runs in a thread.

        It gets a Job and returns the data for later steps (a dict), a message (a str), `job.succeed(…)`, or None. An
        exception fails the attempt: `raise job.fail(…)`, or any other, whose text becomes the message.
        """
        if self._handler is not None:
            raise ConfigurationError(f"the driver {self.name} has a handler already; one driver, one handler")
        self._handler = handler
        return handler

    def run(self, argv: Sequence[str] | None = None) -> None:
        """Run as a process: read the command line, serve, drain on SIGTERM or SIGINT, then return.

        A second signal exits at once. Errors end the process with a line on stderr and status 1, or 2 for a wrong
        command line. `argv` defaults to the process's own.
        """
        from conveyor.sdk.command import run

        run(self, argv)

    async def serve(self) -> None:
        """Serve on the running event loop until `drain` is called or the caller is cancelled.

        Waits for the server as long as it takes. ApiError when the server refuses this worker; ConfigurationError
        when a setting is malformed.
        """
        self._draining = asyncio.Event()
        transport = self._open_transport()
        running = asyncio.create_task(transport.run())
        asked = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait([running, asked], return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                transport.drain()
                await asyncio.wait([running], timeout=self.drain_timeout)
            if running.done():
                await running
            else:
                _log.warning("given up what still runs after %g s", self.drain_timeout)
        finally:
            for task in (running, asked):
                task.cancel()
            await asyncio.wait([running, asked])

    def drain(self) -> None:
        """Take no more work; `serve` returns when what runs has ended. On the event loop of `serve`."""
        if self._draining is not None:
            self._draining.set()

    def capture_logging(self, level: int = logging.INFO, logger: str = "") -> AbstractContextManager[None]:
        """Send the records of `logging` that a job makes to that job's log as well, from now on.

        `logger` is the one to listen to, the root by default; its level is lowered to `level` if it is higher. The
        result is a context manager that ends it; it needs not be entered.
        """
        from conveyor.sdk.job import capturing_handler

        source = logging.getLogger(logger or None)
        handler = capturing_handler()
        handler.setLevel(level)
        before = source.level
        if source.getEffectiveLevel() > level:
            source.setLevel(level)
        source.addHandler(handler)

        @contextmanager
        def captured() -> Iterator[None]:
            try:
                yield
            finally:
                source.removeHandler(handler)
                source.setLevel(before)

        return captured()

    def _open_transport(self) -> Transport:
        if self._handler is None:
            raise ConfigurationError(
                f"the driver {self.name} has no handler; decorate a function with @driver.reconcile"
            )
        options = WorkerOptions(
            driver=self.name,
            namespace=config.namespace(self.namespace),
            worker=self.worker,
            slots=self.slots if self.slots is not None else _slots(os.environ.get("CONVEYOR_SLOTS") or "1"),
            definitions=self.definitions,
            labels=config.worker_labels(self.labels),
        )
        if not 1 <= options.slots <= 10_000:
            raise ConfigurationError(f"slots is {options.slots}; it must be from 1 to 10000")
        transport = self.transport or os.environ.get("CONVEYOR_TRANSPORT") or "grpc"
        if transport == "grpc":
            from conveyor.sdk.connection import Connection
            from conveyor.sdk.grpc_transport import GrpcTransport

            return GrpcTransport(Connection(self.address, tls=self.tls), options, self._handler)
        if transport == "jetstream":
            from conveyor.sdk.jetstream import JetStreamTransport

            return JetStreamTransport(self.nats or os.environ.get("CONVEYOR_NATS"), options, self._handler)
        raise ConfigurationError(f"the transport {transport!r} is none of {', '.join(get_args(TransportName))}")


def _slots(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"CONVEYOR_SLOTS is {text!r}, which is not a number") from None

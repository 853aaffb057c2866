"""The way to the test server. It can be shut as a killed process would: connections break, and new ones are refused."""

import asyncio
import socket
from contextlib import suppress


class Door:
    """Passes everything on to `target` (`host:port`), at an address that stays the same."""

    def __init__(self) -> None:
        self.target = ""
        self._port = 0
        # Bound and never listened on: nobody else gets the port while the door is shut.
        self._reserved: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """Where drivers connect to."""
        return f"127.0.0.1:{self._port}"

    async def open(self) -> None:
        """Take connections."""
        if self._reserved is None:
            self._reserved = _bound(0)
            self._port = self._reserved.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=_bound(self._port))

    async def shut(self) -> None:
        """Break all connections, and take none."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End it."""
        await self.shut()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        self._writers.discard(sink)


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made

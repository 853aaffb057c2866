"""The way to the test server. It can be shut as a killed process would: connections break, and new ones are refused."""

import asyncio
import socket
from contextlib import suppress

from conveyor.verify.waiting import cancelled

_BACKLOG = 64


class Door:
    """Passes everything on to `target` (`host:port`), at an address that stays the same."""

    def __init__(self) -> None:
        self.target = ""
        self._port = 0
        # Bound and never listened on: nobody else gets the port while the door is shut.
        self._reserved: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where drivers connect to."""
        return f"127.0.0.1:{self._port}"

    async def open(self) -> None:
        """Take connections."""
        if self._reserved is None:
            self._reserved = _bound(0)
            self._port = self._reserved.getsockname()[1]
        self._listener = _bound(self._port)
        self._listener.listen(_BACKLOG)
        # Not asyncio's own server: closed at the moment when somebody comes in, it complains on standard error.
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def shut(self) -> None:
        """Break all connections, and take none."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await cancelled(*self._tasks)

    async def close(self) -> None:
        """End it."""
        await self.shut()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            near, _ = listener.accept()
            near.setblocking(False)
            task = asyncio.create_task(self._connect(near))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # Also when the task never began.
            task.add_done_callback(lambda _: near.close())

    async def _connect(self, near: socket.socket) -> None:
        """One connection, until both ends are closed or it is cut."""
        host, _, port = self.target.rpartition(":")
        writers: list[asyncio.StreamWriter] = []
        copies: list[asyncio.Task[None]] = []
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            writers.append(far_writer)
            near_reader, near_writer = await asyncio.open_connection(sock=near)
            writers.append(near_writer)
            for source, sink in ((near_reader, far_writer), (far_reader, near_writer)):
                copies.append(asyncio.create_task(_copy(source, sink)))
            await asyncio.wait(copies)
        except OSError:
            # Nobody is behind the door.
            pass
        finally:
            for writer in writers:
                writer.transport.abort()
            await cancelled(*copies)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
        sink.close()
        # What is written may still be on its way.
        await sink.wait_closed()


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made

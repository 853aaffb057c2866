"""A TCP proxy that can lose answers, freeze and cut connections."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self


class TcpProxy:
    """Listens on a free port of the loopback and passes everything on to `target` (`host:port`)."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._answers = asyncio.Event()
        self._answers.set()
        self._requests = asyncio.Event()
        self._requests.set()
        self._refusing = False
        self.connections = 0
        """Connections accepted so far."""
        self.held = 0
        """Pieces of what passes that had to wait so far."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def address(self) -> str:
        """`host:port` to connect to."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def hold_answers(self) -> None:
        """What the target says waits from now on; what it is told passes."""
        self._answers.clear()

    def let_pass(self) -> None:
        """What was held passes, and all that follows."""
        self._answers.set()
        self._requests.set()

    def freeze(self) -> None:
        """Nothing passes any more on the connections of now, and they stay open; new ones work."""
        self._answers.clear()
        self._requests.clear()
        self._answers, self._requests = asyncio.Event(), asyncio.Event()
        self._answers.set()
        self._requests.set()

    def cut(self) -> None:
        """Close all connections; new ones work, and answer."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self._answers, self._requests = asyncio.Event(), asyncio.Event()
        self._answers.set()
        self._requests.set()

    def refuse(self, refusing: bool = True) -> None:
        """Whether new connections are closed at once."""
        self._refusing = refusing

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            target_reader, target_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, target_writer}
        for source, sink, gate in (
            (reader, target_writer, self._requests),
            (target_reader, writer, self._answers),
        ):
            task = asyncio.ensure_future(self._pass_on(source, sink, gate))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                if not gate.is_set():
                    self.held += 1
                await gate.wait()
                sink.write(data)
                await sink.drain()
        sink.transport.abort()

"""A TCP proxy that can lose answers, freeze and cut connections."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Self


class _Pair:
    """The two ends of one connection."""

    def __init__(self, *ends: asyncio.StreamWriter) -> None:
        self._ends = ends
        self.last = time.monotonic()
        self.over = False

    def abort(self) -> None:
        for end in self._ends:
            end.transport.abort()


class TcpProxy:
    """Listens on a free port, of the loopback if not said otherwise, and passes all on to `target` (`host:port`)."""

    def __init__(self, target: str, listen: str = "127.0.0.1") -> None:
        self._listen = listen
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
        self.idle_cuts = 0
        """Connections cut because nothing had passed for too long."""
        self._patience: float | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._listen, 0)
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

    def cut_idle(self, seconds: float) -> None:
        """Reset from now on each connection on which nothing passes, either way, for so long; also those of now."""
        self._patience = seconds

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
        pair = _Pair(writer, target_writer)
        for work in (
            self._pass_on(reader, target_writer, self._requests, pair),
            self._pass_on(target_reader, writer, self._answers, pair),
            self._watch_over(pair),
        ):
            task = asyncio.ensure_future(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _watch_over(self, pair: _Pair) -> None:
        while not pair.over:
            await asyncio.sleep(0.1)
            if self._patience is not None and time.monotonic() - pair.last > self._patience and not pair.over:
                self.idle_cuts += 1
                pair.abort()

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event, pair: _Pair
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                pair.last = time.monotonic()
                if not gate.is_set():
                    self.held += 1
                await gate.wait()
                sink.write(data)
                await sink.drain()
        pair.over = True
        sink.transport.abort()

"""The end of tasks, and of connections to a broker."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nats.aio.client import Client


async def cancelled(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait for their end."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        # Once more after a while: before Python 3.12 a connection that is refused at the same moment swallows it.
        _, left = await asyncio.wait(left, timeout=1.0)


async def closed(client: "Client") -> None:
    """Close a client, and what goes on behind its back.

    A reconnect that is under way while `close` cancels it may go on all the same and connect, with tasks and a socket
    that nobody ends. The client itself remembers only the last task of each kind.
    """
    with suppress(OSError):
        await client.close()
    while tasks := [task for task in asyncio.all_tasks() if _belongs_to(task, client)]:
        await cancelled(*tasks)
    writer = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def _belongs_to(task: "asyncio.Task[Any]", client: "Client") -> bool:
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame is not None and frame.f_locals.get("self") is client and not task.done()

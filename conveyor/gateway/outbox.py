"""What a worker's stream has to send: gathered while the last message is on its way, sent as one."""

from __future__ import annotations

import asyncio

from conveyor.core import errors
from conveyor.v1 import log_pb2, result_pb2, worker_pb2, worker_service_pb2

MAX_MESSAGE_BYTES = 2 << 20

MAX_BACKLOG = 20_000
"""Answers that wait for a worker that doesn't read, before it is not listened to any more; more than all its slots."""


class Outbox:
    """Takes messages without waiting. The stream's writer takes them out."""

    def __init__(self) -> None:
        self._acks: list[result_pb2.ResultAck] = []
        self._log_acks: list[log_pb2.LogAck] = []
        self._assignments: list[tuple[str, bytes]] = []
        self._cancellations: list[worker_pb2.Cancellation] = []
        self._first: list[worker_service_pb2.WorkResponse] = []
        self._tick: worker_pb2.Tick | None = None
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self.closed: errors.DomainError | None = None
        """Why the stream is to end, once it is."""

    def assign(self, token: str, assignment: bytes) -> None:
        """Send a serialized assignment, which has this token."""
        self._assignments.append((token, assignment))
        self._something.set()

    def stop(self, cancellation: worker_pb2.Cancellation) -> None:
        """Tell the worker to stop an attempt."""
        self._cancellations.append(cancellation)
        self._something.set()

    def ack(self, ack: result_pb2.ResultAck) -> None:
        """Answer a result."""
        self._acks.append(ack)
        self._something.set()

    def ack_logs(self, acks: list[log_pb2.LogAck]) -> None:
        """Say how far lines are stored."""
        self._log_acks.extend(acks)
        self._something.set()

    def send(self, response: worker_service_pb2.WorkResponse) -> None:
        """Send a message before whatever has gathered."""
        self._first.append(response)
        self._something.set()

    def tick(self, tick: worker_pb2.Tick) -> None:
        """Show that the handler lives; only the newest is sent."""
        self._tick = tick
        self._something.set()

    def close(self, reason: errors.DomainError) -> None:
        """End the stream after what has gathered."""
        self.closed = self.closed or reason
        self._something.set()
        self._room.set()

    async def room(self, under_way: int) -> None:
        """Wait while too many answers wait to be sent, those that are `under_way` included."""
        while under_way + len(self._acks) + len(self._log_acks) > MAX_BACKLOG and self.closed is None:
            self._room.clear()
            await self._room.wait()

    def unsent(self) -> list[str]:
        """Take out the assignments that were never sent; their tokens."""
        unsent, self._assignments = self._assignments, []
        return [token for token, _ in unsent]

    async def next(self) -> bytes | None:
        """What has gathered, as one serialized WorkResponse; waits for something, None when the stream is to end."""
        while True:
            if self._first:
                return self._first.pop(0).SerializeToString()
            if self._acks or self._assignments or self._cancellations or self._log_acks or self._tick:
                return self._gathered()
            if self.closed is not None:
                return None
            self._something.clear()
            await self._something.wait()

    def _gathered(self) -> bytes:
        response = worker_service_pb2.WorkResponse(
            acks=self._acks, log_acks=self._log_acks, cancellations=self._cancellations, tick=self._tick
        )
        self._acks, self._log_acks, self._cancellations, self._tick = [], [], [], None
        self._room.set()
        pieces = [response.SerializeToString()]
        count = 0
        room = MAX_MESSAGE_BYTES
        for _, assignment in self._assignments:
            room -= len(assignment)
            if room < 0 and count:
                break
            count += 1
            pieces += (_ASSIGNMENTS, _varint(len(assignment)), assignment)
        del self._assignments[:count]
        return b"".join(pieces)


_ASSIGNMENTS = bytes([worker_service_pb2.WorkResponse.ASSIGNMENTS_FIELD_NUMBER << 3 | 2])
"""What stands before the length of a message in this field, in protobuf's encoding."""


def _varint(number: int) -> bytes:
    """A length in protobuf's encoding: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)

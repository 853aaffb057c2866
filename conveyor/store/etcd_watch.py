"""A watch that outlives its connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator

import grpc.aio

from conveyor.etcd.v1 import etcd_pb2 as pb
from conveyor.store.checks import prefix_end
from conveyor.store.etcd_client import RANGE, WATCH, Client, Endpoint, being_cancelled
from conveyor.store.port import Change, Changes, Reset, StoreError, Unavailable

_log = logging.getLogger("conveyor.store.etcd")

_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 2.0
_PROGRESS_S = 60.0


class Watch:
    """Follows one prefix from one position.

    Nothing is queued here: events are read from the stream as the consumer asks for them, and a slow one is held up by
    the stream's flow control. It falls behind in etcd, whose history is on disk, until compaction passes it: a Reset.
    """

    def __init__(self, client: Client, prefix: str, after_revision: int, closed: asyncio.Event) -> None:
        self._client = client
        self._key = prefix.encode() or b"\0"
        self._end = prefix_end(prefix).encode() or b"\0"
        self._position = after_revision
        self._closed = closed
        self._cluster_id = 0
        self._backoff = _FIRST_BACKOFF_S

    async def changes(self) -> AsyncGenerator[Changes | Reset, None]:
        """See `Store.watch`."""
        while not self._closed.is_set():
            try:
                reset = await self._reset_needed()
                if reset is not None:
                    yield reset
                async with contextlib.aclosing(self._follow()) as followed:
                    async for item in followed:
                        yield item
            except StoreError as error:
                if self._closed.is_set():
                    break
                _log.info("the watch of %r goes on in %.2f s: %s", self._key, self._backoff, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), self._backoff * random.uniform(0.5, 1.0))
                self._backoff = min(2 * self._backoff, _LAST_BACKOFF_S)
        raise Unavailable("the store is closed")

    async def _reset_needed(self, compacted: bool = False) -> Reset | None:
        """A Reset to the present, unless the position lies in the history of this very cluster.

        Asked of a quorum: a member that lags behind would take the present for the future.
        """
        response = await self._client.read(RANGE, pb.RangeRequest(key=self._key, count_only=True))
        now = response.header
        same = self._cluster_id in (0, now.cluster_id)
        self._cluster_id = now.cluster_id
        if same and self._position <= now.revision and not compacted:
            return None
        self._position = now.revision
        return Reset(now.revision)

    async def _follow(self) -> AsyncGenerator[Changes | Reset, None]:
        """One stream, until it is to be opened anew. Raises a StoreError when it broke."""
        endpoint = await self._client.endpoint()
        call = endpoint.stream(WATCH)(metadata=await self._client.metadata(endpoint))
        attendant = asyncio.ensure_future(self._attend(endpoint, call))
        try:
            create = pb.WatchCreateRequest(
                key=self._key,
                range_end=self._end,
                start_revision=self._position + 1,
                progress_notify=True,
                prev_kv=True,
                fragment=True,
            )
            # A call that has ended already says why when it is read.
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(pb.WatchRequest(create_request=create))
            changes: list[Change] = []
            while (response := await call.read()) is not grpc.aio.EOF:
                assert isinstance(response, pb.WatchResponse)
                self._backoff = _FIRST_BACKOFF_S
                if response.compact_revision:
                    reset = await self._reset_needed(compacted=True)
                    assert reset is not None
                    yield reset
                    return
                if response.canceled:
                    raise Unavailable(f"etcd ended the watch: {response.cancel_reason}")
                if not response.events and not response.fragment and not response.created:
                    self._position = max(self._position, response.header.revision)
                # A revision is whole when the next one begins, or when its response ends: etcd puts all events of a
                # revision into one response, which only fragments divide.
                for event in response.events:
                    revision = event.kv.mod_revision
                    if changes and changes[-1].mod_revision != revision:
                        yield self._passed(changes)
                        changes = []
                    if revision > self._position:
                        changes.append(_change(event))
                if changes and not response.fragment:
                    yield self._passed(changes)
                    changes = []
            raise Unavailable("etcd ended the stream")
        except grpc.aio.AioRpcError as error:
            raise self._client.failed(endpoint, error) from error
        except asyncio.CancelledError:
            if self._closed.is_set() and not being_cancelled():
                raise Unavailable("the store is closed") from None
            raise
        finally:
            attendant.cancel()
            call.cancel()

    def _passed(self, changes: list[Change]) -> Changes:
        self._position = changes[-1].mod_revision
        return Changes(self._position, tuple(changes))

    async def _attend(
        self, endpoint: Endpoint, call: grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]
    ) -> None:
        """Beside the reading of a stream: keep the position ahead of compaction, and end the stream on `close`.

        Older servers may answer a progress request ahead of events that are still to come. Those only say by
        themselves, every ten minutes, how far they are; an idle watch that is interrupted may get a Reset there.
        """
        interval = _PROGRESS_S if tells_true_progress(endpoint.version) else None
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                try:
                    await asyncio.wait_for(self._closed.wait(), interval)
                except TimeoutError:
                    await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
                else:
                    call.cancel()
                    return


def tells_true_progress(version: tuple[int, ...]) -> bool:
    """Whether a server of `version` answers a progress request only after all events up to its revision."""
    return (3, 4, 25) <= version < (3, 5) or version >= (3, 5, 8)


def _change(event: pb.Event) -> Change:
    kv = event.kv
    if event.type == pb.EVENT_TYPE_DELETE:
        prior = event.prev_kv.value if event.HasField("prev_kv") else None
        return Change(kv.key.decode(), None, prior, kv.mod_revision)
    return Change(kv.key.decode(), kv.value, None, kv.mod_revision)

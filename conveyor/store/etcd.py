"""The store for production: etcd 3.4.21 or later, one member or many."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Sequence

import grpc.aio

from conveyor.etcd.v1 import etcd_pb2 as pb
from conveyor.store.checks import commit_size, key_size, prefix_end
from conveyor.store.etcd_client import (
    COMPACT,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    RANGE,
    STATUS,
    TXN,
    Client,
    Tls,
    being_cancelled,
)
from conveyor.store.etcd_errors import COMPACTED
from conveyor.store.etcd_history import HistoryKeys, identify
from conveyor.store.etcd_watch import Watch
from conveyor.store.failpoints import failpoint
from conveyor.store.group import Group, Pending
from conveyor.store.port import (
    Changes,
    Conflict,
    Exhausted,
    Guard,
    KeyValue,
    LeaseLost,
    Listing,
    Put,
    Reset,
    StoreError,
    TooLarge,
    Unavailable,
    Uncertain,
)

_log = logging.getLogger("conveyor.store.etcd")

# While one batch is on its way the next one grows: with several smaller ones both sides work more for the same.
_MAX_IN_FLIGHT = 1
_FIRST_PAGE = 100
_LARGEST_PAGE = 5_000
_PAGE_BYTES = 1 << 20


class EtcdLease:
    """A lease of etcd. See `Lease` of the port."""

    def __init__(self, client: Client, lease: int) -> None:
        self._client = client
        self._id = lease

    @property
    def id(self) -> int:
        """Positive number to put into `Put.lease`."""
        return self._id

    async def refresh(self) -> None:
        """Give the lease its full time again. Raises LeaseLost, Unavailable."""
        client = self._client
        endpoint = await client.endpoint()
        call = endpoint.stream(LEASE_KEEP_ALIVE)(timeout=client.timeout, metadata=await client.metadata(endpoint))
        try:
            # A call that has ended already says why when it is read.
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(pb.LeaseKeepAliveRequest(id=self._id))
            response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise Unavailable(str(client.failed(endpoint, error))) from error
        except asyncio.CancelledError:
            if client.closed and not being_cancelled():
                raise Unavailable("the store is closed") from None
            raise
        finally:
            call.cancel()
        if not isinstance(response, pb.LeaseKeepAliveResponse):
            raise Unavailable("etcd ended the stream")
        if response.ttl <= 0:
            raise LeaseLost(f"lease {self._id} is gone")

    async def revoke(self) -> None:
        """End the lease now; its keys are deleted when this returns. Raises Unavailable."""
        with contextlib.suppress(LeaseLost):
            await self._client.read(LEASE_REVOKE, pb.LeaseRevokeRequest(id=self._id))


class EtcdStore:
    """See `Store` of the port. Keys on the wire are the texts of the keys in UTF-8, and nothing else."""

    def __init__(self, client: Client, compaction_interval: float, history: str) -> None:
        """Use `open`."""
        self._client = client
        self._history = history
        self._closed = asyncio.Event()
        self._group = Group(self._send, _MAX_IN_FLIGHT, client.timeout)
        self._compaction = (
            asyncio.ensure_future(self._compact_forever(compaction_interval)) if compaction_interval > 0 else None
        )

    @classmethod
    async def open(
        cls,
        endpoints: Sequence[str],
        *,
        tls: Tls | None = None,
        username: str = "",
        password: str = "",
        timeout: float = 5.0,
        compaction_interval: float = 300.0,
        history_keys: HistoryKeys | None = None,
    ) -> EtcdStore:
        """Connect to any of `endpoints`, such as `http://127.0.0.1:2379`, `https://…` or `host:port`.

        `timeout` in seconds bounds each call and each attempt to connect. Every `compaction_interval` seconds (0:
        never) the history older than that is compacted. `history_keys` says where to keep what tells whether etcd was
        restored from a snapshot; without, only the cluster's id tells. Raises Unavailable, ValueError, and OSError for
        TLS files.
        """
        if not endpoints:
            raise ValueError("etcd needs at least one endpoint")
        if tls is None and any(endpoint.startswith("https://") for endpoint in endpoints):
            tls = Tls()
        credentials = None if tls is None else await asyncio.to_thread(tls.credentials)
        client = Client(endpoints, credentials, tls.server_name if tls else "", username, password, timeout)
        try:
            await client.read(STATUS, pb.StatusRequest())
            history = await identify(client, history_keys) if history_keys is not None else ""
        except BaseException:
            await client.close()
            raise
        return cls(client, compaction_interval, history)

    @property
    def epoch(self) -> str:
        """The id of the cluster and the name of its history."""
        return f"{self._client.cluster_id:x}{self._history}"

    async def get(self, key: str) -> KeyValue | None:
        """See `Store.get`."""
        key_size(key)
        response = await self._client.read(RANGE, pb.RangeRequest(key=key.encode()))
        return _key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str, after: str = "", limit: int = 0, *, keys_only: bool = False) -> Listing:
        """See `Store.list`. All pages are read at the revision of the first."""
        while True:
            try:
                return await self._list(prefix, after, limit, keys_only)
            except Unavailable as error:
                # A long listing was overtaken by compaction.
                if COMPACTED not in str(error):
                    raise

    async def ranges(self, prefixes: Sequence[str]) -> Sequence[Sequence[KeyValue]]:
        """See `Store.ranges`."""
        request = pb.TxnRequest()
        for prefix in prefixes:
            operation = request.success.add().request_range
            operation.key, operation.range_end = prefix.encode(), prefix_end(prefix).encode() or b"\0"
        response = await self._client.read(TXN, request)
        return [[_key_value(kv) for kv in part.response_range.kvs] for part in response.responses]

    async def commit(self, guards: Sequence[Guard] = (), puts: Sequence[Put] = (), deletes: Sequence[str] = ()) -> int:
        """See `Store.commit`."""
        size = commit_size(guards, puts, deletes)
        loop = asyncio.get_running_loop()
        pending = Pending(loop.create_future(), guards, puts, deletes, size, loop.time())
        self._group.submit(pending)
        return await pending.answer

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Changes | Reset, None]:
        """See `Store.watch`."""
        return Watch(self._client, prefix, after_revision, self._closed).changes()

    async def lease(self, ttl: float) -> EtcdLease:
        """See `Store.lease`."""
        if ttl <= 0:
            raise ValueError(f"a lease needs a positive time to live, not {ttl}")
        try:
            response = await self._client.call(LEASE_GRANT, pb.LeaseGrantRequest(ttl=math.ceil(ttl)))
        except Uncertain as error:
            # A lease that nobody knows of ends by itself.
            raise Unavailable(str(error)) from error
        return EtcdLease(self._client, response.id)

    async def close(self) -> None:
        """See `Store.close`."""
        self._closed.set()
        if self._compaction is not None:
            self._compaction.cancel()
            await asyncio.gather(self._compaction, return_exceptions=True)
        await self._group.close()
        await self._client.close()

    async def _list(self, prefix: str, after: str, limit: int, keys_only: bool) -> Listing:
        start = prefix.encode() if after < prefix else after.encode() + b"\0"
        request = pb.RangeRequest(
            key=start or b"\0", range_end=prefix_end(prefix).encode() or b"\0", keys_only=keys_only, limit=_FIRST_PAGE
        )
        items: list[KeyValue] = []
        while True:
            if limit:
                request.limit = min(request.limit, limit - len(items))
            response = await self._client.read(RANGE, request)
            items.extend(map(_key_value, response.kvs))
            request.revision = request.revision or response.header.revision
            if not response.more or len(items) == limit:
                return Listing(tuple(items), response.more, request.revision)
            # The next page is sized by the values seen, so that no answer is large.
            mean = 1 + response.ByteSize() // len(response.kvs)
            request.limit = max(1, min(_PAGE_BYTES // mean, _LARGEST_PAGE))
            request.key = response.kvs[-1].key + b"\0"

    async def _send(self, batch: Sequence[Pending]) -> None:
        """One transaction for all of `batch`; answers each commit."""
        failpoint("store.before_commit")
        try:
            response = await self._client.call(TXN, _transaction(batch[0]) if len(batch) == 1 else _nested(batch))
        except Exhausted as error:
            await self._settle(batch, error)
        except (LeaseLost, TooLarge) as error:
            # Refused, for one of its commits, before anything was done: find out for which.
            if len(batch) == 1:
                batch[0].fail(error)
            else:
                for pending in batch:
                    await self._send([pending])
        except StoreError as error:
            _fail(batch, error)
        else:
            failpoint("store.after_commit")
            if len(batch) == 1:
                _answer(batch[0], response, response.header.revision)
            else:
                for pending, answer in zip(batch, response.responses, strict=True):
                    _answer(pending, answer.response_txn, response.header.revision)

    async def _settle(self, batch: Sequence[Pending], error: Exhausted) -> None:
        """Etcd says that it has no room, which it does also after a write that just passed its quota.

        So look whether it was made. What cannot be told stays Uncertain. Deletes, which need no room, go out again.
        """
        try:
            untouched = [await self._untouched(pending) for pending in batch]
        except StoreError as unknown:
            _fail(batch, Uncertain(f"{error}; {unknown}"))
            return
        for pending, known in zip(batch, untouched, strict=True):
            if pending.puts:
                _fail([pending], Exhausted(*error.args) if known else Uncertain(*error.args))
            elif any(untouched):
                await self._send([pending])
            else:
                _fail([pending], Uncertain(*error.args))

    async def _untouched(self, pending: Pending) -> bool:
        """Whether the puts of a commit that was answered with an error are proven not to have been made."""
        expected = {guard.key: guard.mod_revision for guard in pending.guards}
        for put in pending.puts:
            found = await self.get(put.key)
            if put.key in expected:
                return expected[put.key] == (found.mod_revision if found else 0)
            if found is None or found.value != put.value:
                return True
        return False

    async def _compact_forever(self, interval: float) -> None:
        """Each round forgets what was there one round before. Several replicas may do so side by side."""
        revision = 0
        while True:
            try:
                if revision:
                    await self._client.read(COMPACT, pb.CompactionRequest(revision=revision))
            except StoreError as error:
                if COMPACTED not in str(error):
                    _log.warning("etcd was not compacted: %s", error)
            try:
                status = await self._client.read(STATUS, pb.StatusRequest())
                revision = status.header.revision
            except StoreError as error:
                _log.warning("etcd's revision is not known: %s", error)
            await asyncio.sleep(interval)


def _transaction(pending: Pending) -> pb.TxnRequest:
    """The commit as a transaction whose failure branch tells what its guards found."""
    request = pb.TxnRequest()
    for guard in pending.guards:
        key = guard.key.encode()
        request.compare.add(target=pb.COMPARE_TARGET_MOD, key=key, mod_revision=guard.mod_revision)
        request.failure.add().request_range.key = key
    for put in pending.puts:
        operation = request.success.add().request_put
        operation.key = put.key.encode()
        operation.value = put.value
        operation.lease = put.lease
    for key_text in pending.deletes:
        request.success.add().request_delete_range.key = key_text.encode()
    return request


def _nested(batch: Sequence[Pending]) -> pb.TxnRequest:
    """All commits as one transaction, each succeeding or failing by itself."""
    request = pb.TxnRequest()
    for pending in batch:
        request.success.add().request_txn.CopyFrom(_transaction(pending))
    # Older servers don't hold nested puts against their quota; this one, in a branch that is never taken, they do.
    for put in next((pending.puts for pending in batch if pending.puts), ())[:1]:
        request.failure.add().request_put.key = put.key.encode()
    return request


def _fail(batch: Sequence[Pending], error: StoreError) -> None:
    for pending in batch:
        # An exception each: they are raised, and so get tracebacks, in different tasks.
        pending.fail(type(error)(*error.args))


def _answer(pending: Pending, response: pb.TxnResponse, revision: int) -> None:
    if response.succeeded:
        pending.succeed(revision)
        return
    for guard, found in zip(pending.guards, response.responses, strict=True):
        kvs = found.response_range.kvs
        if guard.mod_revision != (kvs[0].mod_revision if kvs else 0):
            pending.fail(Conflict(guard.key, _key_value(kvs[0]) if kvs else None))
            return
    pending.fail(Uncertain("etcd refused the guards but they hold"))


def _key_value(kv: pb.KeyValue) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.mod_revision)

"""The watch against a scripted etcd: what a real one does too rarely to wait for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from conveyor.etcd.v1 import etcd_pb2 as pb
from conveyor.store import EtcdStore, open_etcd
from conveyor.store.etcd_client import parse_version
from conveyor.store.etcd_errors import translate
from conveyor.store.etcd_watch import tells_true_progress
from conveyor.store.port import (
    Changes,
    Exhausted,
    LeaseLost,
    Put,
    StoreError,
    TooLarge,
    Unavailable,
    Uncertain,
)

END = object()
"""In a script: the stream breaks here."""


@dataclass
class FakeEtcd:
    """Answers each watch with the next script, and a Txn with the next error."""

    version: str = "3.6.1"
    scripts: list[Sequence[Any]] = field(default_factory=list)
    txn_errors: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)
    creates: list[pb.WatchCreateRequest] = field(default_factory=list)
    stored: dict[bytes, pb.KeyValue] = field(default_factory=dict)

    def header(self) -> pb.ResponseHeader:
        return pb.ResponseHeader(cluster_id=7, revision=100)

    async def status(self, _: pb.StatusRequest, __: Any) -> pb.StatusResponse:
        return pb.StatusResponse(header=self.header(), version=self.version)

    async def range(self, request: pb.RangeRequest, _: Any) -> pb.RangeResponse:
        found = self.stored.get(request.key)
        return pb.RangeResponse(header=self.header(), kvs=[found] if found else [])

    async def txn(self, _: pb.TxnRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.TxnResponse:
        await context.abort(*self.txn_errors.pop(0))
        raise AssertionError

    async def watch(
        self, requests: AsyncIterator[pb.WatchRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchResponse]:
        self.creates.append((await anext(requests)).create_request)
        yield pb.WatchResponse(header=self.header(), created=True)
        for item in self.scripts.pop(0):
            if item is END:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            yield item
        await asyncio.Event().wait()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[EtcdStore]:
        server = grpc.aio.server()
        unary = {"KV/Range": (self.range, pb.RangeRequest), "KV/Txn": (self.txn, pb.TxnRequest)}
        unary["Maintenance/Status"] = (self.status, pb.StatusRequest)  # type: ignore[assignment]
        for path, (method, request) in unary.items():
            service, name = path.split("/")
            handler = grpc.unary_unary_rpc_method_handler(
                method, request.FromString, lambda response: response.SerializeToString()
            )
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(f"etcdserverpb.{service}", {name: handler}),)
            )
        handler = grpc.stream_stream_rpc_method_handler(
            self.watch, pb.WatchRequest.FromString, lambda response: response.SerializeToString()
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("etcdserverpb.Watch", {"Watch": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        store = await open_etcd([f"127.0.0.1:{port}"], compaction_interval=0)
        try:
            yield store
        finally:
            await store.close()
            await server.stop(None)


def event(key: str, revision: int) -> pb.Event:
    return pb.Event(kv=pb.KeyValue(key=key.encode(), value=b"v", mod_revision=revision))


def response(*events: pb.Event, fragment: bool = False, revision: int = 0) -> pb.WatchResponse:
    header = pb.ResponseHeader(cluster_id=7, revision=revision or 100)
    return pb.WatchResponse(header=header, events=events, fragment=fragment)


async def read(store: EtcdStore, after: int, count: int) -> list[tuple[int, str]]:
    """Revisions and keys of so many items of a watch; each item is one revision."""
    seen = []
    async with aclosing(store.watch("k", after)) as watch:
        for _ in range(count):
            item = await anext(watch)
            assert isinstance(item, Changes)
            assert {change.mod_revision for change in item.changes} == {item.revision}
            seen.append((item.revision, "".join(change.key for change in item.changes)))
    return seen


class TestFragments:
    async def test_a_revision_divided_between_fragments_comes_whole(self) -> None:
        fake = FakeEtcd(
            scripts=[
                [
                    response(event("k1", 11), event("k2", 11), event("k3", 12), fragment=True),
                    response(event("k4", 12), fragment=True),
                    response(event("k5", 12), event("k6", 13)),
                    response(event("k7", 14)),
                ]
            ]
        )
        async with fake.opened() as store:
            assert await read(store, 10, 4) == [(11, "k1k2"), (12, "k3k4k5"), (13, "k6"), (14, "k7")]
        assert (fake.creates[0].fragment, fake.creates[0].prev_kv, fake.creates[0].start_revision) == (True, True, 11)

    async def test_broken_between_fragments_it_resumes_at_the_revision_that_was_not_whole(self) -> None:
        fake = FakeEtcd(
            scripts=[
                [response(event("k1", 11), event("k2", 12), fragment=True), END],
                [response(event("k2", 12), event("k3", 12)), END],
                [response(event("k4", 13))],
            ]
        )
        async with fake.opened() as store:
            assert await read(store, 10, 3) == [(11, "k1"), (12, "k2k3"), (13, "k4")]
        assert [create.start_revision for create in fake.creates] == [11, 12, 13]

    async def test_progress_moves_the_position_but_a_fragment_without_events_does_not(self) -> None:
        fake = FakeEtcd(
            scripts=[
                [
                    response(revision=20),
                    response(event("k1", 21), fragment=True),
                    response(fragment=True, revision=99),
                    END,
                ],
                [response(event("k1", 21))],
            ]
        )
        async with fake.opened() as store:
            assert await read(store, 10, 1) == [(21, "k1")]
        assert [create.start_revision for create in fake.creates] == [11, 21]

    async def test_what_was_told_already_is_not_told_again(self) -> None:
        fake = FakeEtcd(
            scripts=[[response(event("k1", 9), event("k2", 11)), response(event("k2", 11), event("k3", 12))]]
        )
        async with fake.opened() as store:
            assert await read(store, 10, 2) == [(11, "k2"), (12, "k3")]

    async def test_a_cancelled_watch_is_opened_anew(self) -> None:
        cancelled = pb.WatchResponse(header=pb.ResponseHeader(cluster_id=7), canceled=True, cancel_reason="no leader")
        fake = FakeEtcd(scripts=[[response(event("k1", 11)), cancelled], [response(event("k2", 12))]])
        async with fake.opened() as store:
            assert await read(store, 10, 2) == [(11, "k1"), (12, "k2")]


class TestVersions:
    @pytest.mark.parametrize(
        ("version", "warned"), [("3.4.23", 0), ("3.5.0", 1), ("3.5.5", 1), ("3.5.6", 0), ("3.6.0-rc.1", 0), ("odd", 0)]
    )
    async def test_the_ones_that_lose_data_are_warned_of(
        self, caplog: pytest.LogCaptureFixture, version: str, warned: int
    ) -> None:
        caplog.set_level(logging.WARNING, "conveyor.store.etcd")
        async with FakeEtcd(version=version).opened():
            pass
        assert sum("can lose acknowledged writes" in record.message for record in caplog.records) == warned

    def test_whose_progress_is_true(self) -> None:
        versions = ["3.4.23", "3.4.25", "3.5.7", "3.5.8", "3.6.0-rc.1", "3.7.3", "odd"]
        assert [tells_true_progress(parse_version(version)) for version in versions] == [
            False,
            True,
            False,
            True,
            True,
            True,
            False,
        ]


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "details", "kind"),
        [
            ("UNAVAILABLE", "failed to connect to all addresses; last error: …", Unavailable),
            ("UNAVAILABLE", "etcdserver: no leader", Unavailable),
            ("UNAVAILABLE", "etcdserver: request timed out", Uncertain),
            ("UNAVAILABLE", "etcdserver: leader changed", Uncertain),
            ("UNAVAILABLE", "Socket closed", Uncertain),
            ("DEADLINE_EXCEEDED", "Deadline Exceeded", Uncertain),
            ("UNKNOWN", "etcdserver: something new", Uncertain),
            ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Exhausted),
            ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Unavailable),
            ("RESOURCE_EXHAUSTED", "something of gRPC's", Uncertain),
            ("INVALID_ARGUMENT", "etcdserver: request is too large", TooLarge),
            ("NOT_FOUND", "etcdserver: requested lease not found", LeaseLost),
            ("PERMISSION_DENIED", "etcdserver: permission denied", Unavailable),
        ],
    )
    def test_only_what_proves_that_nothing_happened_is_certain(
        self, code: str, details: str, kind: type[StoreError]
    ) -> None:
        metadata = grpc.aio.Metadata()
        error = grpc.aio.AioRpcError(grpc.StatusCode[code], metadata, metadata, details)
        assert type(translate(error)) is kind

    async def test_a_full_quota_reported_after_the_write_is_uncertain(self) -> None:
        full = grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"
        fake = FakeEtcd(txn_errors=[full, full])
        fake.stored[b"k1"] = pb.KeyValue(key=b"k1", value=b"new", mod_revision=50)
        async with fake.opened() as store:
            with pytest.raises(Uncertain):
                await store.commit(puts=[Put("k1", b"new")])
            with pytest.raises(Exhausted):
                await store.commit(puts=[Put("k1", b"newer")])

    async def test_a_commit_is_sent_once(self) -> None:
        fake = FakeEtcd(txn_errors=[(grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed")])
        async with fake.opened() as store:
            with pytest.raises(Uncertain):
                await store.commit(puts=[Put("k1", b"new")])
        assert fake.txn_errors == []

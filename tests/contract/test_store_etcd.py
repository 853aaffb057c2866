"""What only etcd can do to a store: lose answers, lag, run full, ask for passwords."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import aclosing, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from pyetcd import Etcd3Client, etcdrpc

from conveyor.store import EtcdStore, Tls, etcd_client, etcd_watch, open_etcd
from conveyor.store.port import (
    Change,
    Changes,
    Exhausted,
    Guard,
    LeaseLost,
    Put,
    Reset,
    StoreError,
    Unavailable,
    Uncertain,
)
from tests.contract.conftest import StartEtcd
from tests.support.etcd import Etcd
from tests.support.tcp_proxy import TcpProxy

Result = TypeVar("Result")


def peer_of(server: Etcd) -> closing[Any]:
    """An independent client of etcd, synchronous."""
    host, _, port = server.address.rpartition(":")
    return closing(Etcd3Client(host=host, port=int(port), timeout=10))


async def blocking(function: Callable[..., Result], *arguments: object, **options: object) -> Result:
    return await asyncio.to_thread(function, *arguments, **options)


async def until(attempt: Callable[[], Awaitable[Result]], *errors: type[StoreError]) -> Result:
    """The first answer that is not one of `errors`."""
    while True:
        try:
            return await attempt()
        except errors:
            await asyncio.sleep(0.02)


async def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.01)


async def next_changes(watch: Any) -> Changes:
    item = await anext(watch)
    assert isinstance(item, Changes)
    return item


class TestPeer:
    """What another client writes we read, and the other way round."""

    async def test_reads_what_we_wrote(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url])
        keys = ["/conveyor/v1/ü/\U0001f600", "/conveyor/v1/a"]
        revision = await store.commit(puts=[Put(key, key.encode()) for key in keys])
        lease = await store.lease(60)
        leased = await store.commit(puts=[Put("/conveyor/v1/leased", b"", lease.id)])
        with peer_of(etcd) as peer:
            found = {kv.key.decode(): (value, kv.mod_revision) for value, kv in peer.get_prefix("/conveyor/v1/")}
            assert found == {
                **{key: (key.encode(), revision) for key in keys},
                "/conveyor/v1/leased": (b"", leased),
            }
            assert peer.get_lease_info(lease.id).grantedTTL == 60
            peer.revoke_lease(lease.id)
        with pytest.raises(LeaseLost):
            await lease.refresh()
        await store.close()

    async def test_writes_what_we_watch(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url])
        start = (await store.list("a/")).revision
        with peer_of(etcd) as peer:
            async with aclosing(store.watch("a/", start)) as watch:
                await blocking(peer.put, "a/ü", b"1")
                assert (await next_changes(watch)).changes == (Change("a/ü", b"1", None, start + 1),)
                # One transaction of the peer is one revision here.
                await blocking(
                    peer.transaction,
                    compare=[],
                    success=[peer.transactions.put("a/1", "x"), peer.transactions.delete("a/ü")],
                    failure=[],
                )
                assert (await next_changes(watch)).changes == (
                    Change("a/1", b"x", None, start + 2),
                    Change("a/ü", None, b"1", start + 2),
                )
        await store.close()


class TestLostAnswers:
    async def test_a_connection_cut_after_sending_is_uncertain(self, etcd: Etcd) -> None:
        direct = await open_etcd([etcd.url])
        async with TcpProxy(etcd.address) as proxy:
            store = await open_etcd([proxy.address])
            async with aclosing(direct.watch("a", (await direct.list("a")).revision)) as watch:
                proxy.hold_answers()
                commit = asyncio.ensure_future(store.commit([Guard("a", 0)], [Put("a", b"1")]))
                # It has taken effect, and only the answer is missing.
                written = await next_changes(watch)
                proxy.cut()
                with pytest.raises(Uncertain):
                    await commit
                # Never sent again: the key still has its first revision.
                found = await until(lambda: store.get("a"), Unavailable)
                assert found is not None
                assert found.mod_revision == written.revision
                second = await store.commit([Guard("a", written.revision)], [Put("a", b"2")])
                assert [(await next_changes(watch)).revision] == [second]
            await store.close()
        await direct.close()

    async def test_an_answer_that_does_not_come_in_time_is_uncertain(self, etcd: Etcd) -> None:
        direct = await open_etcd([etcd.url])
        async with TcpProxy(etcd.address) as proxy:
            store = await open_etcd([proxy.address], timeout=1)
            proxy.hold_answers()
            with pytest.raises(Uncertain):
                await store.commit(puts=[Put("a", b"1")])
            with pytest.raises(Unavailable):
                await store.get("a")
            assert await direct.get("a") is not None
            proxy.cut()
            await until(lambda: store.get("a"), Unavailable)
            await store.close()
        await direct.close()

    async def test_all_of_a_batch_are_uncertain(self, etcd: Etcd) -> None:
        async with TcpProxy(etcd.address) as proxy:
            store = await open_etcd([proxy.address], timeout=1)
            proxy.hold_answers()
            results = await asyncio.gather(
                *(store.commit(puts=[Put(f"a/{index}", b"1")]) for index in range(20)), return_exceptions=True
            )
            assert {type(result) for result in results} == {Uncertain}
            await store.close()


class TestAway:
    async def test_nobody_there_is_unavailable(self) -> None:
        with pytest.raises(Unavailable):
            await open_etcd(["127.0.0.1:1"])

    async def test_killed_and_back(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url], timeout=2)
        revision = await store.commit(puts=[Put("a/1", b"1")])
        lease = await store.lease(60)
        watch = store.watch("a/", revision)
        pending = asyncio.ensure_future(next_changes(watch))
        await blocking(etcd.kill)
        with pytest.raises((Unavailable, Uncertain)):
            await store.commit(puts=[Put("a/lost", b"1")])
        # By now the connection is known to be gone, so nothing can have been sent.
        for _ in range(3):
            with pytest.raises(Unavailable):
                await store.commit(puts=[Put("a/lost", b"1")])
        for call in (store.get("a/1"), store.list("a/"), store.lease(5), lease.refresh(), lease.revoke()):
            with pytest.raises(Unavailable):
                await call
        await blocking(etcd.start)
        found = await until(lambda: store.get("a/1"), Unavailable)
        assert found is not None
        assert (found.value, found.mod_revision) == (b"1", revision)
        later = await store.commit(puts=[Put("a/2", b"2")])
        assert (await pending).revision == later
        await until(lease.refresh, Unavailable)
        await watch.aclose()
        await store.close()

    async def test_stopped_does_not_hang(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url], timeout=1)
        await store.commit(puts=[Put("a/1", b"1")])
        lease = await store.lease(60)
        etcd.pause()
        results = await asyncio.gather(
            store.commit(puts=[Put("a/2", b"1")]),
            store.commit([Guard("a/1", 0)], [Put("a/1", b"1")]),
            store.get("a/1"),
            store.list("a/"),
            store.lease(5),
            lease.refresh(),
            return_exceptions=True,
        )
        assert all(isinstance(result, Unavailable | Uncertain) for result in results)
        assert all(isinstance(result, Unavailable) for result in results[2:])
        etcd.resume()
        await until(lambda: store.commit(puts=[Put("a/3", b"1")]), Unavailable, Uncertain)
        await store.close()

    async def test_closing_while_it_is_stopped_ends(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url], timeout=1)
        watch = store.watch("a/", 1)
        reading = asyncio.ensure_future(anext(watch))
        etcd.pause()
        commit = asyncio.ensure_future(store.commit(puts=[Put("a/2", b"1")]))
        await asyncio.sleep(0)
        await store.close()
        results = await asyncio.gather(reading, commit, return_exceptions=True)
        assert all(isinstance(result, Unavailable | Uncertain) for result in results)

    async def test_kills_lose_no_acknowledged_commit(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url], timeout=2)
        acknowledged: dict[str, int] = {}
        enough = asyncio.Event()
        stop = False

        async def write(writer: int) -> None:
            number = 0
            while not stop:
                key = f"a/{writer}/{number}"
                try:
                    acknowledged[key] = await store.commit([Guard(key, 0)], [Put(key, b"1")])
                except (Unavailable, Uncertain):
                    await asyncio.sleep(0.01)
                number += 1
                if len(acknowledged) >= target:
                    enough.set()

        target = 0
        writers = [asyncio.ensure_future(write(writer)) for writer in range(16)]
        for _ in range(3):
            target = len(acknowledged) + 300
            enough.clear()
            await enough.wait()
            await blocking(etcd.kill)
            await blocking(etcd.start)
        stop = True
        await asyncio.gather(*writers)
        listing = await until(lambda: store.list("a/"), Unavailable)
        found = {item.key: item.mod_revision for item in listing.items}
        assert acknowledged.items() <= found.items()
        await store.close()


class TestEndpoints:
    async def test_dead_ones_in_the_list(self, etcd: Etcd) -> None:
        store = await open_etcd(["127.0.0.1:1", f"http://{etcd.address}/", "127.0.0.1:2"])
        await store.commit(puts=[Put("a", b"1")])
        await store.close()

    async def test_failover(self, etcd: Etcd) -> None:
        async with TcpProxy(etcd.address) as first, TcpProxy(etcd.address) as second:
            store = await open_etcd([first.address, second.address], timeout=1)
            start = await store.commit(puts=[Put("a/0", b"")])
            async with aclosing(store.watch("a/", start)) as watch:
                for number, (down, up) in enumerate([(first, second), (second, first)] * 2, 1):
                    down.refuse()
                    up.refuse(False)
                    down.cut()
                    put = Put(f"a/{number}", b"")
                    revision = await until(lambda put=put: store.commit(puts=[put]), Unavailable, Uncertain)  # type: ignore[misc]
                    # An uncertain one may have been made too.
                    while (await next_changes(watch)).revision < revision:
                        pass
            await store.close()

    async def test_one_that_answers_nothing_is_passed_over(self, etcd: Etcd) -> None:
        async with TcpProxy(etcd.address) as silent, TcpProxy(etcd.address) as other:
            other.refuse()
            store = await open_etcd([silent.address, other.address], timeout=1)
            other.refuse(False)
            silent.hold_answers()
            with pytest.raises(Uncertain):
                await store.commit(puts=[Put("a", b"1")])
            await until(lambda: store.commit(puts=[Put("a", b"2")]), Unavailable)
            assert other.connections
            await store.close()


class TestWatch:
    async def test_interrupted_at_any_moment_it_loses_and_repeats_nothing(self, etcd: Etcd) -> None:
        direct = await open_etcd([etcd.url])
        start = (await direct.list("a/")).revision
        async with TcpProxy(etcd.address) as proxy:
            store = await open_etcd([proxy.address])
            seen: list[Change] = []

            async def read() -> None:
                async with aclosing(store.watch("a/", start)) as watch:
                    async for item in watch:
                        assert isinstance(item, Changes)
                        seen.extend(item.changes)
                        if len(seen) >= 2_000:
                            return

            reading = asyncio.ensure_future(read())
            for number in range(10):
                await asyncio.gather(
                    *(
                        direct.commit(puts=[Put(f"a/{number}/{index}/{part}", b"x" * 500) for part in range(2)])
                        for index in range(100)
                    )
                )
                proxy.cut()
            await reading
            assert [change.mod_revision for change in seen] == sorted(change.mod_revision for change in seen)
            assert len({change.key for change in seen}) == len(seen) == 2_000
            await store.close()
        await direct.close()

    async def test_half_open_connections_are_noticed(
        self, start_etcd: StartEtcd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = await blocking(start_etcd, "--grpc-keepalive-min-time", "500ms")
        quick = {"grpc.keepalive_time_ms": 1_000, "grpc.http2.ping_timeout_ms": 1_000}
        monkeypatch.setattr(
            etcd_client, "_OPTIONS", [(name, quick.get(name, value)) for name, value in etcd_client._OPTIONS]
        )
        direct = await open_etcd([server.url])
        async with TcpProxy(server.address) as proxy:
            store = await open_etcd([proxy.address])
            start = await store.commit(puts=[Put("a/1", b"")])
            async with aclosing(store.watch("a/", start)) as watch:
                second = await store.commit(puts=[Put("a/2", b"")])
                assert (await next_changes(watch)).revision == second
                proxy.freeze()
                third = await direct.commit(puts=[Put("a/3", b"")])
                assert (await next_changes(watch)).revision == third
            await store.close()
        await direct.close()

    async def test_compaction_gives_a_reset(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url])
        first = await store.commit(puts=[Put("a/1", b"")])
        await store.commit(puts=[Put("a/1", b"2")])
        last = await store.commit(puts=[Put("a/1", b"3")])
        with peer_of(etcd) as peer:
            await blocking(peer.compact, last)
        async with aclosing(store.watch("a/", first)) as watch:
            assert await anext(watch) == Reset(last)
            later = await store.commit(puts=[Put("a/2", b"")])
            assert (await next_changes(watch)).revision == later
        # From the compacted revision itself on, nothing is missing.
        async with aclosing(store.watch("a/", last - 1)) as watch:
            assert (await next_changes(watch)).revision == last
        await store.close()

    async def test_a_reader_that_falls_behind_compaction_gets_a_reset(self, etcd: Etcd) -> None:
        direct = await open_etcd([etcd.url])
        start = await direct.commit(puts=[Put("a/0", b"")])
        async with TcpProxy(etcd.address) as proxy:
            store = await open_etcd([proxy.address])
            async with aclosing(store.watch("a/", start)) as watch:
                second = await direct.commit(puts=[Put("a/0", b"1")])
                assert (await next_changes(watch)).revision == second
                proxy.refuse()
                proxy.cut()
                last = second
                for number in range(3):
                    last = await direct.commit(puts=[Put("a/0", b"%d" % number)])
                with peer_of(etcd) as peer:
                    await blocking(peer.compact, last)
                proxy.refuse(False)
                assert await anext(watch) == Reset(last)
            await store.close()
        await direct.close()

    async def test_the_store_compacts_by_itself(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url], compaction_interval=0.1)
        first = await store.commit(puts=[Put("a/1", b"")])
        item: Changes | Reset = Changes(0, ())
        while not isinstance(item, Reset):
            await store.commit(puts=[Put("a/1", b"again")])
            async with aclosing(store.watch("a/", first)) as watch:
                item = await anext(watch)
        found = await store.get("a/1")
        assert found is not None
        assert found.value == b"again"
        await store.close()

    async def test_progress_keeps_an_idle_position_ahead_of_compaction(
        self, etcd: Etcd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(etcd_watch, "_PROGRESS_S", 0.05)
        direct = await open_etcd([etcd.url])
        async with TcpProxy(etcd.address) as proxy:
            store = await open_etcd([proxy.address])
            if not etcd_watch.tells_true_progress((await store._client.endpoint()).version):
                await store.close()
                await direct.close()
                pytest.skip("this version's answers to progress requests can't be relied on")
            start = await direct.commit(puts=[Put("a/0", b"")])
            watch = etcd_watch.Watch(store._client, "a/", start, store._closed)
            changes = watch.changes()
            reading = asyncio.ensure_future(next_changes(changes))
            last = start
            for _ in range(5):
                last = await direct.commit(puts=[Put("other", b"")])
            await wait_for(lambda: watch._position >= last)
            with peer_of(etcd) as peer:
                await blocking(peer.compact, last)
            proxy.cut()
            later = await direct.commit(puts=[Put("a/1", b"")])
            assert (await reading).revision == later
            await changes.aclose()
            await store.close()
        await direct.close()

    async def test_another_cluster_at_the_same_address_gives_a_reset(
        self, start_etcd: StartEtcd, tmp_path: Path
    ) -> None:
        old, new = await blocking(start_etcd), await blocking(start_etcd)
        direct = await open_etcd([new.url])
        for number in range(9):
            await direct.commit(puts=[Put("b", b"%d" % number)])
        async with TcpProxy(old.address) as proxy:
            store = await open_etcd([proxy.address])
            epoch = store.epoch
            start = await store.commit(puts=[Put("a/1", b"")])
            async with aclosing(store.watch("a/", start)) as watch:
                second = await store.commit(puts=[Put("a/2", b"")])
                assert (await next_changes(watch)).revision == second
                proxy._port = int(new.address.rpartition(":")[2])
                proxy.cut()
                reset = await anext(watch)
                assert isinstance(reset, Reset)
                assert store.epoch == direct.epoch != epoch
            await store.close()
        await direct.close()


class TestQuota:
    async def test_full_is_exhausted_and_disarmed_it_goes_on(self, start_etcd: StartEtcd) -> None:
        server = await blocking(start_etcd, "--quota-backend-bytes", str(4 << 20))
        store = await open_etcd([server.url])
        content = b"x" * 200_000
        await store.commit(puts=[Put("a/kept", b"1")])

        async def fill() -> None:
            for number in range(100):
                # The write that passes the quota may be made and answered as if it had been refused.
                with suppress(Uncertain):
                    await store.commit(puts=[Put(f"a/{number}", content)])

        with pytest.raises(Exhausted):
            await fill()
        assert (await store.list("a/", keys_only=True)).items
        # Deletes go on even when they are gathered with what is refused.
        results = await asyncio.gather(
            store.commit(puts=[Put("b/1", b"")]),
            store.commit(deletes=["a/kept"]),
            store.commit(puts=[Put("b/2", b"")]),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [Exhausted, int, Exhausted]
        assert await store.get("a/kept") is None
        listing = await store.list("a/", keys_only=True)
        last = await store.commit(deletes=[item.key for item in listing.items])
        with peer_of(server) as peer:
            await blocking(peer.compact, last, physical=True)
            await blocking(peer.defragment)
            for alarm in await blocking(lambda: list(peer.list_alarms())):
                await blocking(peer.disarm_alarm, alarm.member_id)
        await until(lambda: store.commit(puts=[Put("b/3", b"")]), Exhausted)
        await store.close()


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca, server and client .crt and .key."""
    folder = tmp_path_factory.mktemp("tls")
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl(folder, *new, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
    signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    usage = "extendedKeyUsage=serverAuth,clientAuth"
    for name, alternative in [("server", "IP:127.0.0.1,DNS:etcd.test"), ("client", "DNS:client.test")]:
        names = ["-addext", f"subjectAltName={alternative}", "-addext", usage]
        openssl(folder, *new, *signed, *names, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")
    return folder


class TestSecurity:
    def tls_arguments(self, folder: Path) -> list[str]:
        return [
            *("--cert-file", str(folder / "server.crt"), "--key-file", str(folder / "server.key")),
            *("--trusted-ca-file", str(folder / "ca.crt"), "--client-cert-auth"),
        ]

    async def test_tls_with_client_certificates(self, start_etcd: StartEtcd, certificates: Path) -> None:
        server = await blocking(start_etcd, *self.tls_arguments(certificates), scheme="https")
        ca, cert, key = (certificates / name for name in ("ca.crt", "client.crt", "client.key"))
        for tls in (Tls(ca, cert, key), Tls(ca, cert, key, server_name="etcd.test")):
            store = await open_etcd([server.url], tls=tls)
            await store.commit(puts=[Put("a", b"1")])
            async with aclosing(store.watch("a", 1)) as watch:
                await next_changes(watch)
            await store.close()
        for tls in (Tls(ca), Tls(cert, cert, key), Tls(ca, cert, key, server_name="other.test"), None):
            with pytest.raises(Unavailable):
                await open_etcd([server.url], tls=tls, timeout=2)

    async def test_user_and_password(self, etcd: Etcd) -> None:
        await blocking(self.enable_authentication, etcd)
        with pytest.raises(Unavailable, match="authentication failed"):
            await open_etcd([etcd.url], username="conveyor", password="wrong")
        store = await open_etcd([etcd.url], username="conveyor", password="secret", timeout=2)
        start = await store.commit(puts=[Put("a/1", b"1")])
        lease = await store.lease(60)
        watch = store.watch("a/", start)
        reading = asyncio.ensure_future(next_changes(watch))
        await lease.refresh()
        # A restarted server has forgotten its tokens.
        await blocking(etcd.kill)
        await blocking(etcd.start)
        later = await until(lambda: store.commit(puts=[Put("a/2", b"1")]), Unavailable, Uncertain)
        assert (await reading).revision == later
        await until(lease.refresh, Unavailable)
        # Nothing but a/ is allowed to this user.
        with pytest.raises(Unavailable, match="permission denied"):
            await store.commit(puts=[Put("b/1", b"1")])
        await watch.aclose()
        await store.close()

    async def test_credentials_for_a_server_that_asks_for_none(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url], username="conveyor", password="secret")
        await store.commit(puts=[Put("a/1", b"1")])
        await store.close()

    async def test_authentication_switched_on_while_in_use(self, etcd: Etcd) -> None:
        store = await open_etcd([etcd.url], username="conveyor", password="secret")
        await store.commit(puts=[Put("a/1", b"1")])
        await blocking(self.enable_authentication, etcd)
        await store.commit(puts=[Put("a/2", b"1")])
        await store.close()

    def enable_authentication(self, server: Etcd) -> None:
        with grpc.insecure_channel(server.address) as channel:
            auth = etcdrpc.AuthStub(channel)
            auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name="a"))
            permission = etcdrpc.Permission(permType=2, key=b"a/", range_end=b"a0")
            auth.RoleGrantPermission(etcdrpc.AuthRoleGrantPermissionRequest(name="a", perm=permission))
            for name, password, role in [("root", "root", "root"), ("conveyor", "secret", "a")]:
                auth.UserAdd(etcdrpc.AuthUserAddRequest(name=name, password=password))
                auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user=name, role=role))
            auth.AuthEnable(etcdrpc.AuthEnableRequest())


async def test_too_many_keys_at_once_for_one_page_are_listed_under_compaction(etcd: Etcd) -> None:
    store: EtcdStore = await open_etcd([etcd.url], compaction_interval=0.05)
    await asyncio.gather(
        *(
            store.commit(puts=[Put(f"a/{index:05}", b"x" * 100) for index in range(start, start + 90)])
            for start in range(0, 9_000, 90)
        )
    )

    async def churn() -> None:
        while True:
            await store.commit(puts=[Put("b", b"1")])

    churning = asyncio.ensure_future(churn())
    for _ in range(10):
        assert len((await store.list("a/")).items) == 9_000
    churning.cancel()
    await asyncio.gather(churning, return_exceptions=True)
    await store.close()

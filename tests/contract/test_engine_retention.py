"""Finished runs go after their time, and when there are too many; unfinished ones stay."""

from __future__ import annotations

from typing import Any

import pytest

from conveyor.core.events import CancelRequested
from conveyor.core.plan import SECOND
from conveyor.engine.retention import Retention
from conveyor.state import keys
from conveyor.store.port import Put
from conveyor.v1 import pipeline_pb2
from tests.support.rig import Replica, resource, step

DAY = 86_400 * SECOND


def retention(replica: Replica, *, age: int = 0, count: int = 0) -> Retention:
    async def delete(namespace: str, run: str) -> None:
        await replica.runs.delete(namespace, run)

    return Retention(replica.store, replica.runs, replica.presence, replica.clock, delete, age=age, count=count)


async def finished(replica: Replica, namespace: str = "default") -> str:
    run = await launched(replica, namespace)
    await replica.engine.request(namespace, run, CancelRequested("", 0, force=True))
    return run


async def launched(replica: Replica, namespace: str = "default") -> str:
    pipeline = pipeline_pb2.Pipeline(namespace=namespace, name="p", steps=[step("a")])
    prepared = replica.launcher.prepare(namespace, resource(), pipeline, labels={})
    await replica.launcher.launched(prepared, await replica.store.commit(prepared.guards, prepared.puts))
    return prepared.run_id


async def left(replica: Replica, namespace: str = "default") -> list[str]:
    return (await replica.runs.page(keys.index_runs(namespace), "", 1000))[0]


async def test_runs_over_age_go_but_not_those_that_ended_lately(replica: Replica) -> None:
    old = await finished(replica)
    late = await launched(replica)
    unfinished = await launched(replica)
    replica.clock.advance(2 * 86_400 - 60)
    await replica.engine.request("default", late, CancelRequested("", 0, force=True))
    replica.clock.advance(120)
    new = await finished(replica)
    assert await retention(replica, age=2 * DAY).once() == 1
    assert set(await left(replica)) == {late, unfinished, new}
    assert old not in await left(replica)
    assert await retention(replica, age=2 * DAY).once() == 0


@pytest.mark.parametrize("kept", [1, 5])
async def test_the_newest_stay_when_there_are_too_many(replica: Replica, kept: int) -> None:
    runs = {space: [await finished(replica, space) for _ in range(8)] for space in ("default", "other")}
    unfinished = await launched(replica, "few")
    few = await finished(replica, "few")
    deleted = await retention(replica, count=kept).once()
    assert deleted == 2 * (8 - kept)
    for space, ids in runs.items():
        assert await left(replica, space) == ids[::-1][:kept]
    assert set(await left(replica, "few")) == {unfinished, few}


async def test_nothing_at_all_stays_of_a_deleted_run(replica: Replica) -> None:
    await finished(replica)
    replica.clock.advance(10)
    await retention(replica, age=SECOND).once()
    listing = await replica.store.list(keys.ROOT, keys_only=True)
    assert [kv.key for kv in listing.items] == []


async def test_runs_that_cannot_be_read_or_were_deleted_stop_nothing(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [await finished(replica) for _ in range(4)]
    await replica.store.commit((), [Put(keys.head("default", runs[0]), b"\xff\xff")])
    await replica.store.commit((), [Put(keys.spec("default", runs[1]), b"\xff\xff")])
    await replica.store.commit((), (), [keys.head("default", runs[2])])
    replica.clock.advance(10)
    subject: Any = retention(replica, age=SECOND)
    await subject.once()
    assert runs[3] not in await left(replica)

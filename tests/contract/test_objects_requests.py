"""Request ids: one request, one effect; and commits whose answers are lost."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.struct_pb2 import Struct

from conveyor.core import errors
from conveyor.state import keys
from conveyor.state.kinds import PIPELINE, RESOURCE
from conveyor.state.objects import Mode
from conveyor.store.port import LeaseLost, Store, Uncertain
from conveyor.v1 import apply_pb2, run_pb2
from tests.support.objects import World
from tests.support.stores import Backend


@pytest.fixture
def world(store: Store, backend: Backend) -> World:
    """A namespace of the test's own: the stores of etcd are shared."""
    return World(store, "t" + backend.prefix.strip("/"))


async def test_a_repeated_request_gets_the_first_answer_and_does_nothing(world: World) -> None:
    await world.setup()
    item = world.resource(spec={"a": 1})
    slip = await world.slip("one", item)
    first = await world.objects.write(RESOURCE, item, Mode.CREATE, slip)
    await world.objects.write(RESOURCE, world.resource(spec={"a": 2}), Mode.UPDATE)
    again = await world.objects.write(RESOURCE, item, Mode.CREATE, await world.slip("one", item))
    assert (again.item, again.outcome) == (first.item, first.outcome)
    assert first.run is not None
    assert again.run is not None
    assert again.run.id == first.run.id
    assert (await world.objects.get(RESOURCE, world.key())).object.generation == 2
    assert len(await world.run_ids()) == 2


async def test_the_id_of_another_request_is_refused(world: World) -> None:
    await world.setup()
    item = world.resource()
    await world.objects.write(RESOURCE, item, Mode.CREATE, await world.slip("one", item))
    different = world.resource("api")
    with pytest.raises(errors.RequestIdReused):
        await world.objects.write(RESOURCE, different, Mode.CREATE, await world.slip("one", different))
    with pytest.raises(errors.NotFound):
        await world.objects.get(RESOURCE, world.key("api"))


async def test_twenty_at_once_with_one_id_have_one_effect(world: World, store: Store) -> None:
    await world.setup()
    other = World(store, world.namespace)
    item = world.resource()

    async def create(who: World) -> str:
        written = await who.objects.write(RESOURCE, item, Mode.CREATE, await who.slip("one", item))
        return written.run.id if written.run is not None else ""

    async def start(who: World) -> str:
        return (await who.starts.start(world.namespace, "app", "web", slip=await who.slip("two", item))).id

    created = await asyncio.gather(*(create(who) for who in [world, other] * 10))
    started = await asyncio.gather(*(start(who) for who in [world, other] * 10))
    assert len(set(created)) == len(set(started)) == 1
    assert sorted({*created, *started}) == sorted(await world.run_ids())
    assert len(await world.run_ids()) == 2


@pytest.mark.parametrize("mode", [Mode.UPDATE, Mode.APPLY])
async def test_a_repeated_change_says_again_what_it_did(world: World, mode: Mode) -> None:
    """Also when by then the etag is another, or nothing would change any more."""
    await world.setup()
    created = await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    item = world.resource(spec={"a": 1}, etag=f"{created.item.mod_revision:x}")
    first = await world.objects.write(RESOURCE, item, mode, await world.slip("one", item))
    again = await world.objects.write(RESOURCE, item, mode, await world.slip("one", item))
    assert first.outcome == again.outcome == apply_pb2.APPLY_OUTCOME_CHANGED
    assert first.item == again.item
    assert first.run == again.run


async def test_an_apply_that_changed_nothing_stays_so(world: World) -> None:
    await world.setup()
    item = world.resource()
    await world.objects.write(RESOURCE, item, Mode.CREATE)
    first = await world.objects.write(RESOURCE, item, Mode.APPLY, await world.slip("one", item))
    await world.objects.write(RESOURCE, world.resource(spec={"a": 1}), Mode.UPDATE)
    again = await world.objects.write(RESOURCE, item, Mode.APPLY, await world.slip("one", item))
    assert first.outcome == again.outcome == apply_pb2.APPLY_OUTCOME_UNCHANGED
    assert again.item == first.item
    assert (await world.objects.get(RESOURCE, world.key())).object.generation == 2


async def test_what_a_request_made_may_be_gone(world: World) -> None:
    await world.setup()
    item = world.resource()
    await world.objects.write(RESOURCE, item, Mode.CREATE, await world.slip("one", item))
    run = await world.starts.start(world.namespace, "app", "web", slip=await world.slip("two", item))
    await world.objects.delete(RESOURCE, world.key())
    await world.store.commit(deletes=[keys.head(world.namespace, run.id)])
    with pytest.raises(errors.NotFound, match="deleted"):
        await world.objects.write(RESOURCE, item, Mode.CREATE, await world.slip("one", item))
    with pytest.raises(errors.NotFound, match="deleted"):
        await world.starts.start(world.namespace, "app", "web", slip=await world.slip("two", item))


async def test_a_request_that_was_refused_may_be_repeated(world: World) -> None:
    await world.setup()
    item = world.resource(pipeline="later")
    with pytest.raises(errors.UnknownPipeline):
        await world.objects.write(RESOURCE, item, Mode.CREATE, await world.slip("one", item))
    await world.objects.write(PIPELINE, world.pipeline("later"), Mode.CREATE)
    await world.objects.write(RESOURCE, item, Mode.CREATE, await world.slip("one", item))


async def test_requests_of_one_minute_share_a_lease_and_a_lost_one_is_replaced(world: World) -> None:
    await world.setup()
    first, second = world.resource("a"), world.resource("b")
    slips = [await world.slip("one", first), await world.slip("two", second)]
    assert slips[0].lease == slips[1].lease
    world.store.fail_before = [LeaseLost("gone")]
    await world.objects.write(RESOURCE, first, Mode.CREATE, slips[0])
    assert (await world.slip("three", second)).lease != slips[0].lease
    again = await world.objects.write(RESOURCE, first, Mode.CREATE, slips[0])
    assert again.item.object.generation == 1


async def test_a_note_is_taken_once(world: World) -> None:
    request = Struct()
    slip = await world.slip("one", request)
    assert await world.requests.note(slip, run="r")
    assert not await world.requests.note(slip, run="r")
    request.update({"a": 1})
    with pytest.raises(errors.RequestIdReused):
        await world.requests.note(await world.slip("one", request), run="r")


# Lost answers


async def test_a_change_whose_answer_was_lost_is_found(world: World) -> None:
    await world.setup()
    world.store.fail_after = [Uncertain("lost")]
    written = await world.objects.write(RESOURCE, world.resource(spec={"a": 1}), Mode.CREATE)
    assert await world.objects.get(RESOURCE, world.key()) == written.item
    assert written.run is not None
    assert world.launcher.launched_runs == [written.run.id]
    world.store.fail_after = [Uncertain("lost")]
    run = await world.starts.start(world.namespace, "app", "web")
    assert world.launcher.launched_runs[-1] == run.id
    world.store.fail_after = [Uncertain("lost")]
    await world.objects.delete(RESOURCE, world.key())
    assert world.launcher.abandoned_runs == []


async def test_a_commit_that_is_not_to_be_seen_has_an_unknown_outcome(world: World) -> None:
    await world.setup()
    for _ in range(2):
        world.store.fail_before = [Uncertain("lost")]
        with pytest.raises(errors.OutcomeUnknown):
            await world.objects.write(RESOURCE, world.resource(), Mode.APPLY)
        with pytest.raises(errors.NotFound):
            await world.objects.get(RESOURCE, world.key())
    await world.objects.write(RESOURCE, world.resource(), Mode.APPLY)
    world.store.fail_before = [Uncertain("lost")]
    with pytest.raises(errors.OutcomeUnknown):
        await world.starts.start(world.namespace, "app", "web")
    world.store.fail_before = [Uncertain("lost")]
    with pytest.raises(errors.OutcomeUnknown):
        await world.objects.delete(RESOURCE, world.key())
    assert len(world.launcher.abandoned_runs) == 3


async def test_an_answer_that_is_lost_with_the_store_is_unknown_not_unavailable(world: World) -> None:
    """UNAVAILABLE with STORE_UNAVAILABLE says that nothing happened: here something did."""
    await world.setup()
    world.store.fail_after, world.store.fail_reads = [Uncertain("lost")], 1
    item = world.resource()
    with pytest.raises(errors.OutcomeUnknown):
        await world.objects.write(RESOURCE, item, Mode.CREATE, await world.slip("one", item))
    again = await world.objects.write(RESOURCE, item, Mode.CREATE, await world.slip("one", item))
    assert again.outcome == apply_pb2.APPLY_OUTCOME_CREATED
    assert len(await world.run_ids()) == 1


async def test_a_caller_that_goes_away_in_mid_commit_does_not_stop_what_it_began(world: World) -> None:
    await world.setup()
    committed = asyncio.Event()
    real = world.store.commit

    async def commit(guards: object = (), puts: object = (), deletes: object = ()) -> int:
        revision = await real(guards, puts, deletes)  # type: ignore[arg-type]
        committed.set()
        await asyncio.sleep(0)
        return revision

    world.store.commit = commit  # type: ignore[method-assign, assignment]
    launched = asyncio.Event()
    launch = world.launcher.launched

    async def noting(prepared: object, revision: int) -> run_pb2.Run:
        run = await launch(prepared, revision)  # type: ignore[arg-type]
        launched.set()
        return run

    world.launcher.launched = noting  # type: ignore[method-assign, assignment]
    call = asyncio.create_task(world.objects.write(RESOURCE, world.resource(), Mode.CREATE))
    await committed.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await launched.wait()
    assert world.launcher.launched_runs == await world.run_ids()

"""The repository of objects, on every store: one winner, one history, and nothing read that need not be."""

from __future__ import annotations

import asyncio

import pytest

from conveyor.core import errors, limits
from conveyor.state import keys
from conveyor.state.kinds import DEFINITION, PIPELINE, RESOURCE
from conveyor.state.objects import Mode, Written
from conveyor.state.views import etag
from conveyor.store.port import Guard, Put, Store, Unavailable
from conveyor.v1 import apply_pb2, resource_pb2
from tests.support.objects import World
from tests.support.stores import Backend


@pytest.fixture
def world(store: Store, backend: Backend) -> World:
    """A namespace of the test's own: the stores of etcd are shared."""
    return World(store, "t" + backend.prefix.strip("/"))


@pytest.fixture
def other(store: Store, world: World) -> World:
    """Another process on the same store."""
    return World(store, world.namespace)


async def outcomes(*writes: object) -> list[object]:
    return await asyncio.gather(*writes, return_exceptions=True)  # type: ignore[call-overload, no-any-return]


# One winner


async def test_of_twenty_creates_at_once_one_wins(world: World, other: World) -> None:
    await world.setup()
    done = await outcomes(
        *(
            who.objects.write(RESOURCE, world.resource(spec={"from": i}), Mode.CREATE)
            for i, who in enumerate([world, other] * 10)
        )
    )
    won = [result for result in done if isinstance(result, Written)]
    assert len(won) == 1
    assert [type(result) for result in done if result is not won[0]] == [errors.AlreadyExists] * 19
    stored = await world.objects.get(RESOURCE, world.key())
    assert stored.object == won[0].item.object
    assert won[0].run is not None
    assert await world.run_ids() == [won[0].run.id]
    assert sorted(world.launcher.launched_runs + other.launcher.launched_runs) == [won[0].run.id]
    started = world.launcher.prepared + other.launcher.prepared
    assert len(world.launcher.abandoned_runs + other.launcher.abandoned_runs) == started - 1


async def test_of_twenty_updates_of_one_etag_one_wins(world: World, other: World) -> None:
    await world.setup()
    created = await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    current = etag(created.item.mod_revision)
    done = await outcomes(
        *(
            who.objects.write(RESOURCE, world.resource(spec={"from": i}, etag=current), Mode.UPDATE)
            for i, who in enumerate([world, other] * 10)
        )
    )
    won = [result for result in done if isinstance(result, Written)]
    assert len(won) == 1
    assert [type(result) for result in done if result is not won[0]] == [errors.EtagMismatch] * 19
    assert (await world.objects.get(RESOURCE, world.key())).object.generation == 2
    assert len(await world.run_ids()) == 2


async def test_twenty_updates_without_an_etag_all_count_one_after_the_other(world: World, other: World) -> None:
    await world.setup()
    await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    done = await asyncio.gather(
        *(
            who.objects.write(RESOURCE, world.resource(spec={"from": i}), Mode.UPDATE)
            for i, who in enumerate([world, other] * 10)
        )
    )
    assert sorted(result.item.object.generation for result in done) == list(range(2, 22))
    history = await world.objects.page(RESOURCE, keys.history(world.key()), "", 100)
    assert [item.object.generation for item in history.items] == list(range(21, 0, -1))
    by_generation = {item.object.generation: item.object for item in history.items}
    assert all(by_generation[result.item.object.generation] == result.item.object for result in done)


async def test_parallel_applies_of_the_same_thing_change_it_once(world: World, other: World) -> None:
    await world.setup()
    done = await asyncio.gather(
        *(who.objects.write(RESOURCE, world.resource(spec={"a": 1}), Mode.APPLY) for who in [world, other] * 10)
    )
    kinds = [result.outcome for result in done]
    assert kinds.count(apply_pb2.APPLY_OUTCOME_CREATED) == 1
    assert kinds.count(apply_pb2.APPLY_OUTCOME_UNCHANGED) == 19
    assert len(await world.run_ids()) == 1


# What a write does


async def test_a_create_sets_what_is_the_servers_and_a_change_moves_it_on(world: World) -> None:
    await world.setup()
    mine = world.resource(uid="mine", generation=9, etag="mine", create_time={"seconds": 1}, update_time={"seconds": 1})
    first = (await world.objects.write(RESOURCE, mine, Mode.CREATE)).item.object
    assert first.uid not in ("", "mine")
    assert first.generation == 1
    assert first.create_time == first.update_time
    assert first.create_time.seconds > 1
    assert not first.etag  # it comes from the revision
    second = (await world.objects.write(RESOURCE, world.resource(spec={"a": 1}), Mode.UPDATE)).item.object
    assert (second.uid, second.generation, second.create_time) == (first.uid, 2, first.create_time)
    assert second.update_time.ToMicroseconds() >= first.update_time.ToMicroseconds()


async def test_a_clock_that_steps_back_does_not_turn_time_round(store: Store, world: World) -> None:
    times = iter([5_000_000, 3_000_000, 9_000_000])
    stepping = World(store, world.namespace, lambda: next(times))
    seen = []
    for i in range(3):
        written = await stepping.objects.write(PIPELINE, world.pipeline("main", description=str(i)), Mode.APPLY)
        seen.append(written.item.object.update_time.seconds)
    assert seen == [5, 5, 9]


async def test_an_object_of_the_same_name_later_is_another_one(world: World) -> None:
    await world.setup()
    first = await world.objects.write(RESOURCE, world.resource(spec={"a": 1}), Mode.CREATE)
    await world.objects.write(RESOURCE, world.resource(spec={"a": 2}), Mode.UPDATE)
    await world.objects.delete(RESOURCE, world.key())
    again = await world.objects.write(RESOURCE, world.resource(spec={"a": 3}), Mode.CREATE)
    assert again.item.object.uid != first.item.object.uid
    assert again.item.object.generation == 1
    history = await world.objects.page(RESOURCE, keys.history(world.key()), "", 100)
    assert [item.object.spec["a"] for item in history.items] == [3]


async def test_apply_says_what_it_did_and_starts_a_run_only_for_a_change(world: World) -> None:
    await world.setup()
    first = await world.objects.write(RESOURCE, world.resource(labels={"a": "b"}), Mode.APPLY)
    same = await world.objects.write(RESOURCE, world.resource(labels={"a": "b"}), Mode.APPLY)
    changed = await world.objects.write(RESOURCE, world.resource(labels={"a": "c"}), Mode.APPLY)
    assert [first.outcome, same.outcome, changed.outcome] == [
        apply_pb2.APPLY_OUTCOME_CREATED,
        apply_pb2.APPLY_OUTCOME_UNCHANGED,
        apply_pb2.APPLY_OUTCOME_CHANGED,
    ]
    assert same.run is None
    assert same.item == first.item
    assert len(await world.run_ids()) == 2


async def test_an_update_without_a_change_starts_nothing(world: World) -> None:
    await world.setup()
    await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    same = await world.objects.write(RESOURCE, world.resource(), Mode.UPDATE)
    assert (same.item.object.generation, same.run) == (1, None)


async def test_a_run_has_the_generations_of_what_it_came_from(world: World) -> None:
    await world.setup()
    await world.objects.write(PIPELINE, world.pipeline("main", "build", "test"), Mode.UPDATE)
    await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    written = await world.objects.write(RESOURCE, world.resource(labels={"a": "b"}), Mode.UPDATE)
    assert written.run is not None
    assert (written.run.pipeline_generation, written.run.resource_generation) == (2, 2)
    assert dict(written.run.labels) == {"a": "b"}


async def test_missing_objects(world: World) -> None:
    await world.setup()
    with pytest.raises(errors.NotFound, match=f"there is no resource app/web in namespace {world.namespace}"):
        await world.objects.write(RESOURCE, world.resource(), Mode.UPDATE)
    with pytest.raises(errors.NotFound):
        await world.objects.get(RESOURCE, world.key())
    with pytest.raises(errors.NotFound):
        await world.objects.delete(RESOURCE, world.key())
    with pytest.raises(errors.EtagMismatch):
        await world.objects.write(RESOURCE, world.resource(etag="1"), Mode.APPLY)
    assert await world.run_ids() == []


async def test_what_a_resource_names_must_be_there_and_fit(world: World) -> None:
    await world.setup(schema={"required": ["a"]})
    await world.objects.write(PIPELINE, world.pipeline("images", definition="image"), Mode.CREATE)
    cases: list[tuple[resource_pb2.Resource, type[errors.DomainError]]] = [
        (world.resource(definition="nope"), errors.UnknownDefinition),
        (world.resource(spec={"a": 1}, pipeline="nope"), errors.UnknownPipeline),
        (world.resource(spec={"a": 1}, pipeline="images"), errors.DefinitionMismatch),
        (world.resource(), errors.SchemaViolation),
    ]
    for item, kind in cases:
        with pytest.raises(kind):
            await world.objects.write(RESOURCE, item, Mode.CREATE)
    assert await world.run_ids() == []
    assert (await world.objects.page(RESOURCE, keys.resources(world.namespace), "", 10)).items == []


async def test_a_schema_that_cannot_be_used_is_refused(world: World) -> None:
    for mode in (Mode.CREATE, Mode.APPLY):
        with pytest.raises(errors.InvalidSchema):
            await world.objects.write(DEFINITION, world.definition(schema={"$ref": "https://example.com/s"}), mode)
    with pytest.raises(errors.NotFound):
        await world.objects.get(DEFINITION, keys.definition(world.namespace, "app"))


@pytest.mark.parametrize("mode", Mode)
async def test_validate_only_stores_nothing_and_answers_as_if_it_had(world: World, mode: Mode) -> None:
    await world.setup()
    if mode is Mode.UPDATE:
        await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    before = await world.run_ids()
    written = await world.objects.write(RESOURCE, world.resource(spec={"a": 1}), mode, validate_only=True)
    assert written.run is not None
    assert written.run.resource == "web"
    assert written.item.object.generation == (2 if mode is Mode.UPDATE else 1)
    assert written.item.mod_revision == 0
    assert await world.run_ids() == before
    assert world.launcher.abandoned_runs == [written.run.id]
    with pytest.raises(errors.UnknownPipeline):
        await world.objects.write(RESOURCE, world.resource(pipeline="nope"), mode, validate_only=True)


async def test_history_is_kept_within_bounds_and_goes_with_its_object(world: World) -> None:
    await world.setup()
    key = keys.pipeline(world.namespace, "main")
    for i in range(limits.GENERATIONS + 5):
        await world.objects.write(PIPELINE, world.pipeline("main", description=str(i)), Mode.UPDATE)
    last = limits.GENERATIONS + 6
    kept = await world.store.list(keys.history(key))
    assert len(kept.items) == limits.GENERATIONS
    assert (await world.objects.get(PIPELINE, key, last)).object.description == str(limits.GENERATIONS + 4)
    assert (await world.objects.get(PIPELINE, key, last - limits.GENERATIONS + 1)).object.description == "5"
    with pytest.raises(errors.NotFound):
        await world.objects.get(PIPELINE, key, last - limits.GENERATIONS)
    await world.objects.delete(PIPELINE, key)
    assert (await world.store.list(keys.history(key))).items == ()


# Deleting


async def test_a_definition_with_resources_stays(world: World) -> None:
    await world.setup()
    key = keys.definition(world.namespace, "app")
    await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    with pytest.raises(errors.InUse, match="web"):
        await world.objects.delete(DEFINITION, key)
    await world.objects.delete(RESOURCE, world.key())
    await world.objects.delete(DEFINITION, key)


async def test_a_definition_outlives_a_resource_that_is_created_while_it_is_deleted(world: World, store: Store) -> None:
    """The delete looks for resources, then one is created, then the delete is committed."""
    await world.setup()
    key = keys.definition(world.namespace, "app")
    real, late = world.store.commit, World(store, world.namespace)

    async def commit(guards: object = (), puts: object = (), deletes: object = ()) -> int:
        world.store.commit = real  # type: ignore[method-assign]
        await late.objects.write(RESOURCE, world.resource(), Mode.CREATE)
        return await real(guards, puts, deletes)  # type: ignore[arg-type]

    world.store.commit = commit  # type: ignore[method-assign, assignment]
    with pytest.raises(errors.InUse):
        await world.objects.delete(DEFINITION, key)
    await world.objects.write(RESOURCE, world.resource(spec={"a": 1}), Mode.UPDATE)
    assert (await world.objects.get(DEFINITION, key, 1)).object.name == "app"


async def test_deletes_look_at_the_etag_and_only_at_their_own(world: World) -> None:
    await world.setup()
    long = await world.objects.write(PIPELINE, world.pipeline("main-two"), Mode.CREATE)
    key = keys.pipeline(world.namespace, "main")
    with pytest.raises(errors.EtagMismatch):
        await world.objects.delete(PIPELINE, key, etag(long.item.mod_revision))
    current = await world.objects.get(PIPELINE, key)
    assert await world.objects.delete(PIPELINE, key, etag(current.mod_revision), validate_only=True) == current
    assert await world.objects.delete(PIPELINE, key, etag(current.mod_revision)) == current
    left = await world.objects.page(PIPELINE, keys.pipelines(world.namespace), "", 10)
    assert [item.object.name for item in left.items] == ["main-two"]


# The cache


async def test_the_usual_change_reads_nothing_and_commits_once(world: World) -> None:
    await world.setup()
    await world.objects.write(RESOURCE, world.resource("first"), Mode.CREATE)
    world.store.reads = world.store.commits = 0
    await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    await world.objects.write(RESOURCE, world.resource(spec={"a": 1}), Mode.UPDATE)
    await world.starts.start(world.namespace, "app", "web")
    assert (world.store.reads, world.store.commits) == (0, 3)


async def test_what_another_process_changed_counts_at_once(world: World, other: World) -> None:
    """Each step relies on something that `world` has in its cache and `other` has changed since."""
    await world.setup(schema={"required": ["a"]})
    await world.objects.write(RESOURCE, world.resource(spec={"a": 1}), Mode.CREATE)
    # A schema that takes more, and one that takes less.
    await other.objects.write(DEFINITION, world.definition(schema={"required": ["b"]}), Mode.UPDATE)
    await world.objects.write(RESOURCE, world.resource(spec={"b": 1}), Mode.UPDATE)
    await other.objects.write(DEFINITION, world.definition(schema={"required": ["c"]}), Mode.UPDATE)
    with pytest.raises(errors.SchemaViolation):
        await world.objects.write(RESOURCE, world.resource(spec={"b": 2}), Mode.UPDATE)
    # A pipeline that is edited.
    await other.objects.write(PIPELINE, world.pipeline("main", "x", "y", "z"), Mode.UPDATE)
    run = await world.starts.start(world.namespace, "app", "web")
    assert (run.pipeline_generation, len(run.step_states)) == (2, 3)
    # An object that is changed back, and one that is the same only here.
    await other.objects.write(RESOURCE, world.resource(spec={"c": 1}), Mode.UPDATE)
    written = await world.objects.write(RESOURCE, world.resource(spec={"c": 1}), Mode.APPLY)
    assert (written.outcome, written.item.object.generation) == (apply_pb2.APPLY_OUTCOME_UNCHANGED, 3)
    await other.objects.write(RESOURCE, world.resource(spec={"c": 2}), Mode.UPDATE)
    written = await world.objects.write(RESOURCE, world.resource(spec={"c": 1}), Mode.APPLY)
    assert (written.outcome, written.item.object.generation) == (apply_pb2.APPLY_OUTCOME_CHANGED, 5)
    # What is deleted.
    await other.objects.delete(PIPELINE, keys.pipeline(world.namespace, "main"))
    with pytest.raises(errors.UnknownPipeline):
        await world.starts.start(world.namespace, "app", "web")
    await other.objects.delete(RESOURCE, world.key())
    with pytest.raises(errors.NotFound):
        await world.starts.start(world.namespace, "app", "web", pipeline="nope")
    await other.objects.delete(DEFINITION, keys.definition(world.namespace, "app"))
    with pytest.raises(errors.UnknownDefinition):
        await world.objects.write(RESOURCE, world.resource(spec={"c": 1}), Mode.CREATE)


async def test_a_name_that_was_freed_elsewhere_can_be_taken(world: World, other: World) -> None:
    await world.setup()
    await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    await other.objects.delete(RESOURCE, world.key())
    await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)


async def test_endless_contention_is_given_up(world: World, store: Store) -> None:
    await world.setup()
    real = world.store.commit
    pipeline = keys.pipeline(world.namespace, "main")

    async def commit(guards: object = (), puts: object = (), deletes: object = ()) -> int:
        current = await store.get(pipeline)
        assert current is not None
        await store.commit([Guard(pipeline, current.mod_revision)], [Put(pipeline, current.value)])
        return await real(guards, puts, deletes)  # type: ignore[arg-type]

    world.store.commit = commit  # type: ignore[method-assign, assignment]
    with pytest.raises(errors.Contention):
        await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    assert len(world.launcher.abandoned_runs) == world.launcher.prepared


async def test_a_store_that_is_away_frees_what_was_claimed(world: World) -> None:
    await world.setup()
    world.store.fail_before = [Unavailable("away")]
    with pytest.raises(Unavailable):
        await world.objects.write(RESOURCE, world.resource(), Mode.CREATE)
    assert len(world.launcher.abandoned_runs) == 1


# Pages


async def test_pages_are_in_order_of_names_and_end(world: World) -> None:
    names = [f"p{i:03}" for i in range(150)]
    for name in reversed(names):
        await world.objects.write(PIPELINE, world.pipeline(name, labels={"odd": str(int(name[1:]) % 2)}), Mode.CREATE)
    prefix = keys.pipelines(world.namespace)
    seen: list[str] = []
    after = ""
    while True:
        page = await world.objects.page(PIPELINE, prefix, after, 70)
        assert len(page.items) <= 70
        seen += [item.object.name for item in page.items]
        after = page.after
        if not after:
            break
    assert seen == names
    odd = await world.objects.page(PIPELINE, prefix, "", 100, {"odd": "1"})
    assert [item.object.name for item in odd.items] == names[1::2]
    assert odd.after == ""


async def test_a_page_of_large_objects_ends_before_the_message_is_too_large(world: World) -> None:
    for i in range(8):
        item = world.pipeline(f"p{i}")
        item.context.update({"k": "x" * 400_000})
        await world.objects.write(PIPELINE, item, Mode.CREATE)
    prefix = keys.pipelines(world.namespace)
    first = await world.objects.page(PIPELINE, prefix, "", 100)
    assert 1 <= sum(item.object.ByteSize() for item in first.items) <= limits.PAGE_BYTES
    second = await world.objects.page(PIPELINE, prefix, first.after, 100)
    assert [item.object.name for item in (*first.items, *second.items)] == [f"p{i}" for i in range(8)]
